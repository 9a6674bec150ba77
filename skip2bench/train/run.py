"""A fine-tuning run from its configuration to its run folder; the loop itself is `loop`'s."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from litgpt.model import GPT

from skip2bench.cache.streamed_build import streamed_validation_loss
from skip2bench.config.commands import to_plain
from skip2bench.config.train import TrainConfig
from skip2bench.errors import DivergedError
from skip2bench.io.console import note
from skip2bench.machine.clock import Clock
from skip2bench.machine.memory import (
    hold_freed_memory,
    reset_peak_memory,
    return_freed_memory,
    watch_anonymous_memory,
)
from skip2bench.machine.signals import StopRequest, stop_on_signals
from skip2bench.models.adapters import save_adapter
from skip2bench.models.methods import count_parameters, trained_tensors
from skip2bench.models.skip import SkipGPT
from skip2bench.results.run_folder import record_run
from skip2bench.train.logs import NoLogs, RunLogs
from skip2bench.train.loop import fit
from skip2bench.train.objective import token_validation_loss
from skip2bench.train.parts import (
    SCRATCH,
    build_objective,
    build_optimizer,
    load_model,
    stream_backbone,
)
from skip2bench.train.plan import TrainingPlan, check_shares, plan_training
from skip2bench.train.ranks.launch import open_ranks
from skip2bench.train.ranks.ranks import Ranks, RankStop, started_as_rank
from skip2bench.train.resume import RunPlace, identify, open_place
from skip2bench.train.state import StateFolder, TrainingState
from skip2bench.train.training import (
    TrainingRun,
    describe_communication,
    describe_ranks,
    planned_batches,
    summarise_run,
)


def run_training(config: TrainConfig, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Fine-tune, write the run folder, and return its summary.

    Args:
        config: What to run.
        arguments: The command line, recorded so that the run can be repeated; a program has none.

    Raises:
        Skip2BenchError: bad input (nothing is written then), a loss that is not finite, or a
            machine that has no room.
        KeyboardInterrupt: SIGINT or SIGTERM came; the run can be resumed.
    """
    started = time.monotonic()
    plan = None if started_as_rank() else plan_training(config)  # errors before ranks are started
    if plan is not None:
        check_shares(plan, config.devices * config.num_nodes)
    with open_ranks(config, arguments) as (ranks, fabric):
        plan = ranks.together(lambda: plan or plan_training(config))
        check_shares(plan, ranks.size)
        if fabric is not None:
            plan = replace(plan, device=fabric.device)
        return _run(plan, ranks, fabric, arguments, started)


def _run(
    plan: TrainingPlan,
    ranks: Ranks,
    fabric: Fabric | None,
    arguments: Sequence[str],
    started: float,
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
            with watch_anonymous_memory() if config.stream_blocks else nullcontext() as read_peak:
                summary |= _train(start)
            if read_peak is not None:
                summary["peak_anonymous_memory_bytes"] = read_peak()
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
    shutil.rmtree(folder / SCRATCH, ignore_errors=True)


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
    if config.stream_blocks:
        return_freed_memory()
    elif plan.settings.method.is_cached:
        hold_freed_memory()  # the others lose by it, a tenth of LoRA's time
    ranks, is_first = start.ranks, start.ranks.is_first
    fabric = start.fabric or Fabric(accelerator=device.type, devices=1, precision=plan.precision)
    model = load_model(plan, ranks)
    total, trainable = count_parameters(model)
    batches = planned_batches(config, plan.data, plan.steps)
    if resumed is None and is_first:
        shutil.rmtree(folder / SCRATCH, ignore_errors=True)  # its cache counts in no clock yet
    objective = build_objective(plan, fabric, model, batches, place, start.environment, ranks)
    before = (
        resumed.values["domain_loss_before"]
        if resumed
        else _domain_loss(plan, fabric, model, folder, ranks)
    )
    optimizer = fabric.setup_optimizers(build_optimizer(model, config, device))
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
    after = _domain_loss(plan, fabric, model, folder, ranks)
    return {
        "total_parameters": total,
        "trainable_parameters": trainable,
        **figures,
        "domain_loss_before": before,
        "domain_loss_after": after,
        "forgetting": None if before is None or after is None else after - before,
    }


def _domain_loss(
    plan: TrainingPlan, fabric: Fabric, model: GPT, folder: Path, ranks: Ranks
) -> float | None:
    """Loss on the base model's own domain; None where the run has no text of it."""
    if plan.domain is None:
        return None
    if isinstance(model, SkipGPT) and model.is_released:
        trained = trained_tensors(model)
        model = load_model(plan, ranks)
        model.load_state_dict(trained, strict=False)
    model.eval()
    with fabric.autocast():
        if plan.config.stream_blocks:
            return streamed_validation_loss(stream_backbone(plan, model, folder), plan.domain)
        return token_validation_loss(fabric, model, plan.domain, ranks)
