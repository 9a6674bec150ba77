"""A matrix of runs, each in a process of its own, that can be stopped and continued.

Which cells there are is `matrix`'s business, how a cell's process lives `process`'s, what
follows from the results `results.figures`'; here they meet in a folder:

    config.yaml, environment.json, summary.json     as every run has them
    comparison_results.json, comparison.csv         rewritten after every cell
    bench/                                          the micro-benchmark's run folder
    cells/NAME/, NAME.json, NAME.log                a cell's run folder, how it ended, what it said
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from skip2bench.compare.comparison import Comparison, list_tasks, with_clocks, write_comparison
from skip2bench.compare.engines.crew import Crew, gather
from skip2bench.compare.engines.kinds import list_memory_differences, of_machine
from skip2bench.compare.engines.spread import spread
from skip2bench.compare.folder import BENCH, CompareFolder, find_folder
from skip2bench.compare.harness import run_harness
from skip2bench.compare.matching import (
    describe_parameters,
    expect_equal_time,
    find_first_cell,
    list_undecided,
    match_key,
    match_memory,
    match_time,
    read_matches,
    settle_matches,
    write_matches,
)
from skip2bench.compare.matrix import Cell, find_baseline, list_cells
from skip2bench.compare.micro_batches import find_sizes, settle, write_sizes
from skip2bench.compare.plan import ComparisonPlan, announce, plan_comparison
from skip2bench.compare.process import CellInterruptedError, cell_context
from skip2bench.compare.progress import Seconds, by_kind, report_progress
from skip2bench.compare.registration import describe_plan, register
from skip2bench.compare.seeds import choose_seeds, read_seeds, settle_seeds, write_seeds
from skip2bench.compare.task import Task, run_task
from skip2bench.config.compare import CompareConfig
from skip2bench.config.options import to_plain
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import Waiting, note
from skip2bench.io.units import format_amount
from skip2bench.machine.environment_record import Environment
from skip2bench.machine.processes import ProcessContext, load_modules
from skip2bench.machine.signals import interrupted_by_sigterm
from skip2bench.results.comparison_records import ComparisonResult, DryRun
from skip2bench.results.run_folder import create_run_folder, record_run
from skip2bench.results.run_records import CompareStart, CompareSummary


@dataclass(frozen=True, kw_only=True)
class Within:
    """What a comparison is a part of, whose cache its runs read."""

    cache: Path
    """A folder that holds the Skip-Caches of all cells; it is left as it is."""
    start_seconds: float
    """What a process takes to start, load and tokenize; this one has worked before."""


def run_comparison(
    config: CompareConfig, arguments: Sequence[str] = (), within: Within | None = None
) -> ComparisonResult | DryRun:
    """Run every cell that is not done, write the results, and return them.

    Args:
        config: The matrix.
        arguments: The command line, recorded so that it can be repeated; a program has none.
        within: What it is a part of; None for a comparison by itself.

    Returns:
        What `comparison_results.json` holds, and `folder`; after a dry run, `cells`, a list of
        names, and `estimated_seconds`.

    Raises:
        Skip2BenchError: bad input; nothing is written then.
    """
    started = time.monotonic()
    if config.data_sets:
        raise Skip2BenchError(
            "a comparison is of one data set; give the configuration with data_sets to run_across"
        )
    plan = plan_comparison(config, arguments)
    cache, is_filled = (within.cache, True) if within else (None, False)
    if within:
        plan = replace(plan, start_seconds=within.start_seconds)
    forecast = partial(_forecast, cache=cache or Path("cache"), is_filled=is_filled)
    if config.seeds == "auto":
        plan = _give_seeds(plan, *forecast(plan, plan))
    unmatched = plan
    if config.dry_run and config.matched == "memory":
        plan = settle_matches(plan, match_memory(plan))
    cells, seconds = forecast(plan, unmatched)
    announce(plan, cells, seconds, may_advise=within is None)
    if config.dry_run:
        return DryRun(
            dry_run=True,
            cells=tuple(cell.name for cell in cells),
            estimated_seconds=sum(seconds.values()),
        )
    path = find_folder(plan.config, plan.training.model_name)
    if not plan.config.is_spread:
        comparison = _open(plan, path, cache)
        expected = _announce_again(comparison, cells, seconds, may_advise=within is None)
        with comparison.folder.locked(), interrupted_by_sigterm():
            return _run(comparison, expected, started)
    with CompareFolder(path).locked(), gather(plan, path) as crew:
        assert crew.machine is not None
        _check_measured_here(plan, crew.machine)
        settled = replace(plan.config, out_dir=path)
        environment = of_machine(plan.environment, crew.machine)
        comparison = _open(replace(plan, config=settled, environment=environment), path, cache)
        expected = _announce_again(comparison, cells, seconds, may_advise=within is None)
        return _run(comparison, expected, started, crew)


def _check_measured_here(plan: ComparisonPlan, machine: Environment) -> None:
    """What is found by trying it on this machine holds for workers on such a machine only."""
    sizes = {plan.config.cell_config(one.values).micro_batch_size for one in plan.configurations}
    found_here = ["micro_batch_size auto"] if "auto" in sizes else []
    found_here += ["match memory"] if plan.config.matched == "memory" else []
    if found_here and (different := list_memory_differences(plan.environment, machine)):
        raise Skip2BenchError(
            f"{' and '.join(found_here)} would be measured on this machine, and the workers' is "
            f"another ({'; '.join(different)}); give a size or ranks, or call it on one of theirs"
        )


def _announce_again(
    comparison: Comparison, cells: Sequence[Cell], seconds: Mapping[str, float], *, may_advise: bool
) -> Seconds:
    """The estimate, made and told anew where the folder knows more than the plan did."""
    expected = comparison.list_cells(is_forecast=True)
    if {it.name for it in expected} != {it.name for it in cells} or comparison.plan.matches:
        # at their best micro-batch too, with the seeds that the folder knows, and as it was matched
        seconds = _estimate(comparison.plan, expected)
        announce(comparison.plan, expected, seconds, may_advise=may_advise)
    return by_kind(expected, seconds)


def _forecast(
    plan: ComparisonPlan, unmatched: ComparisonPlan, cache: Path, *, is_filled: bool
) -> tuple[list[Cell], dict[str, float]]:
    """All cells that are expected, and their seconds."""
    own = list_cells(plan.config, plan.configurations, cache, is_filled=is_filled, is_forecast=True)
    cells = with_clocks(unmatched, own)
    return cells, _estimate(plan, cells)


def _estimate(plan: ComparisonPlan, cells: Sequence[Cell]) -> dict[str, float]:
    """Seconds of each cell; of runs that are to take the baseline's time, not less than that."""
    seconds = plan.estimate(cells)
    is_open = plan.config.matched == "time" and not plan.matches
    return expect_equal_time(plan, cells, seconds) if is_open else seconds


def _give_seeds(
    plan: ComparisonPlan, cells: Sequence[Cell], by_name: Mapping[str, float]
) -> ComparisonPlan:
    """The plan with more seeds for what is short."""
    seconds = by_kind(cells, by_name)
    baseline = find_baseline(plan.config, plan.configurations).name
    of_run = {one.name: seconds[one.name, "run"] for one in plan.configurations}
    seeds = choose_seeds(plan.configurations, baseline, of_run)
    return replace(plan, configurations=settle_seeds(plan.configurations, seeds))


def _open(plan: ComparisonPlan, path: Path, cache: Path | None) -> Comparison:
    """The comparison in its folder; in a new one where that holds runs of something else.

    Raises:
        Skip2BenchError: it does, and was named as --out-dir.
    """
    folder, config = CompareFolder(path), plan.config
    if config.seeds == "auto":
        known = settle_seeds(plan.configurations, read_seeds(path))
        plan = replace(plan, configurations=known)
    sizes = find_sizes(config, plan.configurations, path)
    unmatched = replace(plan, configurations=settle(config, plan.configurations, sizes))
    comparison = Comparison(
        plan=_match_before(unmatched, path),
        unmatched=unmatched,
        folder=folder,
        cache=cache or folder.cache,
        is_cache_filled=cache is not None,
        micro_batch_sizes=sizes,
    )
    tasks = list_tasks(comparison, comparison.list_cells())
    others = [task.name for task in tasks if folder.holds_another(task.name, task.key)]
    if not others or config.force:
        return comparison
    if config.out_dir is not None:
        raise Skip2BenchError(
            f"{str(path)!r} holds {format_amount(len(others), 'run')} of another configuration, "
            f"machine or version ({', '.join(others[:3])}); choose another --out-dir, or add "
            "--force to replace them"
        )
    another = create_run_folder("compare", plan.training.model_name, config.flow)
    return _open(plan, another, cache)


def _match_before(plan: ComparisonPlan, folder: Path) -> ComparisonPlan:
    """The comparison made equal, as far as that is known before a run."""
    matched = plan.config.matched
    if matched is None:
        return plan
    if matched == "params":
        return replace(plan, matches=describe_parameters(plan))
    matches = read_matches(folder, match_key(plan))
    if matches is None and matched == "memory":
        matches = match_memory(plan)
    return settle_matches(plan, matches or {})


def _run(
    comparison: Comparison, seconds: Seconds, started: float, crew: Crew | None = None
) -> ComparisonResult:
    plan, folder, outcomes = comparison.plan, comparison.folder, comparison.outcomes
    write_sizes(folder.path, comparison.micro_batch_sizes)
    if plan.config.matched == "memory":
        write_matches(folder.path, "memory", match_key(comparison.unmatched), plan.matches)
    if plan.config.seeds == "auto":
        write_seeds(folder.path, plan.configurations)
    comparison.list_further()
    if plan.config.register:
        keys = {name: task.key for name, task in comparison.tasks.items()}
        register(folder, describe_plan(plan, keys, is_open=comparison.is_open))
    if outcomes:
        note(f"{len(outcomes)} of {len(comparison.tasks)} are done already in {folder.path}")
    device, precision = _find_device(plan, crew)
    known = CompareStart(
        kind="compare",
        label=f"compare --flow {plan.config.flow}",
        model=plan.training.model_name,
        data=plan.training.data.name,
        device=device,
        precision=precision,
        runs=len(comparison.tasks),
        error=None,
    )
    with record_run(
        folder.path,
        to_plain(plan.config),
        plan.environment,
        CompareSummary.begin(known),
        started,
    ) as recording:
        try:
            run_left = _run_left if crew is None else partial(spread, crew=crew)
            run_left(comparison, seconds)
            if comparison.awaits_pace:
                comparison = _set_pace(comparison)
                expected = comparison.list_cells(is_forecast=True)
                seconds = by_kind(expected, _estimate(comparison.plan, expected))
                run_left(comparison, seconds)
        finally:
            content = write_comparison(comparison)
            recording.set(statuses=content.statuses, runs=len(comparison.tasks))
        tasks = comparison.tasks
        bad = [
            name for name in tasks if outcomes[name].status != "ok" and comparison.is_wanted(name)
        ]
        if bad:
            error = f"{len(bad)} of {len(tasks)} runs did not end well: {', '.join(bad)}"
            recording.set(status="failed", error=error)
    shutil.rmtree(folder.cache, ignore_errors=True)
    if plan.config.lm_eval:
        run_harness(plan.config, folder.path, content, plan.training.device.type)
    return ComparisonResult.of(content, folder=str(folder.path), error=recording.summary.error)


def _find_device(plan: ComparisonPlan, crew: Crew | None) -> tuple[str, str | None]:
    """Where the runs are made, and in which precision; None where that is the workers' choice."""
    training = plan.training
    if crew is None or crew.machine is None or crew.machine.gpu is None:
        return str(training.device), training.precision
    is_theirs = training.config.precision == "auto" and training.device.type != "cuda"
    return "cuda", None if is_theirs else training.precision


def _run_left(comparison: Comparison, seconds: Seconds) -> None:
    """Run what has not ended, and what follows from its results, one after the other."""
    context = _load(comparison.plan, is_needed=bool(comparison.left()))
    while left := comparison.left():
        _run_here(comparison, left[0], context)
        comparison.list_further()
        report_progress(comparison, left[0], seconds)
        write_comparison(comparison)


def _set_pace(comparison: Comparison) -> Comparison:
    """The comparison in which all have what takes the baseline's time.

    Raises:
        Skip2BenchError: the baseline's own run did not end well.
    """
    plan, folder = comparison.unmatched, comparison.folder
    first = find_first_cell(plan).name
    if comparison.outcomes[first].status != "ok":
        raise Skip2BenchError(
            f"{first} did not end well, so there is no time for the others to take; see "
            f"{folder.log_file(first)}, mend it and call again"
        )
    matches = match_time(plan, comparison.results)
    # the micro-benchmark has run already; what else has, is found again
    tasks = {name: task for name, task in comparison.tasks.items() if name == BENCH}
    settled = replace(comparison, plan=settle_matches(plan, matches), cells={}, tasks=tasks)
    settled.list_further()
    anew = list_undecided(folder.path)
    others = [
        task.name
        for task in settled.left()
        if folder.holds_another(task.name, task.key)
        and settled.cells[task.name].configuration not in anew
    ]
    if others and not plan.config.force:
        raise Skip2BenchError(
            f"{str(folder.path)!r} holds {format_amount(len(others), 'run')} that equal time makes "
            f"others now ({', '.join(others[:3])}); choose another --out-dir, or add --force to "
            "replace them"
        )
    write_matches(folder.path, "time", match_key(plan), matches)
    return settled


def _load(plan: ComparisonPlan, *, is_needed: bool) -> ProcessContext:
    """In what the cells start, their libraries and data loaded: that counts for none of them."""
    context = cell_context(plan.training.device.type, plan.training.config.data)
    if is_needed:
        with Waiting("loading"):
            load_modules(context)
    return context


def _run_here(comparison: Comparison, task: Task, context: ProcessContext) -> None:
    try:
        with Waiting(task.name):
            outcome, cell_run = run_task(comparison.folder, task, context)
    except CellInterruptedError as interruption:
        comparison.record(task.name, interruption.outcome, interruption.cell_run)
        raise KeyboardInterrupt from interruption
    comparison.record(task.name, outcome, cell_run)
