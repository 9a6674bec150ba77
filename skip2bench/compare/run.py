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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from skip2bench.compare.folder import BENCH, CompareFolder, describe_cell, find_folder, make_key
from skip2bench.compare.harness import run_harness
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
from skip2bench.compare.matrix import Cell, find_baseline, list_cells
from skip2bench.compare.micro_batches import find_sizes, settle, write_sizes
from skip2bench.compare.plan import ComparisonPlan, announce, plan_comparison
from skip2bench.compare.process import (
    CellInterruptedError,
    CellRun,
    Outcome,
    cell_context,
    read_cell_run,
    run_cell,
)
from skip2bench.compare.registration import describe_plan, register
from skip2bench.compare.results import build_results, read_result, write_results
from skip2bench.compare.seeds import choose_seeds, read_seeds, settle_seeds, write_seeds
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
from skip2bench.results.figures import CellResult, find_best_rate
from skip2bench.results.reading import is_bench, is_train
from skip2bench.results.run_folder import create_run_folder, record_run
from skip2bench.results.run_records import CompareStart, CompareSummary


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """A comparison in its folder, and how far it has come."""

    plan: ComparisonPlan
    unmatched: ComparisonPlan
    """The same before its configurations were made equal in anything."""
    folder: CompareFolder
    cache: Path
    is_cache_filled: bool
    cells: dict[str, Cell] = field(default_factory=dict)
    """Those that are known to run, by name, in their order; see `list_further`."""
    tasks: dict[str, "_Task"] = field(default_factory=dict)
    """The cells as processes, the micro-benchmark before them."""
    micro_batch_sizes: dict[str, int] = field(default_factory=dict)
    """By configuration, where the largest were searched for."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """Of the cells that have ended, by name; the micro-benchmark is `BENCH`."""
    results: dict[str, CellResult] = field(default_factory=dict)
    """Of every cell, by name, read when it ended: nothing is read again to write the figures."""

    @property
    def has_search(self) -> bool:
        """True where the cells follow from the results."""
        return any(one.searches_rate for one in self.plan.configurations)

    def list_cells(self, *, is_forecast: bool = False) -> list[Cell]:
        """The cells that follow from the results so far; see `list_cells`."""
        if self.awaits_pace and not is_forecast:
            return [*_list_paces(self.unmatched), find_first_cell(self.unmatched)]
        if self.cells and not self.has_search and not self.awaits_pace:
            return [*self.cells.values()]
        own = list_cells(
            self.plan.config,
            self.plan.configurations,
            self.cache,
            is_filled=self.is_cache_filled,
            found=list(self.results.values()),
            is_forecast=is_forecast,
        )
        return [*_list_paces(self.unmatched), *own]

    @property
    def is_open(self) -> bool:
        """True where some cells follow from what others come to."""
        return self.has_search or self.plan.config.matched == "time"

    @property
    def awaits_pace(self) -> bool:
        """True before it is known how many epochs take the baseline's time."""
        return self.plan.config.matched == "time" and not self.plan.matches

    def list_further(self) -> None:
        """Add the cells that follow from the results, and what those have come to before."""
        while True:
            listed = self.list_cells()
            further = [cell for cell in listed if cell.name not in self.cells]
            if not further:
                return
            self.cells.update({cell.name: cell for cell in further})
            in_order = {cell.name: self.cells[cell.name] for cell in listed}
            self.cells.clear()
            self.cells.update(in_order)
            for task in _list_tasks(self, further):
                self.tasks[task.name] = task
                self._take_done(task)

    def _take_done(self, task: "_Task") -> None:
        """Take what a task came to in an earlier call, where it need not run again."""
        outcome = self.folder.read_outcome(task.name, task.key)
        if outcome is None:
            return
        if outcome.status == "ok":
            cell_run = self.folder.finished_run(task.name)
            is_wanted = self.plan.config.repeat_disturbed and self._is_in_figures(task.name)
            if not (is_wanted and _was_disturbed(outcome, cell_run)):
                self.record(task.name, outcome, cell_run)
        elif task.name in self.cells and self.cells[task.name].decides_rate:
            run = read_cell_run(self.folder.run_folder(task.name))
            result = read_result(self.cells[task.name], outcome, run)
            if result.has_diverged:  # which is what the search wanted to know
                self.record(task.name, outcome, run)

    def _is_in_figures(self, name: str) -> bool:
        """False for a cell that has only helped to choose a rate; the micro-benchmark is."""
        return name not in self.cells or self.cells[name].counts

    def left(self) -> list["_Task"]:
        """Tasks that have not ended, in their order."""
        names = [BENCH, *self.cells]
        return [self.tasks[it] for it in names if it in self.tasks and it not in self.outcomes]

    def record(self, name: str, outcome: Outcome, cell_run: CellRun | None) -> None:
        """Keep what a cell came to."""
        self.outcomes[name] = outcome
        if name in self.cells:  # not the micro-benchmark
            self.results[name] = read_result(self.cells[name], outcome, cell_run)

    def is_wanted(self, name: str) -> bool:
        """False for a run that diverged in a search which has found a rate: nothing is missing."""
        result = self.results.get(name)
        if result is None or not (result.decides_rate and result.has_diverged):
            return True
        own = [it for it in self.results.values() if it.configuration == result.configuration]
        return find_best_rate(own)[0] is None


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
    comparison = _open(plan, find_folder(plan.config, plan.training.model_name), cache)
    expected = comparison.list_cells(is_forecast=True)
    if {it.name for it in expected} != {it.name for it in cells} or comparison.plan.matches:
        # at their best micro-batch too, with the seeds that the folder knows, other ranks or epochs
        seconds = _estimate(comparison.plan, expected)
        announce(comparison.plan, expected, seconds, may_advise=within is None)
    with comparison.folder.locked(), interrupted_by_sigterm():
        return _run(comparison, _by_kind(expected, seconds), started)


def _list_paces(unmatched: ComparisonPlan) -> list[Cell]:
    """The short runs that tell how long an epoch takes, where that is asked for."""
    config = unmatched.config
    return list_pace_cells(config, unmatched.configurations) if config.matched == "time" else []


def _forecast(
    plan: ComparisonPlan, unmatched: ComparisonPlan, cache: Path, *, is_filled: bool
) -> tuple[list[Cell], dict[str, float]]:
    """All cells that are expected, and their seconds."""
    own = list_cells(plan.config, plan.configurations, cache, is_filled=is_filled, is_forecast=True)
    cells = [*_list_paces(unmatched), *own]
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
    seconds = _by_kind(cells, by_name)
    baseline = find_baseline(plan.config, plan.configurations).name
    of_run = {one.name: seconds[one.name, "run"] for one in plan.configurations}
    seeds = choose_seeds(plan.configurations, baseline, of_run)
    return replace(plan, configurations=settle_seeds(plan.configurations, seeds))


def _open(plan: ComparisonPlan, path: Path, cache: Path | None) -> _Comparison:
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
    comparison = _Comparison(
        plan=_match_before(unmatched, path),
        unmatched=unmatched,
        folder=folder,
        cache=cache or folder.cache,
        is_cache_filled=cache is not None,
        micro_batch_sizes=sizes,
    )
    tasks = _list_tasks(comparison, comparison.list_cells())
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


def _run(comparison: _Comparison, seconds: "Seconds", started: float) -> ComparisonResult:
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
    known = CompareStart(
        kind="compare",
        label=f"compare --flow {plan.config.flow}",
        model=plan.training.model_name,
        data=plan.training.data.name,
        device=str(plan.training.device),
        precision=plan.training.precision,
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
            context = _load(plan, is_needed=bool(comparison.left()))
            _run_left(comparison, seconds, context)
            if comparison.awaits_pace:
                comparison = _set_pace(comparison)
                expected = comparison.list_cells(is_forecast=True)
                seconds = _by_kind(expected, _estimate(comparison.plan, expected))
                _run_left(comparison, seconds, context)
        finally:
            content = _write(comparison)
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


def _run_left(comparison: _Comparison, seconds: "Seconds", context: ProcessContext) -> None:
    """Run what has not ended, and what follows from its results."""
    while left := comparison.left():
        _run_task(comparison, left[0], context)
        comparison.list_further()
        _report_progress(comparison, left[0], seconds)
        _write(comparison)


def _set_pace(comparison: _Comparison) -> _Comparison:
    """The comparison in which all have the epochs of the baseline's time.

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
    write_matches(folder.path, "time", match_key(plan), matches)
    # the micro-benchmark has run already; what else has, is found again
    tasks = {name: task for name, task in comparison.tasks.items() if name == BENCH}
    settled = replace(comparison, plan=settle_matches(plan, matches), cells={}, tasks=tasks)
    settled.list_further()
    return settled


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A cell, or the micro-benchmark, as a process to start."""

    name: str
    key: str
    spec: dict[str, Any]


Seconds = Mapping[tuple[str, str], float]
"""Estimated, by configuration and role: the learning rate and the seed make no difference."""


def _by_kind(cells: Sequence[Cell], seconds: Mapping[str, float]) -> Seconds:
    kinds = {(cell.configuration, cell.role): seconds[cell.name] for cell in cells}
    return kinds | ({(BENCH, BENCH): seconds[BENCH]} if BENCH in seconds else {})


def _by_name(cells: Iterable[Cell], seconds: Seconds) -> dict[str, float]:
    """The estimate of each cell, and of the micro-benchmark where there is one."""
    found = {cell.name: seconds[cell.configuration, cell.role] for cell in cells}
    bench = seconds.get((BENCH, BENCH))
    return found if bench is None else found | {BENCH: bench}


def _list_tasks(comparison: _Comparison, cells: Sequence[Cell]) -> list[_Task]:
    """Cells as processes, and the micro-benchmark before the first ones."""
    plan, folder = comparison.plan, comparison.folder
    tasks = []
    limit = plan.config.max_memory
    if plan.bench and BENCH not in comparison.tasks:
        config = config_to_plain(plan.bench)
        key = make_key({"bench": config, "max_memory": limit}, plan.environment)
        max_bytes = None if limit is None else parse_bytes("max_memory", limit)
        spec = _describe_process("bench", config, folder.run_folder(BENCH), max_bytes)
        tasks.append(_Task(name=BENCH, key=key, spec=spec))
    for cell in cells:
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


def _was_disturbed(outcome: Outcome, cell_run: CellRun | None) -> bool:
    """True where figures of the cell, or of the micro-benchmark, are marked."""
    if cell_run is None:
        return False
    run = cell_run.run
    if is_train(run):
        return bool(list_disturbed_figures(run, outcome.other_cpu_cores))
    return is_bench(run) and bool(find_disturbed_timing(run))


def _report_progress(comparison: _Comparison, task: _Task, seconds: Seconds) -> None:
    """One line on the cell that has ended, and on the time that is left."""
    plan, folder, outcomes = comparison.plan, comparison.folder, comparison.outcomes
    cells = [*comparison.cells.values(), *comparison.list_cells(is_forecast=True)]
    outcome, expected = outcomes[task.name], _by_name(cells, seconds)
    done = [name for name in outcomes if outcomes[name].status == "ok"]
    # the estimate, corrected by what the finished cells really took
    taken = sum(outcomes[name].wall_seconds for name in done)
    factor = taken / sum(expected[name] for name in done) if done else 1.0
    left = factor * sum(value for name, value in expected.items() if name not in outcomes)
    line = f"{len(outcomes)}/{len(expected)} {task.name}: {outcome.status}"
    line += f", {format_duration(outcome.wall_seconds, 'en')}"
    if not comparison.is_wanted(task.name):
        note(f"{line}: it diverged, so a lower learning rate is taken")
        return
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
    cells = comparison.cells.values()
    results = [comparison.results.get(cell.name) or read_result(cell) for cell in cells]
    content = build_results(
        plan.config,
        plan.configurations,
        results,
        plan.environment,
        outcomes.get(BENCH),
        plan.matches,
    )
    write_results(folder.path, content)
    return content
