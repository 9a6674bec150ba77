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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from skip2bench.compare.folder import BENCH, CompareFolder, describe_cell, find_folder, make_key
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
from skip2bench.compare.registration import describe_plan, register
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
from skip2bench.results.disturbance import (
    find_disturbed_timing,
    is_disturbed,
    list_disturbed_figures,
)
from skip2bench.results.figures import CellResult
from skip2bench.results.reading import is_bench, is_train
from skip2bench.results.run_folder import create_run_folder, record_run
from skip2bench.results.run_records import CompareStart, CompareSummary


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """A comparison in its folder, and how far it has come."""

    plan: ComparisonPlan
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
    cells = list_cells(config, plan.configurations, cache or Path("cache"), is_filled=is_filled)
    seconds = plan.estimate(cells)
    announce(plan, cells, seconds, may_advise=within is None)
    if config.dry_run:
        return DryRun(
            dry_run=True,
            cells=tuple(cell.name for cell in cells),
            estimated_seconds=sum(seconds.values()),
        )
    comparison, tasks = _open(plan, find_folder(plan.config, plan.training.model_name), cache)
    if len(comparison.cells) > len(cells):  # at their best micro-batch too
        seconds = comparison.plan.estimate(comparison.cells)
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
    settled = replace(plan, configurations=settle(config, plan.configurations, sizes))
    is_filled, place = cache is not None, cache or folder.cache
    cells = list_cells(config, settled.configurations, place, is_filled=is_filled)
    comparison = _Comparison(plan=settled, folder=folder, cells=cells, micro_batch_sizes=sizes)
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


def _run(
    comparison: _Comparison,
    tasks: Sequence["_Task"],
    seconds: Mapping[str, float],
    started: float,
) -> ComparisonResult:
    plan, folder, outcomes = comparison.plan, comparison.folder, comparison.outcomes
    if plan.config.register:
        register(folder, describe_plan(plan, {task.name: task.key for task in tasks}))
    write_sizes(folder.path, comparison.micro_batch_sizes)
    for task in tasks:
        outcome = folder.read_outcome(task.name, task.key)
        cell_run = folder.finished_run(task.name)
        if outcome is None or outcome.status != "ok":
            continue
        if not (plan.config.repeat_disturbed and _was_disturbed(outcome, cell_run)):
            comparison.record(task.name, outcome, cell_run)
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
            left = [task for task in tasks if task.name not in outcomes]
            context = _load(plan, is_needed=bool(left))
            for task in left:
                _run_task(comparison, task, context)
                _report_progress(comparison, task, tasks, seconds)
                _write(comparison)
        finally:
            content = _write(comparison)
            recording.set(statuses=content.statuses)
        bad = [task.name for task in tasks if outcomes[task.name].status != "ok"]
        if bad:
            error = f"{len(bad)} of {len(tasks)} runs did not end well: {', '.join(bad)}"
            recording.set(status="failed", error=error)
    shutil.rmtree(folder.cache, ignore_errors=True)
    return ComparisonResult.of(content, folder=str(folder.path), error=recording.summary.error)


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
            flags += [flag, ",".join(value) if isinstance(value, list) else str(value)]
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


def _was_disturbed(outcome: Outcome, cell_run: CellRun | None) -> bool:
    """True where figures of the cell, or of the micro-benchmark, are marked."""
    if cell_run is None:
        return False
    run = cell_run.run
    if is_train(run):
        return bool(list_disturbed_figures(run, outcome.other_cpu_cores))
    return is_bench(run) and bool(find_disturbed_timing(run))


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
    result = comparison.results.get(task.name)
    if is_disturbed(outcome.other_cpu_cores, plan.environment.cpu_count) or (
        result is not None and result.disturbed
    ):
        others = outcome.other_cpu_cores or 0.0
        warn(f"{task.name}: something else kept {others:.1f} cores busy meanwhile")
    note(f"{line}; about {format_duration(left, 'en')} left")


def _write(comparison: _Comparison) -> ComparisonResults:
    """Rewrite the comparison's two files with what there is."""
    plan, folder, outcomes = comparison.plan, comparison.folder, comparison.outcomes
    results = [comparison.results.get(cell.name) or read_result(cell) for cell in comparison.cells]
    content = build_results(
        plan.config, plan.configurations, results, plan.environment, outcomes.get(BENCH)
    )
    write_results(folder.path, content)
    return content
