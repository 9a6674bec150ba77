"""A fine-tuning run from its configuration to its run folder; the loop itself is `loop`'s."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from litgpt.model import GPT
from litgpt.tokenizer import Tokenizer

from skip2bench.byte_sizes import parse_bytes
from skip2bench.cache_build import CacheBuilder
from skip2bench.cache_folder import CacheFolder
from skip2bench.cache_plan import CacheUse, plan_cache
from skip2bench.cached_objective import CachedObjective
from skip2bench.checkpoints import save_adapter
from skip2bench.config import TrainConfig
from skip2bench.console import note, warn
from skip2bench.data import TokenizedData, count_steps, load_data
from skip2bench.environment import (
    choose_device,
    choose_precision,
    describe_environment,
    weights_dtype,
)
from skip2bench.logs import RunLogs, check_tensorboard
from skip2bench.loop import Progress, TrainingRun, fit, planned_batches, summarise_run
from skip2bench.measure import Clock, hold_freed_memory, reset_peak_memory
from skip2bench.methods import MethodSettings, build_model, count_parameters, resolve_method
from skip2bench.models import (
    check_checkpoint,
    embedded_checkpoint,
    hash_file,
    load_checkpoint,
    load_config,
)
from skip2bench.objective import Objective, TokenObjective
from skip2bench.recording import record_run
from skip2bench.results import create_log_folder, create_run_folder
from skip2bench.skip2 import SkipGPT

_SCRATCH = ".cache"
"""Below the run folder: a cache on disk that ends with the run."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A run whose input is known to be good; nothing is written before there is one."""

    config: TrainConfig
    base_folder: Path
    settings: MethodSettings
    data: TokenizedData
    device: torch.device
    precision: str

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        config = self.config
        return count_steps(
            len(self.data.train), config.global_batch_size, config.epochs, config.max_steps
        )


def run_training(config: TrainConfig, arguments: list[str]) -> dict[str, Any]:
    """Fine-tune, write the run folder, and return its summary.

    Args:
        config: What to run.
        arguments: The command line, recorded so that the run can be repeated.

    Raises:
        Skip2BenchError: bad input (nothing is written then), or a loss that is not finite.
    """
    started = time.monotonic()
    plan = _plan(config)
    model_name = plan.base_folder.name
    folder = create_run_folder(
        "train", model_name, plan.settings.slug, config.out_dir, force=config.force
    )
    log_folder = create_log_folder(folder)
    environment = describe_environment(plan.device, arguments) | {
        "data": {
            "name": plan.data.name,
            "samples": len(plan.data.train) + len(plan.data.val),
            "sha256": plan.data.sha256,
        },
        "checkpoint": {
            "name": model_name,
            "sha256": hash_file(plan.base_folder / "lit_model.pth"),
        },
    }
    known = _describe(plan) | {"log_folder": log_folder.relative_to(folder).as_posix()}
    with record_run(folder, config, environment, known, started) as summary:
        summary |= _train(plan, folder, log_folder, environment)
    return summary | {"folder": str(folder)}


def _plan(config: TrainConfig) -> _Plan:
    """Check all input and load the data."""
    base_folder = config.checkpoint_dir or embedded_checkpoint()
    check_checkpoint(base_folder)
    model_config = load_config(base_folder)
    settings = resolve_method(config.method, config.blocks, config, model_config)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    if config.logger == "tensorboard":
        check_tensorboard()
    note(f"{settings.label} on {base_folder.name}, data {config.data}, {device}, {precision}")
    length = min(config.max_seq_length or model_config.block_size, model_config.block_size)
    data = load_data(config, Tokenizer(base_folder), length)
    plan = _Plan(
        config=config,
        base_folder=base_folder,
        settings=settings,
        data=data,
        device=device,
        precision=precision,
    )
    if data.dropped:
        warn(
            f"{data.dropped} samples left out: cut to {length} tokens, "
            "nothing of their output is left"
        )
    if plan.steps < config.lr_warmup_steps:
        warn(
            f"the run ends inside the warm-up: {plan.steps} of {config.lr_warmup_steps} steps, "
            f"the learning rate reaches {plan.steps / config.lr_warmup_steps:.0%} of "
            f"{config.learning_rate}; lower --lr-warmup-steps"
        )
    return plan


def _train(
    plan: _Plan, folder: Path, log_folder: Path, environment: dict[str, Any]
) -> dict[str, Any]:
    """Build the model, train it, save the adapter; return the figures of the run."""
    config, device = plan.config, plan.device
    hold_freed_memory()
    fabric = Fabric(accelerator=device.type, devices=1, precision=plan.precision)
    base = load_checkpoint(plan.base_folder, device, weights_dtype(plan.precision))
    model = build_model(plan.settings, base, device, config.seed)
    del base  # the model holds its tensors, until it drops the backbone
    total, trainable = count_parameters(model)
    batches = planned_batches(config, plan.data, plan.steps)
    run = TrainingRun(
        config=config,
        label=plan.settings.label,
        fabric=fabric,
        model=model,
        objective=_build_objective(plan, fabric, model, batches, folder, environment),
        optimizer=fabric.setup_optimizers(_build_optimizer(model, config, device)),
        data=plan.data,
        batches=batches,
        clock=Clock(device),
        logs=RunLogs(log_folder, with_tensorboard=config.logger == "tensorboard"),
    )
    torch.manual_seed(config.seed)
    reset_peak_memory(device)
    progress = Progress()
    try:
        saved_bytes = fit(run, progress)
    finally:
        run.logs.close()
        shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
    save_adapter(
        model,
        plan.settings,
        folder / "final",
        plan.base_folder,
        plan.precision,
        config.prompt_style,
    )
    return {
        "total_parameters": total,
        "trainable_parameters": trainable,
        "saved_for_backward_bytes": saved_bytes,
        **summarise_run(run, progress),
    }


def _build_objective(
    plan: _Plan,
    fabric: Fabric,
    model: GPT,
    batches: list[list[int]],
    folder: Path,
    environment: dict[str, Any],
) -> Objective:
    config, data = plan.config, plan.data
    if not plan.settings.method.is_cached:
        return TokenObjective(fabric, fabric.setup_module(model), data, config.micro_batch_size)
    assert isinstance(model, SkipGPT)
    model.check_is_deterministic()
    used = sorted({i for batch in batches for i in batch})
    passes = sum(map(len, batches)) / len(used)
    scratch = folder / _SCRATCH
    cache_plan = plan_cache(
        model,
        CacheUse(train=data.train, train_ids=used, val=data.val, steps=len(batches), passes=passes),
        plan.device,
        weights_dtype(plan.precision),
        tier=config.cache_tier,
        dtype=config.cache_dtype,
        max_bytes=None
        if config.cache_max_bytes is None
        else parse_bytes("cache_max_bytes", config.cache_max_bytes),
        folder=config.cache_dir or scratch,
    )
    versions = {name: environment[name] for name in ("torch", "litgpt")}
    builder = CacheBuilder(
        model=model,
        device=plan.device,
        plan=cache_plan,
        folder=CacheFolder(config.cache_dir) if config.cache_dir else None,
        key={
            "checkpoint_sha256": environment["checkpoint"]["sha256"],
            "model_config_sha256": hash_file(plan.base_folder / "model_config.yaml"),
            "precision": plan.precision,
            "device": plan.device.type,
            **versions,
        },
        about={"model": plan.base_folder.name, "data": data.name},
        scratch=scratch,
    )
    return CachedObjective(fabric, model, data, builder, used, passes)


def _build_optimizer(
    model: GPT, config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


def _describe(plan: _Plan) -> dict[str, Any]:
    """What is known of a run before it starts."""
    config, settings, data = plan.config, plan.settings, plan.data
    return {
        "kind": "train",
        "label": settings.label,
        "method": settings.method.name,
        "blocks": list(settings.blocks) if settings.blocks is not None else None,
        "target": settings.skip.target if settings.skip else None,
        "rank": settings.rank,
        "model": plan.base_folder.name,
        "data": data.name,
        "train_samples": len(data.train),
        "val_samples": len(data.val),
        "dropped_samples": data.dropped,
        "seed": config.seed,
        "global_batch_size": config.global_batch_size,
        "micro_batch_size": config.micro_batch_size,
        "learning_rate": config.learning_rate,
        "precision": plan.precision,
        "device": str(plan.device),
        "error": None,
    }
