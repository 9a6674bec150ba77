"""A matrix of runs, each in a process of its own, that can be stopped and continued.

Which cells there are is `matrix`'s business, how a cell's process lives `process`'s, what
follows from the results `results.figures`'; here they meet in a folder:

    config.yaml, environment.json, summary.json     as every run has them
    micro_batch_sizes.json, matching.json           what was found before the runs, where it was
    comparison_results.json, comparison.csv         rewritten after every cell
    bench/                                          the micro-benchmark's run folder
    cells/NAME/, NAME.json, NAME.log                a cell's run folder, how it ended, what it said
"""

import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from skip2bench.compare.folder import BENCH, CompareFolder, describe_cell, find_folder, make_key
from skip2bench.compare.matching import (
    describe_parameters,
    expect_equal_time,
    find_first_cell,
    list_pace_cells,
    match_key,
    match_memory,
    match_time,
    read_matches,
    settle_matches,
    write_matches,
)
from skip2bench.compare.matrix import Cell, list_cells
from skip2bench.compare.micro_batches import find_sizes, settle, write_sizes
from skip2bench.compare.plan import ComparisonPlan, announce, plan_comparison
from skip2bench.compare.process import (
    CellInterruptedError,
    CellRun,
    Outcome,
    cell_context,
    run_cell,
)
from skip2bench.compare.results import build_results, read_result, write_results
from skip2bench.config.commands import BenchConfig
from skip2bench.config.commands import to_plain as config_to_plain
from skip2bench.config.compare import CompareConfig
from skip2bench.config.matrix import to_plain
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import Waiting, note, warn
from skip2bench.io.units import format_amount, format_duration, parse_bytes
from skip2bench.machine.processes import ProcessContext, load_modules
from skip2bench.machine.signals import interrupted_by_sigterm
from skip2bench.results.comparison_records import ComparisonResult, ComparisonResults, DryRun
from skip2bench.results.figures import OTHERS_CORES_RATIO, CellResult
from skip2bench.results.run_folder import create_run_folder, record_run
from skip2bench.results.run_records import CompareStart, CompareSummary


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """A comparison in its folder, and how far it has come."""

    plan: ComparisonPlan
    unmatched: ComparisonPlan
    """The same before its configurations were made equal in anything."""
    folder: CompareFolder
    cells: Sequence[Cell]
    micro_batch_sizes: dict[str, int] = field(default_factory=dict)
    """By configuration, where the largest were searched for."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """Of the cells that have ended, by name; the micro-benchmark is `BENCH`."""
    results: dict[str, CellResult] = field(default_factory=dict)
    """Of every cell, by name, read when it ended: nothing is read again to write the figures."""

    def record(self, name: str, outcome: Outcome, cell_run: CellRun | None) -> None:
        """Keep what a cell came to."""
        self.outcomes[name] = outcome
        cell = next((cell for cell in self.cells if cell.name == name), None)
        if cell is not None:  # not the micro-benchmark
            self.results[name] = read_result(cell, outcome, cell_run)

    @property
    def awaits_pace(self) -> bool:
        """True before it is known how many epochs take the baseline's time."""
        return self.plan.config.matched == "time" and not self.plan.matches


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
    plan = plan_comparison(config, arguments)
    cache, is_filled = (within.cache, True) if within else (None, False)
    if within:
        plan = replace(plan, start_seconds=within.start_seconds)
    unmatched = plan
    if config.dry_run and config.matched == "memory":
        plan = settle_matches(plan, match_memory(plan))
    cells = _list_cells(plan, unmatched, cache or Path("cache"), is_filled=is_filled)
    seconds = _estimate(plan, cells)
    announce(plan, cells, seconds, may_advise=within is None)
    if config.dry_run:
        return DryRun(
            dry_run=True,
            cells=tuple(cell.name for cell in cells),
            estimated_seconds=sum(seconds.values()),
        )
    comparison, tasks = _open(plan, find_folder(plan.config, plan.training.model_name), cache)
    if len(comparison.cells) > len(cells) or comparison.plan.matches:
        # at their best micro-batch too, or with other ranks or epochs
        seconds = _estimate(comparison.plan, comparison.cells)
        announce(comparison.plan, comparison.cells, seconds, may_advise=within is None)
    with comparison.folder.locked(), interrupted_by_sigterm():
        return _run(comparison, tasks, seconds, started)


def _open(
    plan: ComparisonPlan, path: Path, cache: Path | None
) -> tuple[_Comparison, list["_Task"]]:
    """The comparison in its folder; in a new one where that holds runs of something else.

    Raises:
        Skip2BenchError: it does, and was named as --out-dir.
    """
    folder, config = CompareFolder(path), plan.config
    sizes = find_sizes(config, plan.configurations, path)
    unmatched = replace(plan, configurations=settle(config, plan.configurations, sizes))
    settled = _match_before(unmatched, path)
    place, is_filled = cache or folder.cache, cache is not None
    cells = _list_cells(settled, unmatched, place, is_filled=is_filled)
    comparison = _Comparison(
        plan=settled, unmatched=unmatched, folder=folder, cells=cells, micro_batch_sizes=sizes
    )
    tasks = _list_tasks(comparison)
    others = [task.name for task in tasks if folder.holds_another(task.name, task.key)]
    if not others or config.force:
        return comparison, tasks
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


def _list_cells(
    plan: ComparisonPlan, unmatched: ComparisonPlan, cache: Path, *, is_filled: bool
) -> list[Cell]:
    """All cells; in front those that tell how long an epoch takes, where that is asked for."""
    config = plan.config
    paced = list_pace_cells(config, unmatched.configurations) if config.matched == "time" else []
    return [*paced, *list_cells(config, plan.configurations, cache, is_filled=is_filled)]


def _estimate(plan: ComparisonPlan, cells: Sequence[Cell]) -> dict[str, float]:
    """Seconds of each cell; of runs that are to take the baseline's time, not less than that."""
    seconds = plan.estimate(cells)
    is_open = plan.config.matched == "time" and not plan.matches
    return expect_equal_time(plan, cells, seconds) if is_open else seconds


def _run(
    comparison: _Comparison,
    tasks: Sequence["_Task"],
    seconds: Mapping[str, float],
    started: float,
) -> ComparisonResult:
    plan, folder, outcomes = comparison.plan, comparison.folder, comparison.outcomes
    write_sizes(folder.path, comparison.micro_batch_sizes)
    if plan.config.matched == "memory":
        key = match_key(comparison.unmatched)
        write_matches(folder.path, plan.config.matched, key, plan.matches)
    _read_outcomes(comparison, tasks)
    if outcomes:
        note(f"{len(outcomes)} of {len(tasks)} are done already in {folder.path}")
    known = CompareStart(
        kind="compare",
        label=f"compare --flow {plan.config.flow}",
        model=plan.training.model_name,
        data=plan.training.data.name,
        device=str(plan.training.device),
        precision=plan.training.precision,
        runs=len(tasks),
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
            context = _load(plan, is_needed=any(task.name not in outcomes for task in tasks))
            if comparison.awaits_pace:
                comparison = _set_pace(comparison, tasks, seconds, context)
                tasks = _list_tasks(comparison)
                _read_outcomes(comparison, tasks)
                seconds = _estimate(comparison.plan, comparison.cells)
            _run_tasks(comparison, [task.name for task in tasks], tasks, seconds, context)
        finally:
            content = _write(comparison)
            recording.set(statuses=content.statuses)
        bad = [task.name for task in tasks if outcomes[task.name].status != "ok"]
        if bad:
            error = f"{len(bad)} of {len(tasks)} runs did not end well: {', '.join(bad)}"
            recording.set(status="failed", error=error)
    shutil.rmtree(folder.cache, ignore_errors=True)
    return ComparisonResult.of(content, folder=str(folder.path), error=recording.summary.error)


def _read_outcomes(comparison: _Comparison, tasks: Sequence["_Task"]) -> None:
    """Record what has ended well already, under the same key."""
    folder = comparison.folder
    for task in tasks:
        outcome = folder.read_outcome(task.name, task.key)
        if outcome is not None and outcome.status == "ok":
            comparison.record(task.name, outcome, folder.finished_run(task.name))


def _run_tasks(
    comparison: _Comparison,
    names: Collection[str],
    tasks: Sequence["_Task"],
    seconds: Mapping[str, float],
    context: ProcessContext,
) -> None:
    """Run those of the tasks that have these names and have not ended."""
    for task in tasks:
        if task.name in names and task.name not in comparison.outcomes:
            _run_task(comparison, task, context)
            _report_progress(comparison, task, tasks, seconds)
            _write(comparison)


def _set_pace(
    comparison: _Comparison,
    tasks: Sequence["_Task"],
    seconds: Mapping[str, float],
    context: ProcessContext,
) -> _Comparison:
    """Run what tells how long an epoch takes, and give all the epochs of the baseline's time.

    Raises:
        Skip2BenchError: the baseline's own run did not end well.
    """
    plan, folder = comparison.unmatched, comparison.folder
    first = find_first_cell(plan).name
    short = [cell.name for cell in comparison.cells if cell.role == "pace"]
    _run_tasks(comparison, {first, *short}, tasks, seconds, context)
    if comparison.outcomes[first].status != "ok":
        raise Skip2BenchError(
            f"{first} did not end well, so there is no time for the others to take; see "
            f"{folder.log_file(first)}, mend it and call again"
        )
    matches = match_time(plan, comparison.results)
    write_matches(folder.path, "time", match_key(plan), matches)
    settled = settle_matches(plan, matches)
    cells = _list_cells(settled, plan, folder.cache, is_filled=False)
    return replace(comparison, plan=settled, cells=cells)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A cell, or the micro-benchmark, as a process to start."""

    name: str
    key: str
    spec: dict[str, Any]


def _list_tasks(comparison: _Comparison) -> list[_Task]:
    plan, folder = comparison.plan, comparison.folder
    tasks = []
    limit = plan.config.max_memory
    if plan.bench:
        config = config_to_plain(plan.bench)
        key = make_key({"bench": config, "max_memory": limit}, plan.environment)
        max_bytes = None if limit is None else parse_bytes("max_memory", limit)
        spec = _describe_process("bench", config, folder.run_folder(BENCH), max_bytes)
        tasks.append(_Task(name=BENCH, key=key, spec=spec))
    for cell in comparison.cells:
        config = config_to_plain(cell.config)
        key = make_key(describe_cell(cell, plan.training.data.sha256), plan.environment)
        spec = _describe_process(
            cell.peer or "train", config, folder.run_folder(cell.name), cell.max_memory_bytes
        )
        tasks.append(_Task(name=cell.name, key=key, spec=spec))
    return tasks


def _describe_process(
    kind: str, config: dict[str, Any], run_folder: Path, max_memory_bytes: int | None
) -> dict[str, Any]:
    """What `cell` is told; `arguments` is the command that repeats the run."""
    if kind == "bench":
        arguments = ["bench", *_bench_flags(config)]
    else:
        arguments = ["train", "--config", str(run_folder / "config.yaml")]
    return {
        "kind": kind,
        "config": config,
        "out_dir": str(run_folder),
        "arguments": arguments,
        "max_memory_bytes": max_memory_bytes,
    }


def _bench_flags(config: dict[str, Any]) -> list[str]:
    defaults = config_to_plain(BenchConfig())
    flags = []
    for name, value in config.items():
        if value == defaults[name]:
            continue
        flag = f"--{name.replace('_', '-')}"
        if name == "blocks":
            flags += [part for blocks in value for part in (flag, blocks)]
        else:
            flags += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return flags


def _load(plan: ComparisonPlan, *, is_needed: bool) -> ProcessContext:
    """In what the cells start, their libraries and data loaded: that counts for none of them."""
    context = cell_context(plan.training.device.type, plan.training.config.data)
    if is_needed:
        with Waiting("loading"):
            load_modules(context)
    return context


def _run_task(comparison: _Comparison, task: _Task, context: ProcessContext) -> None:
    folder = comparison.folder
    spec = task.spec | {"key": task.key}
    with folder.cell_released(task.name):
        if folder.can_continue(task.name, task.key):
            note(f"{task.name}: goes on where it was stopped")
            spec["config"] = spec["config"] | {"resume": True}
        else:
            folder.clear(task.name)
    try:
        with Waiting(task.name):
            outcome, cell_run = run_cell(
                spec,
                folder.spec_file(task.name),
                folder.log_file(task.name),
                context,
            )
    except CellInterruptedError as interruption:
        comparison.record(task.name, interruption.outcome, interruption.cell_run)
        folder.write_outcome(task.name, task.key, interruption.outcome)
        raise KeyboardInterrupt from interruption
    folder.write_outcome(task.name, task.key, outcome)
    comparison.record(task.name, outcome, cell_run)


def _report_progress(
    comparison: _Comparison,
    task: _Task,
    tasks: Sequence[_Task],
    seconds: Mapping[str, float],
) -> None:
    """One line on the cell that has ended, and on the time that is left."""
    plan, folder, outcomes = comparison.plan, comparison.folder, comparison.outcomes
    outcome = outcomes[task.name]
    done = [name for name in outcomes if outcomes[name].status == "ok"]
    # the estimate, corrected by what the finished cells really took
    taken = sum(outcomes[name].wall_seconds for name in done)
    factor = taken / sum(seconds[name] for name in done) if done else 1.0
    left = factor * sum(seconds[t.name] for t in tasks if t.name not in outcomes)
    line = f"{len(outcomes)}/{len(tasks)} {task.name}: {outcome.status}"
    line += f", {format_duration(outcome.wall_seconds, 'en')}"
    if outcome.status != "ok":
        warn(f"{line}: {outcome.error}; see {folder.log_file(task.name)}")
        return
    others = outcome.other_cpu_cores or 0.0
    if others > OTHERS_CORES_RATIO * (plan.environment.cpu_count or 1):
        warn(f"{task.name}: something else kept {others:.1f} cores busy meanwhile")
    note(f"{line}; about {format_duration(left, 'en')} left")


def _write(comparison: _Comparison) -> ComparisonResults:
    """Rewrite the comparison's two files with what there is."""
    plan, folder, outcomes = comparison.plan, comparison.folder, comparison.outcomes
    results = [comparison.results.get(cell.name) or read_result(cell) for cell in comparison.cells]
    content = build_results(
        plan.config,
        plan.configurations,
        results,
        plan.environment,
        outcomes.get(BENCH),
        plan.matches,
    )
    write_results(folder.path, content, plan.configurations, results)
    return content
