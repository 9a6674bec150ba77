"""What the values of a configuration must be; `config` calls these when one is made."""

import math
from typing import TYPE_CHECKING

from skip2bench.errors import Skip2BenchError

if TYPE_CHECKING:
    from skip2bench.config import TrainConfig

MAX_COUNT = 10**9
"""Beyond it a count is a slip: nothing here can have or do so many."""
MAX_RANK = 2**16
MAX_RANKS = 4096
MAX_REPEATS = 100_000


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise a Skip2BenchError unless `value` is one of `choices`."""
    if value not in choices:
        raise Skip2BenchError(f"{name} is {value!r}; choose from {', '.join(choices)}")


def check_positive(name: str, value: int, most: int = MAX_COUNT) -> None:
    """Raise a Skip2BenchError unless `value` is from 1 to `most`."""
    if value < 1:
        raise Skip2BenchError(f"{name} is {value}; give 1 or more")
    if value > most:
        raise Skip2BenchError(f"{name} is {value}; give at most {most}")


def check_streaming(config: "TrainConfig") -> None:
    """Raise a Skip2BenchError where blocks are to be streamed that would run more than once."""
    if config.stream_blocks and config.method != "skip2":
        raise Skip2BenchError(
            f"stream_blocks needs method 'skip2', which runs each block once; method is "
            f"{config.method!r}"
        )


def check_quantize(config: "TrainConfig") -> None:
    """Raise a Skip2BenchError where weights in few bits do not go with the rest."""
    quantize = config.quantize
    if config.method in ("full", "full+lora", "last", "bias"):
        raise Skip2BenchError(
            f"quantize holds the base model's weights in few bits, and method {config.method!r} "
            "trains some of them; use lora, skip or skip2, or leave it out"
        )
    if config.stream_blocks:
        raise Skip2BenchError(
            "stream_blocks reads each block as the checkpoint has it; leave quantize out with it"
        )
    if config.devices * config.num_nodes > 1:
        raise Skip2BenchError(
            "quantize runs on one device, as in LitGPT; leave it out, or devices and num_nodes"
        )
    wanted = ("16-true",) if "int8" in str(quantize) else ("bf16-true", "16-true")
    if config.precision not in ("auto", *wanted):
        raise Skip2BenchError(
            f"quantize {quantize} computes in a narrow dtype, and precision is "
            f"{config.precision!r}; use --precision {' or '.join(wanted)}"
        )


def check_ranks(config: "TrainConfig") -> None:
    """Raise a Skip2BenchError where devices, nodes and their strategy do not go together."""
    for name in ("devices", "num_nodes"):
        check_positive(name, getattr(config, name), MAX_RANKS)
    size = config.devices * config.num_nodes
    if config.stream_blocks and size > 1:
        raise Skip2BenchError(
            f"stream_blocks runs on one device, and devices x num_nodes is {size}; use --strategy "
            "fsdp for a backbone that fits no single one"
        )
    if config.strategy != "fsdp":
        return
    if size == 1:
        raise Skip2BenchError(
            "strategy fsdp shards over several devices, and devices is 1; raise --devices or leave "
            "--strategy out"
        )
    if config.micro_batch_size == "auto":
        raise Skip2BenchError(
            "micro_batch_size auto tries sizes until memory runs out, which ranks that share a "
            "backbone do not survive; give a number with --strategy fsdp"
        )
    if config.method not in ("skip", "skip2"):
        raise Skip2BenchError(
            "strategy fsdp shards the frozen backbone of skip and skip2, and method is "
            f"{config.method!r}; use --strategy ddp"
        )


def check_counts(config: "TrainConfig") -> None:
    """Raise a Skip2BenchError where a number of steps, samples or tokens is not good."""
    for name in (
        "epochs",
        "global_batch_size",
        "micro_batch_size",
        "eval_interval",
        "save_interval",
    ):
        if isinstance(value := getattr(config, name), int):
            check_positive(name, value)
    for name in ("max_steps", "train_samples", "max_seq_length"):
        if getattr(config, name) is not None:
            check_positive(name, getattr(config, name))
    if config.max_seq_length == 1:
        raise Skip2BenchError(
            "max_seq_length is 1, which has no next token to learn; give 2 or more"
        )


def check_optimizer(config: "TrainConfig") -> None:
    """Raise a Skip2BenchError where a value of AdamW or its schedule is not good."""
    if not 0 < config.learning_rate < math.inf:  # NaN is refused too, here and below
        raise Skip2BenchError(
            f"learning_rate is {config.learning_rate}; give a number above 0, such as 3e-3"
        )
    for name in ("lr_warmup_steps", "weight_decay"):
        value = getattr(config, name)
        if not 0 <= value <= MAX_COUNT:
            remedy = f"at most {MAX_COUNT}" if value > 0 else "0 or more"
            raise Skip2BenchError(f"{name} is {value}; give {remedy}")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(config, name) < 1:
            raise Skip2BenchError(
                f"{name} is {getattr(config, name)}; give a number from 0 to below 1"
            )
