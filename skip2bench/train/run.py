"""A fine-tuning run from its configuration to its run folder; the loop itself is `loop`'s."""

import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from litgpt.model import GPT

from skip2bench.cache.streamed_build import streamed_validation_loss
from skip2bench.config.options import to_plain
from skip2bench.config.train import TrainConfig
from skip2bench.errors import DivergedError
from skip2bench.io.console import warn
from skip2bench.machine.clock import Clock
from skip2bench.machine.memory import (
    hold_freed_memory,
    release_memory,
    reset_peak_memory,
    return_freed_memory,
    watch_anonymous_memory,
)
from skip2bench.machine.processor_use import ProcessorMeter
from skip2bench.machine.threads import give_way
from skip2bench.models.adapters import save_adapter
from skip2bench.models.methods import count_parameters, trained_tensors
from skip2bench.models.skip import SkipGPT
from skip2bench.models.top import CachedGPT
from skip2bench.results.answers import write_answers
from skip2bench.results.disturbance import (
    describe_disturbed,
    find_disturbed,
    repeat_training,
)
from skip2bench.results.run_folder import record_run
from skip2bench.results.run_records import (
    ScoreFigures,
    TrainFigures,
    TrainResult,
    TrainSummary,
)
from skip2bench.train.attempt import SCRATCH, Attempt, open_attempt
from skip2bench.train.best import bring_back_best, warn_of_rising_loss
from skip2bench.train.block_choice import resolve_blocks
from skip2bench.train.cached_objective import CachedObjective
from skip2bench.train.logs import NoLogs, RunLogs
from skip2bench.train.loop import fit
from skip2bench.train.objective import Objective, validate_tokens
from skip2bench.train.parts import (
    build_run_optimizer,
    build_token_objective,
    build_trunk_objective,
    load_model,
    plan_caches,
    provide_projection,
    stream_backbone,
)
from skip2bench.train.plan import TrainingPlan, check_shares, plan_training
from skip2bench.train.ranks.launch import open_ranks
from skip2bench.train.ranks.ranks import started_as_rank
from skip2bench.train.score import hold_exam
from skip2bench.train.state import StateFolder
from skip2bench.train.training import (
    TrainingRun,
    describe_communication,
    planned_batches,
    summarise_run,
)


def run_training(config: TrainConfig, arguments: Sequence[str] = ()) -> TrainResult | None:
    """Fine-tune, write the run folder, and return its summary; None on ranks but the first.

    Args:
        config: What to run.
        arguments: The command line, recorded so that the run can be repeated; a program has none.

    Raises:
        Skip2BenchError: bad input (nothing is written then), a loss that is not finite, or a
            machine that has no room.
        KeyboardInterrupt: SIGINT or SIGTERM came; the run can be resumed.
    """
    started = time.monotonic()
    plan = None if started_as_rank() else _plan(config)  # errors before ranks are started
    if plan is not None:
        check_shares(plan, config.devices * config.num_nodes)
    with open_ranks(config, arguments) as (ranks, fabric):
        plan = ranks.together(lambda: plan or _plan(config))
        check_shares(plan, ranks.size)
        if fabric is not None:
            plan = replace(plan, device=fabric.device)
        with open_attempt(plan, ranks, fabric, arguments, started) as attempt:
            finished = attempt.place.finished
            summary = _record(attempt) if finished is None else finished
        return summary if ranks.is_first else None


def _plan(config: TrainConfig) -> TrainingPlan:
    return resolve_blocks(plan_training(config))


def _record(attempt: Attempt) -> TrainResult | None:
    """Train, and on the first rank write the run's files; the summary, of the others nothing."""
    plan, place, ranks = attempt.plan, attempt.place, attempt.ranks
    ranks.begin_run(place.folder, place.step)
    if not ranks.is_first:
        _train(attempt)
        return None
    with (
        _cleared_at_end(place.folder),
        record_run(
            place.folder,
            to_plain(plan.config),
            attempt.environment,
            TrainSummary.begin(
                plan.describe().model_copy(update={"log_folder": attempt.log_folder})
            ),
            attempt.started,
            earlier_seconds=place.earlier_seconds,
            go_on=shlex.join(["skip2bench", "train", "--resume", "--out-dir", str(place.folder)]),
        ) as recording,
    ):
        with watch_anonymous_memory() if plan.config.stream_blocks else nullcontext() as read_peak:
            recording.add(_train(attempt))
        if read_peak is not None:
            recording.set(peak_anonymous_memory_bytes=read_peak())
    for line in describe_disturbed(
        find_disturbed(recording.summary.processor, attempt.environment.cpu_count),
        repeat_training(place.folder),
    ):
        warn(line)
    return TrainResult.of(recording.summary, folder=str(place.folder))


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


def _train(attempt: Attempt) -> TrainFigures:
    """Build the model, train it, save the adapter; return the figures of the run."""
    plan, place, ranks = attempt.plan, attempt.place, attempt.ranks
    if plan.config.stream_blocks:
        return_freed_memory()
    elif plan.settings.method.serves_rows:
        hold_freed_memory()  # the others lose by it, a tenth of LoRA's time
    model = load_model(plan, ranks)
    total, trainable = count_parameters(model)
    run, progress = _set_up(attempt, model), place.progress
    torch.manual_seed(plan.config.seed + ranks.rank)  # the masks of dropout differ between ranks
    reset_peak_memory(plan.device)
    succeeded = False
    try:
        fit(run, progress, place.state)
        succeeded = True
    finally:
        run.logs.close(succeeded=succeeded)
    bring_back_best(run, progress)
    if ranks.is_first:
        warn_of_rising_loss(run, progress)
    figures = TrainFigures.of(summarise_run(run, progress), describe_communication(run))
    adapter_bytes = None
    if ranks.is_first:
        adapter_bytes = save_adapter(
            model,
            plan.settings,
            place.folder / "final",
            plan.base_folder,
            plan.precision,
            plan.prompt_style,
        )
    before = run.domain_loss_before
    del run  # its caches and its optimizer: the backbone may have no room beside them
    if plan.domain is not None or plan.exam is not None:
        model = _with_backbone(attempt, model)
    after = _domain_loss(attempt, model)
    return TrainFigures.of(
        figures,
        _score(attempt, model),
        total_parameters=total,
        trainable_parameters=trainable,
        adapter_bytes=adapter_bytes,
        domain_loss_before=before,
        domain_loss_after=after,
        forgetting=None if before is None or after is None else after - before,
    )


def _set_up(attempt: Attempt, model: GPT) -> TrainingRun:
    """The run, its logs opened, nothing of it done yet."""
    plan, place, is_first = attempt.plan, attempt.place, attempt.ranks.is_first
    config, state = plan.config, place.state
    batches = planned_batches(config, plan.data, plan.steps)
    if state is None and is_first:
        shutil.rmtree(attempt.scratch, ignore_errors=True)  # its cache counts in no clock yet
    # ranks share the cores by themselves
    meter = ProcessorMeter(on_look=give_way) if attempt.ranks.is_alone else None
    clock = Clock(plan.device, meter=meter)
    if isinstance(model, SkipGPT) and model.settings.projected is not None:
        provide_projection(attempt, model, clock)
    caches = None
    if plan.settings.method.is_cached:
        assert isinstance(model, CachedGPT)
        caches = plan_caches(attempt, model, batches)
        objective: Objective = (
            CachedObjective(attempt, model, caches)
            if isinstance(model, SkipGPT)
            else build_trunk_objective(attempt, model, caches)
        )
    else:
        objective = build_token_objective(attempt, model)
    before = state.values["domain_loss_before"] if state else _domain_loss(attempt, model)
    optimizer = build_run_optimizer(model, config, plan.device)
    return TrainingRun(
        attempt=attempt,
        model=model,
        objective=objective,
        caches=caches,
        optimizer=attempt.fabric.setup_optimizers(optimizer),
        batches=batches,
        clock=clock,
        logs=RunLogs(place.log_folder, config.logger, step=place.step) if is_first else NoLogs(),
        domain_loss_before=before,
    )


def _with_backbone(attempt: Attempt, model: GPT) -> GPT:
    """The model, or the same with the backbone that it has dropped."""
    if not isinstance(model, CachedGPT) or not model.is_released:
        return model
    trained = trained_tensors(model)
    release_memory(attempt.plan.device)
    model = load_model(attempt.plan, attempt.ranks)
    model.load_state_dict(trained, strict=False)
    return model


def _score(attempt: Attempt, model: GPT) -> ScoreFigures:
    """What the whole model answers to held-out records, where it is asked; its file is written.

    Raises:
        KeyboardInterrupt: somebody asked to stop; the run has a state of its last step then.
    """
    exam = attempt.plan.exam
    if exam is None:
        return ScoreFigures()
    figures, answers = hold_exam(exam, attempt.fabric, model.eval(), attempt.stop.check)
    if answers:
        write_answers(attempt.place.folder, answers)
    return figures


def _domain_loss(attempt: Attempt, model: GPT) -> float | None:
    """Loss on the base model's own domain; None where the run has no text of it."""
    plan, ranks, fabric = attempt.plan, attempt.ranks, attempt.fabric
    if plan.domain is None:
        return None
    model.eval()
    with fabric.autocast():
        if plan.config.stream_blocks:
            assert isinstance(model, SkipGPT)
            return streamed_validation_loss(stream_backbone(attempt, model), plan.domain)
        return validate_tokens(fabric, model, plan.domain, ranks).loss
