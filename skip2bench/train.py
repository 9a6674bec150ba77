"""A fine-tuning run from its configuration to its run folder; the loop itself is `loop`'s."""

import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from litgpt.model import GPT

from skip2bench.building import build_model, count_parameters, trained_tensors
from skip2bench.byte_sizes import parse_bytes
from skip2bench.cache_build import CacheBuilder
from skip2bench.cache_folder import CacheFolder
from skip2bench.cache_plan import CacheUse, plan_cache
from skip2bench.cached_objective import CachedObjective
from skip2bench.checkpoints import save_adapter
from skip2bench.config import TrainConfig, to_plain
from skip2bench.console import note
from skip2bench.environment import weights_dtype
from skip2bench.logs import RunLogs
from skip2bench.loop import Progress, TrainingRun, fit, planned_batches, summarise_run
from skip2bench.measure import (
    Clock,
    hold_freed_memory,
    reset_peak_memory,
    return_freed_memory,
    watch_anonymous_memory,
)
from skip2bench.models import hash_file, load_checkpoint
from skip2bench.objective import Objective, TokenObjective, token_validation_loss
from skip2bench.recording import record_run
from skip2bench.results import create_log_folder, create_run_folder
from skip2bench.skip2 import SkipGPT
from skip2bench.streamed_loss import streamed_validation_loss
from skip2bench.streaming import StreamedBackbone, load_without_blocks
from skip2bench.training_plan import TrainingPlan, plan_training

_SCRATCH = ".cache"
"""Below the run folder: a cache on disk that ends with the run."""


def run_training(config: TrainConfig, arguments: list[str]) -> dict[str, Any]:
    """Fine-tune, write the run folder, and return its summary.

    Args:
        config: What to run.
        arguments: The command line, recorded so that the run can be repeated.

    Raises:
        Skip2BenchError: bad input (nothing is written then), or a loss that is not finite.
    """
    started = time.monotonic()
    plan = plan_training(config)
    model_name = plan.model_name
    note(f"{plan.settings.label}: {model_name}, {config.data}, {plan.device}, {plan.precision}")
    folder = create_run_folder(
        "train", model_name, plan.settings.slug, config.out_dir, force=config.force
    )
    log_folder = create_log_folder(folder)
    environment = plan.describe_environment(arguments)
    known = plan.describe() | {"log_folder": log_folder.relative_to(folder).as_posix()}
    with record_run(folder, to_plain(config), environment, known, started) as summary:
        with watch_anonymous_memory() if config.stream_blocks else nullcontext() as read_peak:
            summary |= _train(plan, folder, log_folder, environment)
        if read_peak is not None:
            summary["peak_anonymous_memory_bytes"] = read_peak()
    return summary | {"folder": str(folder)}


def _train(
    plan: TrainingPlan, folder: Path, log_folder: Path, environment: dict[str, Any]
) -> dict[str, Any]:
    """Build the model, train it, save the adapter; return the figures of the run."""
    config, device = plan.config, plan.device
    if config.stream_blocks:
        return_freed_memory()
    elif plan.settings.method.is_cached:
        hold_freed_memory()  # the others lose by it, a tenth of LoRA's time
    fabric = Fabric(accelerator=device.type, devices=1, precision=plan.precision)
    model = _load_model(plan)
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
    before = _domain_loss(plan, fabric, model, folder)
    torch.manual_seed(config.seed)
    reset_peak_memory(device)
    progress = Progress()
    try:
        saved_bytes = fit(run, progress)
    finally:
        run.logs.close()
        shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
    figures = summarise_run(run, progress)
    adapter_bytes = save_adapter(
        model,
        plan.settings,
        folder / "final",
        plan.base_folder,
        plan.precision,
        config.prompt_style,
    )
    after = _domain_loss(plan, fabric, model, folder)
    return {
        "total_parameters": total,
        "trainable_parameters": trainable,
        "saved_for_backward_bytes": saved_bytes,
        **figures,
        "adapter_bytes": adapter_bytes,
        "domain_loss_before": before,
        "domain_loss_after": after,
        "forgetting": None if before is None or after is None else after - before,
    }


def _load_model(plan: TrainingPlan) -> GPT:
    """The method's model on its base, of which a streamed run loads what follows the blocks."""
    load = load_without_blocks if plan.config.stream_blocks else load_checkpoint
    base = load(plan.base_folder, plan.device, weights_dtype(plan.precision))
    # the model holds the base's tensors, until it drops the backbone
    return build_model(plan.settings, base, plan.device, plan.config.seed)


def _domain_loss(plan: TrainingPlan, fabric: Fabric, model: GPT, folder: Path) -> float | None:
    """Loss on the base model's own domain; None where the run has no text of it."""
    if plan.domain is None:
        return None
    if isinstance(model, SkipGPT) and model.is_released:
        trained = trained_tensors(model)
        model = _load_model(plan)
        model.load_state_dict(trained, strict=False)
    model.eval()
    with fabric.autocast():
        if plan.config.stream_blocks:
            return streamed_validation_loss(_stream(plan, model, folder), plan.domain)
        return token_validation_loss(fabric, model, plan.domain)


def _stream(plan: TrainingPlan, model: GPT, folder: Path) -> StreamedBackbone:
    assert isinstance(model, SkipGPT)
    return StreamedBackbone(
        model=model,
        folder=plan.base_folder,
        device=plan.device,
        dtype=weights_dtype(plan.precision),
        scratch=folder / _SCRATCH,
    )


def _build_objective(
    plan: TrainingPlan,
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
        backbone=_stream(plan, model, folder) if config.stream_blocks else None,
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
