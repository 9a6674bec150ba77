"""What goes together in a run: checks of a `TrainConfig` beyond its choices."""

import math
from typing import TYPE_CHECKING

from skip2bench.config.blocks import count_auto
from skip2bench.config.methods import METHODS
from skip2bench.config.options import MAX_COUNT, MAX_RANKS, check_positive
from skip2bench.config.score import split_score
from skip2bench.errors import Skip2BenchError

if TYPE_CHECKING:  # which calls these
    from skip2bench.config.train import TrainConfig


def check_streaming(config: "TrainConfig") -> None:
    """Raise a Skip2BenchError where blocks are to be streamed that would run more than once."""
    if config.stream_blocks and not METHODS[config.method].serves_rows:
        raise Skip2BenchError(
            f"stream_blocks needs method 'skip2', which runs each block once; method is "
            f"{config.method!r}"
        )


def check_sample_prompt(config: "TrainConfig") -> None:
    """Raise a Skip2BenchError where the model cannot answer while it trains."""
    if config.sample_prompt is None:
        return
    if not config.sample_prompt.strip():
        raise Skip2BenchError("sample_prompt is empty; give text, or leave it out")
    _check_answers(config, "sample_prompt")


def check_score(config: "TrainConfig") -> None:
    """Raise a Skip2BenchError where there is no such score, or the model cannot answer."""
    if config.score is not None:
        split_score(config.score)
        _check_answers(config, "score")


def _check_answers(config: "TrainConfig", option_name: str) -> None:
    """Raise a Skip2BenchError where a run has no whole model that an option could ask."""
    for name, is_used in (
        ("stream_blocks", config.stream_blocks),
        ("devices", config.devices * config.num_nodes > 1),
        ("compile", config.compile),
    ):
        if is_used:
            raise Skip2BenchError(
                f"{option_name} needs the whole model on one device, as it is written; leave "
                f"{name} out with it"
            )


def check_quantize(config: "TrainConfig") -> None:
    """Raise a Skip2BenchError where weights in few bits do not go with the rest."""
    quantize = config.quantize
    if METHODS[config.method].weights:
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
    if config.learning_rate == "auto" and size > 1:
        raise Skip2BenchError(
            f"learning_rate auto searches in one process, and devices x num_nodes is {size}; give "
            "the rate that a run on one device finds"
        )
    if config.stream_blocks and size > 1:
        raise Skip2BenchError(
            f"stream_blocks runs on one device, and devices x num_nodes is {size}; use --strategy "
            "fsdp for a backbone that fits no single one"
        )
    if METHODS[config.method].is_skip and count_auto(config.blocks) is not None and size > 1:
        raise Skip2BenchError(
            f"blocks {config.blocks!r} are chosen on one device, and devices x num_nodes is "
            f"{size}; give e.g. last:8, or the numbers that a run on one device chose"
        )
    if config.cache_project is not None and METHODS[config.method].is_skip and size > 1:
        raise Skip2BenchError(
            f"cache_project finds its directions on one device, and devices x num_nodes is {size}; "
            "leave it out, or train on one device"
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
    if not METHODS[config.method].is_skip:
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
    for name in (
        *("max_steps", "train_samples", "val_samples", "max_seq_length", "patience"),
        *("cache_project", "top_blocks", "score_samples", "score_max_new_tokens"),
    ):
        if getattr(config, name) is not None:
            check_positive(name, getattr(config, name))
    if config.max_seq_length == 1:
        raise Skip2BenchError(
            "max_seq_length is 1, which has no next token to learn; give 2 or more"
        )


def check_optimizer(config: "TrainConfig") -> None:
    """Raise a Skip2BenchError where a value of AdamW or its schedule is not good."""
    rate = config.learning_rate
    if rate != "auto" and not 0 < rate < math.inf:  # NaN is refused too, here and below
        raise Skip2BenchError(f"learning_rate is {rate}; give a number above 0, such as 3e-3")
    if config.max_norm is not None and not 0 < config.max_norm < math.inf:
        raise Skip2BenchError(
            f"max_norm is {config.max_norm}; give a number above 0, such as 1.0, or leave it out"
        )
    for name in ("lr_warmup_steps", "weight_decay"):
        value = getattr(config, name)
        if value is not None and not 0 <= value <= MAX_COUNT:
            remedy = f"at most {MAX_COUNT}" if value > 0 else "0 or more"
            raise Skip2BenchError(f"{name} is {value}; give {remedy}")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(config, name) < 1:
            raise Skip2BenchError(
                f"{name} is {getattr(config, name)}; give a number from 0 to below 1"
            )
