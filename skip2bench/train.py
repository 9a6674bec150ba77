"""A fine-tuning run from its configuration to its run folder; the loop itself is `loop`'s."""

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
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
from skip2bench.cache_plan import CacheUse, free_of_rank, plan_cache
from skip2bench.cached_objective import CachedObjective, own_val_ids
from skip2bench.checkpoints import save_adapter
from skip2bench.config import TrainConfig, to_plain
from skip2bench.console import note
from skip2bench.environment import weights_dtype
from skip2bench.errors import DivergedError
from skip2bench.logs import NoLogs, RunLogs
from skip2bench.loop import TrainingRun, fit, planned_batches, summarise_run
from skip2bench.measure import Clock, hold_freed_memory, reset_peak_memory
from skip2bench.models import load_checkpoint
from skip2bench.objective import Objective, TokenObjective, token_validation_loss
from skip2bench.rank_launch import open_ranks
from skip2bench.rank_records import check_shares, describe_communication, describe_ranks
from skip2bench.ranks import Ranks, RankStop, share, started_as_rank
from skip2bench.recording import record_run
from skip2bench.resume import RunPlace, identify, open_place
from skip2bench.sharded_backbone import ShardedBackbone
from skip2bench.skip2 import SkipGPT
from skip2bench.state_files import StateFolder
from skip2bench.stop_request import StopRequest, stop_on_signals
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
    plan = None if started_as_rank() else plan_training(config)  # errors before ranks are started
    with open_ranks(config, arguments) as (ranks, fabric):
        plan = ranks.together(lambda: plan or plan_training(config))
        check_shares(plan, ranks)
        if fabric is not None:
            plan = replace(plan, device=fabric.device)
        return _run(plan, ranks, fabric, arguments, started)


def _run(
    plan: TrainingPlan, ranks: Ranks, fabric: Fabric | None, arguments: list[str], started: float
) -> dict[str, Any]:
    """The run on this rank; its summary on the first, nothing on the others."""
    config = plan.config
    note(
        f"{plan.settings.label}: {plan.model_name}, {config.data}, {plan.device}, {plan.precision}"
        + ("" if ranks.is_alone else f", {ranks.size} ranks")
    )
    # the first rank reads and writes for all
    environment = ranks.together(
        lambda: describe_ranks(plan.describe_environment(arguments), config, ranks)
    )
    identity = identify(plan, environment)
    with stop_on_signals() as wish, _open_place(plan, identity, ranks) as place:
        if place.finished is not None:
            return place.finished if ranks.is_first else {}
        folder = place.folder
        ranks.folder, ranks.step = folder, place.step
        environment |= {"earlier_sessions": place.earlier_sessions} if place.state else {}
        log_folder = place.log_folder.relative_to(folder).as_posix()
        known = plan.describe() | {"log_folder": log_folder}
        start = _Start(
            plan=plan,
            place=place,
            environment=environment,
            stop=wish if ranks.is_alone else RankStop(wish),
            constants={"identity": identity, "log_folder": log_folder},
            started=started - place.earlier_seconds,
            ranks=ranks,
            fabric=fabric,
        )
        if not ranks.is_first:
            _train(start)
            return {}
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
            summary |= _train(start)
    return summary | {"folder": str(folder)}


@contextmanager
def _open_place(plan: TrainingPlan, identity: dict[str, Any], ranks: Ranks) -> Iterator[RunPlace]:
    """The run's folder, which the first rank opens and locks for all."""
    with ExitStack() as stack:
        opened = ranks.together(
            lambda: stack.enter_context(open_place(plan, identity)) if ranks.is_first else None
        )
        place = ranks.broadcast(opened)
        assert place is not None
        yield place


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
    ranks: Ranks
    fabric: Fabric | None
    """That of the ranks; None for one process."""


def _train(start: _Start) -> dict[str, Any]:
    """Build the model, train it, save the adapter; return the figures of the run."""
    plan, place = start.plan, start.place
    config, device, folder, resumed = plan.config, plan.device, place.folder, place.state
    if plan.settings.method.is_cached:
        hold_freed_memory()  # the others lose by it, a tenth of LoRA's time
    ranks, is_first = start.ranks, start.ranks.is_first
    fabric = start.fabric or Fabric(accelerator=device.type, devices=1, precision=plan.precision)
    model = _load_model(plan, ranks)
    total, trainable = count_parameters(model)
    batches = planned_batches(config, plan.data, plan.steps)
    if resumed is None and is_first:
        shutil.rmtree(folder / _SCRATCH, ignore_errors=True)  # its cache counts in no clock yet
    objective = _build_objective(plan, fabric, model, batches, start)
    before = (
        resumed.values["domain_loss_before"]
        if resumed
        else _domain_loss(plan, fabric, model, ranks)
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
        )
        if is_first
        else NoLogs(),
        state=TrainingState(
            folder=StateFolder(folder),
            fabric=fabric,
            model=model,
            optimizer=optimizer,
            clock=clock,
            started=start.started,
            constants=start.constants | {"domain_loss_before": before},
            describe=objective.describe_state,
            ranks=ranks,
        ),
        stop=start.stop,
        ranks=ranks,
    )
    torch.manual_seed(config.seed + ranks.rank)  # the masks of dropout differ between ranks
    reset_peak_memory(device)
    try:
        fit(run, progress, resumed)
    finally:
        run.logs.close()
    figures = summarise_run(run, progress)
    figures |= describe_communication(config, ranks, model)
    if is_first:
        figures["adapter_bytes"] = save_adapter(
            model,
            plan.settings,
            folder / "final",
            plan.base_folder,
            plan.precision,
            config.prompt_style,
        )
    after = _domain_loss(plan, fabric, model, ranks)
    return {
        "total_parameters": total,
        "trainable_parameters": trainable,
        **figures,
        "domain_loss_before": before,
        "domain_loss_after": after,
        "forgetting": None if before is None or after is None else after - before,
    }


def _load_model(plan: TrainingPlan, ranks: Ranks) -> GPT:
    """The model on its device, or with its blocks spread over the ranks."""
    # what does not fit one device stays in memory until each rank has its part
    place = torch.device("cpu") if plan.config.strategy == "fsdp" else plan.device
    base = load_checkpoint(plan.base_folder, place, weights_dtype(plan.precision))
    model = build_model(plan.settings, base, place, plan.config.seed)
    if plan.config.strategy == "fsdp" and isinstance(model, SkipGPT):
        ranks.finish_passes = ShardedBackbone(model, ranks).finish
    return model


def _domain_loss(plan: TrainingPlan, fabric: Fabric, model: GPT, ranks: Ranks) -> float | None:
    """Loss on the base model's own domain; None where the run has no text of it."""
    if plan.domain is None:
        return None
    if isinstance(model, SkipGPT) and model.is_released:
        trained = trained_tensors(model)
        model = _load_model(plan, ranks)
        model.load_state_dict(trained, strict=False)
    model.eval()
    with fabric.autocast():
        return token_validation_loss(fabric, model, plan.domain, ranks)


def _build_objective(
    plan: TrainingPlan,
    fabric: Fabric,
    model: GPT,
    batches: list[list[int]],
    start: _Start,
) -> Objective:
    config, data, environment, ranks = plan.config, plan.data, start.environment, start.ranks
    if not plan.settings.method.is_cached:
        module = fabric.setup_module(model)
        return TokenObjective(fabric, module, data, config.micro_batch_size, ranks)
    assert isinstance(model, SkipGPT)
    model.check_is_deterministic()
    used = sorted({i for batch in batches for i in batch})
    passes = sum(map(len, batches)) / len(used)
    used = share(used, data.train.lengths, ranks.size)[ranks.rank]
    scratch = start.place.folder / _SCRATCH
    earlier = start.place.objective_state(ranks.rank)
    cache_plan = plan_cache(
        model,
        CacheUse(
            train=data.train,
            train_ids=used,
            val=data.val,
            steps=len(batches),
            passes=passes,
            own_val_ids=own_val_ids(data, ranks),
        ),
        plan.device,
        weights_dtype(plan.precision),
        tier=config.cache_tier,
        dtype=config.cache_dtype,
        max_bytes=None
        if config.cache_max_bytes is None
        else parse_bytes("cache_max_bytes", config.cache_max_bytes) // ranks.size,
        folder=config.cache_dir or scratch,
        free=free_of_rank(plan.device, config.cache_dir or scratch, ranks.local_size),
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
    )
    was_kept = None if earlier is None else bool(earlier["was_kept"])
    if config.cache_dir is None:
        was_kept = False  # what lies in the scratch folder is this run's own
    return CachedObjective(
        fabric, model, data, builder, used, passes, was_kept=was_kept, ranks=ranks
    )


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
