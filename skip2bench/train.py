"""A fine-tuning run from its configuration to its run folder; the loop itself is `loop`'s."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from litgpt.model import GPT

from skip2bench.building import build_model, count_parameters, trained_tensors
from skip2bench.byte_sizes import parse_bytes
from skip2bench.cache_arrays import Tier
from skip2bench.cache_build import CacheBuilder
from skip2bench.cache_folder import CacheFolder
from skip2bench.cache_plan import CacheUse, plan_cache
from skip2bench.cached_objective import CachedObjective
from skip2bench.checkpoints import save_adapter
from skip2bench.config import TrainConfig, to_plain
from skip2bench.console import note
from skip2bench.environment import weights_dtype
from skip2bench.errors import DivergedError
from skip2bench.logs import RunLogs
from skip2bench.loop import TrainingRun, fit, planned_batches, summarise_run
from skip2bench.measure import (
    Clock,
    hold_freed_memory,
    reset_peak_memory,
    return_freed_memory,
    watch_anonymous_memory,
)
from skip2bench.models import load_checkpoint
from skip2bench.objective import Objective, TokenObjective, token_validation_loss
from skip2bench.recording import record_run
from skip2bench.resume import RunPlace, identify, open_place
from skip2bench.skip2 import SkipGPT
from skip2bench.state_files import StateFolder
from skip2bench.stop_request import StopRequest, stop_on_signals
from skip2bench.streamed_loss import streamed_validation_loss
from skip2bench.streaming import StreamedBackbone, load_without_blocks
from skip2bench.training_plan import TrainingPlan, plan_training
from skip2bench.training_state import TrainingState

_SCRATCH = ".cache"
"""Below the run folder: a cache on disk that ends with the run, and is found when it is resumed."""


def run_training(config: TrainConfig, arguments: list[str]) -> dict[str, Any]:
    """Fine-tune, write the run folder, and return its summary.

    Args:
        config: What to run.
        arguments: The command line, recorded so that the run can be repeated.

    Raises:
        Skip2BenchError: bad input (nothing is written then), a loss that is not finite, or a
            machine that has no room.
        KeyboardInterrupt: SIGINT or SIGTERM came; the run can be resumed.
    """
    started = time.monotonic()
    plan = plan_training(config)
    note(
        f"{plan.settings.label}: {plan.model_name}, {config.data}, {plan.device}, {plan.precision}"
    )
    environment = plan.describe_environment(arguments)
    identity = identify(plan, environment)
    with stop_on_signals() as stop, open_place(plan, identity) as place:
        if place.finished is not None:
            return place.finished
        folder = place.folder
        environment |= {"earlier_sessions": place.earlier_sessions} if place.state else {}
        log_folder = place.log_folder.relative_to(folder).as_posix()
        known = plan.describe() | {"log_folder": log_folder}
        with (
            _cleared_at_end(folder),
            record_run(
                folder,
                to_plain(config),
                environment,
                known,
                started,
                earlier_seconds=place.earlier_seconds,
                can_resume=True,
            ) as summary,
        ):
            constants = {"identity": identity, "log_folder": log_folder}
            start = _Start(
                plan=plan,
                place=place,
                environment=environment,
                stop=stop,
                constants=constants,
                started=started - place.earlier_seconds,
            )
            with watch_anonymous_memory() if config.stream_blocks else nullcontext() as read_peak:
                summary |= _train(start)
            if read_peak is not None:
                summary["peak_anonymous_memory_bytes"] = read_peak()
    return summary | {"folder": str(folder)}


@contextmanager
def _cleared_at_end(folder: Path) -> Iterator[None]:
    """Remove states and scratch once the run's summary is written, or where nothing can go on."""
    try:
        yield
    except DivergedError:
        _clear(folder)
        raise
    _clear(folder)


def _clear(folder: Path) -> None:
    StateFolder(folder).clear()
    shutil.rmtree(folder / _SCRATCH, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What a run starts with."""

    plan: TrainingPlan
    place: RunPlace
    environment: dict[str, Any]
    stop: StopRequest
    constants: dict[str, Any]
    """What every state says, see `TrainingState`."""
    started: float


def _train(start: _Start) -> dict[str, Any]:
    """Build the model, train it, save the adapter; return the figures of the run."""
    plan, place = start.plan, start.place
    config, device, folder, resumed = plan.config, plan.device, place.folder, place.state
    if config.stream_blocks:
        return_freed_memory()
    elif plan.settings.method.is_cached:
        hold_freed_memory()  # the others lose by it, a tenth of LoRA's time
    fabric = Fabric(accelerator=device.type, devices=1, precision=plan.precision)
    model = _load_model(plan)
    total, trainable = count_parameters(model)
    batches = planned_batches(config, plan.data, plan.steps)
    if resumed is None:
        shutil.rmtree(folder / _SCRATCH, ignore_errors=True)  # its cache counts in no clock yet
    objective = _build_objective(plan, fabric, model, batches, start)
    before = (
        resumed.values["domain_loss_before"]
        if resumed
        else _domain_loss(plan, fabric, model, folder)
    )
    optimizer = fabric.setup_optimizers(_build_optimizer(model, config, device))
    clock, progress = Clock(device), place.progress
    run = TrainingRun(
        config=config,
        label=plan.settings.label,
        fabric=fabric,
        model=model,
        objective=objective,
        optimizer=optimizer,
        data=plan.data,
        batches=batches,
        clock=clock,
        logs=RunLogs(
            place.log_folder,
            with_tensorboard=config.logger == "tensorboard",
            step=progress.step,
        ),
        state=TrainingState(
            folder=StateFolder(folder),
            fabric=fabric,
            model=model,
            optimizer=optimizer,
            clock=clock,
            started=start.started,
            constants=start.constants | {"domain_loss_before": before},
            describe=objective.describe_state,
        ),
        stop=start.stop,
    )
    torch.manual_seed(config.seed)
    reset_peak_memory(device)
    try:
        fit(run, progress, resumed)
    finally:
        run.logs.close()
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
    start: _Start,
) -> Objective:
    config, data, environment = plan.config, plan.data, start.environment
    if not plan.settings.method.is_cached:
        return TokenObjective(fabric, fabric.setup_module(model), data, config.micro_batch_size)
    assert isinstance(model, SkipGPT)
    model.check_is_deterministic()
    used = sorted({i for batch in batches for i in batch})
    passes = sum(map(len, batches)) / len(used)
    scratch = start.place.folder / _SCRATCH
    earlier = start.place.state.values["objective"] if start.place.state else None
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
        decided=None if earlier is None else (earlier["tier"], earlier["capacity_bytes"]),
    )
    versions = {name: environment[name] for name in ("torch", "litgpt")}
    builder = CacheBuilder(
        model=model,
        device=plan.device,
        plan=cache_plan,
        folder=_cache_folder(config, cache_plan.tier, scratch),
        key={
            "checkpoint_sha256": environment["checkpoint"]["sha256"],
            "model_config_sha256": environment["checkpoint"]["model_config_sha256"],
            "precision": plan.precision,
            "device": plan.device.type,
            **versions,
        },
        about={"model": plan.base_folder.name, "data": data.name},
        backbone=_stream(plan, model, start.place.folder) if config.stream_blocks else None,
    )
    was_kept = None if earlier is None else bool(earlier["was_kept"])
    if config.cache_dir is None:
        was_kept = False  # what lies in the scratch folder is this run's own
    return CachedObjective(fabric, model, data, builder, used, passes, was_kept=was_kept)


def _cache_folder(config: TrainConfig, tier: Tier, scratch: Path) -> CacheFolder | None:
    """Where the run's caches are kept; on disk, a run that is resumed finds its own again."""
    if config.cache_dir is not None:
        return CacheFolder(config.cache_dir)
    return CacheFolder(scratch) if tier == "disk" else None


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
