"""A training run before it starts: its input checked and loaded, nothing written yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from litgpt.config import Config

from skip2bench.config.blocks import count_auto
from skip2bench.config.run import EMBEDDED_DATA
from skip2bench.config.train import TrainConfig, wanted_blocks
from skip2bench.data.domain import load_domain
from skip2bench.data.load import load_data
from skip2bench.data.samples import Samples, TokenizedData, count_steps
from skip2bench.data.styles import choose_prompt_style
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note, warn
from skip2bench.io.resources import embedded_checkpoint
from skip2bench.io.text import check_folder
from skip2bench.io.units import format_amount
from skip2bench.io.whole import hash_file
from skip2bench.machine.environment import choose_device, choose_precision, describe_environment
from skip2bench.machine.environment_record import CheckpointRecord, DataRecord, Environment
from skip2bench.machine.guide import choose_micro_batch_size
from skip2bench.machine.hardware import installed_version
from skip2bench.models.base import (
    check_checkpoint,
    describe_tied_head,
    load_config,
)
from skip2bench.models.folders import WEIGHTS_FILE
from skip2bench.models.generation import Question, encode_question
from skip2bench.models.methods import MethodSettings, resolve_method
from skip2bench.models.quantised import choose_quantised_precision
from skip2bench.models.switches import check_can_compile
from skip2bench.models.tokenizer import load_tokenizer
from skip2bench.models.weights import check_weights
from skip2bench.results.run_records import TrainStart
from skip2bench.train.logs import check_logger
from skip2bench.train.score import Exam, plan_exam


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A run whose input is known to be good."""

    config: TrainConfig
    base_folder: Path
    model_config: Config
    settings: MethodSettings
    data: TokenizedData
    domain: Samples | None
    """Held-out text of the base model's domain, to measure forgetting."""
    device: torch.device
    precision: str
    prompt_style: str
    """LitGPT's name of the style that the data has, or the path of its file."""
    begins_prompts: bool
    """True where a token of the beginning stands before every prompt."""
    sample_question: Question | None
    """To be answered at every evaluation."""
    exam: Exam | None
    """What the trained model is asked."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        config = self.config
        return count_steps(
            len(self.data.train), config.global_batch_size, config.epochs, config.max_steps
        )

    @property
    def warmup_steps(self) -> int:
        """Steps until the learning rate is at its peak."""
        asked_for = self.config.lr_warmup_steps
        return -(-self.steps // _WARMUP_SHARE) if asked_for is None else asked_for

    @property
    def micro_batch_size(self) -> int | None:
        """Samples in a forward pass; None where the largest that fits is yet to be found."""
        config, device = self.config, self.device
        if config.micro_batch_size == "auto":
            # steps from the cache are cut by bytes, and take any batch
            return config.global_batch_size if self.settings.method.serves_rows else None
        if config.micro_batch_size is not None:
            return config.micro_batch_size
        is_gpu = device.type == "cuda"
        total = torch.cuda.get_device_properties(device).total_memory if is_gpu else None
        size = choose_micro_batch_size(
            device.type, total, is_embedded=self.base_folder == embedded_checkpoint()
        )
        return min(size, config.global_batch_size)

    @property
    def max_seq_length(self) -> int:
        """No sample has more tokens."""
        return limit_length(self.config, self.model_config)

    @property
    def model_name(self) -> str:
        """Name of the base model's folder."""
        return self.base_folder.name

    def describe_environment(self, arguments: Sequence[str]) -> Environment:
        """What `environment.json` says: machine and versions, and hashes of data and weights."""
        quantised = {"bitsandbytes": installed_version("bitsandbytes")}
        return Environment.of(
            describe_environment(self.device, arguments),
            **(quantised if self.config.quantize else {}),
            data=DataRecord(
                name=self.data.name,
                samples=len(self.data.train) + len(self.data.val),
                sha256=self.data.sha256,
            ),
            checkpoint=CheckpointRecord(
                name=self.model_name,
                sha256=hash_file(self.base_folder / WEIGHTS_FILE),
                model_config_sha256=hash_file(self.base_folder / "model_config.yaml"),
            ),
        )

    def describe(self) -> TrainStart:
        """What `summary.json` says of a run before it starts."""
        config, settings, data = self.config, self.settings, self.data
        return TrainStart(
            kind="train",
            label=settings.label,
            method=settings.method.name,
            blocks=settings.blocks,
            target=settings.skip.target if settings.skip else None,
            features=settings.skip.features if settings.skip else None,
            share_b=settings.skip.share_b if settings.skip else None,
            rank=settings.rank,
            top_blocks=settings.top_blocks,
            model=self.model_name,
            data=data.name,
            prompt_style=self.prompt_style,
            begins_prompts=self.begins_prompts,
            train_samples=len(data.train),
            val_samples=len(data.val),
            dropped_samples=data.dropped,
            seed=config.seed,
            global_batch_size=config.global_batch_size,
            micro_batch_size=self.micro_batch_size,
            learning_rate=None if config.learning_rate == "auto" else config.learning_rate,
            lr_warmup_steps=self.warmup_steps,
            precision=self.precision,
            gradient_checkpointing=config.gradient_checkpointing,
            quantize=config.quantize,
            compile=config.compile,
            device=str(self.device),
            error=None,
        )


def check_shares(plan: TrainingPlan, n_ranks: int) -> None:
    """Check that no rank would be idle in every step.

    Raises:
        Skip2BenchError: there are more ranks than training samples, or than a step has.
    """
    samples, batch = len(plan.data.train), plan.config.global_batch_size
    if n_ranks > samples:
        raise Skip2BenchError(
            f"{n_ranks} ranks share {samples} training samples; lower --devices or --num-nodes"
        )
    if n_ranks > batch:
        raise Skip2BenchError(
            f"{n_ranks} ranks share a global batch of {batch} samples; raise "
            "--global-batch-size, or lower --devices or --num-nodes"
        )


_WARMUP_SHARE = 10
"""A run of so many steps has one of warm-up."""
_MAX_STEPS = 10_000_000
"""The plan of a run lists its steps; nobody waits for more."""


def plan_training(config: TrainConfig) -> TrainingPlan:
    """Check all input and load the data.

    Blocks "auto" are all of them in its settings, until `block_choice.resolve_blocks`.

    Raises:
        Skip2BenchError: something of it is not good.
    """
    base_folder = config.checkpoint_dir or embedded_checkpoint()
    check_checkpoint(base_folder)
    model_config = load_config(base_folder)
    # what auto means needs the data, and a model: `block_choice` resolves it on this plan
    wanted = wanted_blocks(config)
    blocks = wanted if count_auto(wanted) is None else "all"
    settings = resolve_method(config.method, blocks, config, model_config)
    device = choose_device(config.device)
    precision = _choose_precision(config, device)
    if config.compile:
        check_can_compile(device)
    check_logger(config.logger)
    check_folder("out_dir", config.out_dir)
    check_folder("cache_dir", config.cache_dir)
    check_weights(base_folder / WEIGHTS_FILE, model_config)
    length = limit_length(config, model_config)
    tokenizer = load_tokenizer(base_folder)
    data = load_data(config, tokenizer, length, model_config.name, base_folder)
    style = data.prompt_style or choose_prompt_style(config.prompt_style, model_config.name)
    plan = TrainingPlan(
        config=config,
        base_folder=base_folder,
        model_config=model_config,
        settings=settings,
        data=data,
        domain=load_domain(config.domain_text, base_folder, tokenizer, length),
        device=device,
        precision=precision,
        prompt_style=style,
        begins_prompts=bool(tokenizer.use_bos),
        sample_question=None
        if config.sample_prompt is None
        else encode_question(tokenizer, model_config, style, config.sample_prompt),
        exam=plan_exam(config, data.held_out, tokenizer, model_config, style, data.renderer),
    )
    _check_token_ids(plan)
    if plan.steps > _MAX_STEPS:
        raise Skip2BenchError(
            f"the run would take {plan.steps:,} steps; lower --epochs, or set --max-steps to at "
            f"most {_MAX_STEPS:,}"
        )
    if config.data == EMBEDDED_DATA and config.checkpoint_dir is not None:
        note(f"the data is {EMBEDDED_DATA}, the embedded set; --data FILE gives your own")
    if tied := describe_tied_head(base_folder):
        note(tied)
    for text in _list_warnings(plan, length):
        warn(text)
    return plan


def _choose_precision(config: TrainConfig, device: torch.device) -> str:
    if config.quantize is None:
        return choose_precision(config.precision, device)
    return choose_quantised_precision(config.quantize, config.precision, device)


def _check_token_ids(plan: TrainingPlan) -> None:
    size = int(plan.model_config.padded_vocab_size)
    sides = [plan.data.train, plan.data.val, *([plan.domain] if plan.domain else [])]
    highest = max(int(ids.max()) for side in sides for ids in side.input_ids)
    if highest >= size:
        raise Skip2BenchError(
            f"the tokenizer in {str(plan.base_folder)!r} gives token {highest}, and the model has "
            f"{size} tokens: it is another model's; download the checkpoint again"
        )


def _list_warnings(plan: TrainingPlan, length: int) -> list[str]:
    """What can run as it is, and is perhaps not what was meant."""
    config, data = plan.config, plan.data
    found = []
    if data.dropped:
        found.append(
            f"{format_amount(data.dropped, 'sample')} left out: cut to {length} tokens, "
            "nothing of the output is left"
        )
    if data.cut:
        found.append(
            f"{format_amount(data.cut, 'sample')} cut to {length} tokens, without the end of the "
            "output"
        )
    if data.empty:
        found.append(
            f"{format_amount(data.empty, 'record')} with an empty output, which teaches to say "
            "nothing"
        )
    if data.shared:
        found.append(
            f"{data.shared} of {len(data.val)} validation samples are training samples too: the "
            "validation loss will look too good; remove duplicates from the data"
        )
    if plan.micro_batch_size and plan.micro_batch_size > config.global_batch_size:
        found.append(
            f"micro_batch_size {plan.micro_batch_size} is larger than global_batch_size "
            f"{config.global_batch_size}: a forward pass has at most {config.global_batch_size}"
        )
    if plan.precision == "16-true":
        found.append(
            "precision 16-true keeps what trains, its gradients and AdamW's moments in float16, "
            "where small ones are 0: training may stall or diverge; bf16-true, bf16-mixed and "
            "16-mixed do not"
        )
    if plan.steps < plan.warmup_steps:
        found.append(
            f"the run ends inside the warm-up: {plan.steps} of {plan.warmup_steps} steps, "
            f"the learning rate reaches {plan.steps / plan.warmup_steps:.0%} of "
            f"{config.learning_rate}; lower --lr-warmup-steps"
        )
    return found


def limit_length(config: TrainConfig, model_config: Config) -> int:
    """Tokens that a sample is cut to: what was asked for, within the model's context."""
    context = int(model_config.block_size)
    return min(config.max_seq_length or context, context)
