"""A comparison in its folder, and how far it has come: which cells are known, done and left.

Who runs what is left is another matter: `run` one after the other, `engines` on many workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from skip2bench.compare.folder import BENCH, CompareFolder, describe_cell, make_key
from skip2bench.compare.matching import find_first_cell, list_pace_cells
from skip2bench.compare.matrix import Cell, list_cells
from skip2bench.compare.plan import ComparisonPlan
from skip2bench.compare.process import CellRun, Outcome, read_cell_run
from skip2bench.compare.results import build_results, read_result, write_results
from skip2bench.compare.task import Task, describe_process
from skip2bench.config.options import to_plain
from skip2bench.io.units import parse_bytes
from skip2bench.results.comparison_records import ComparisonResults
from skip2bench.results.disturbance import find_disturbed_timing, list_disturbed_figures
from skip2bench.results.figures import CellResult, find_best_rate
from skip2bench.results.reading import is_bench, is_train


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison in its folder, and how far it has come."""

    plan: ComparisonPlan
    unmatched: ComparisonPlan
    """The same before its configurations were made equal in anything."""
    folder: CompareFolder
    cache: Path
    is_cache_filled: bool
    cells: dict[str, Cell] = field(default_factory=dict)
    """Those that are known to run, by name, in their order; see `list_further`."""
    tasks: dict[str, Task] = field(default_factory=dict)
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
            return [*list_paces(self.unmatched), find_first_cell(self.unmatched)]
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
        return with_clocks(self.unmatched, own)

    @property
    def is_open(self) -> bool:
        """True where some cells follow from what others come to."""
        return self.has_search or self.plan.config.matched == "time"

    @property
    def awaits_pace(self) -> bool:
        """True before it is known how many epochs or samples take the baseline's time."""
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
            for task in list_tasks(self, further):
                self.tasks[task.name] = task
                self._take_done(task)
            self._fill_again()

    def _fill_again(self) -> None:
        """Let caches be made again for cells that are to find them kept, once they are gone.

        A comparison that has ended has removed them; another call may have more cells to run.
        """
        if self.folder.cache.exists():
            return
        if any(self.cells[it.name].role == "reused" for it in self.left() if it.name in self.cells):
            for name, cell in self.cells.items():
                if cell.role == "cache":
                    self.outcomes.pop(name, None)
                    self.results.pop(name, None)

    def _take_done(self, task: Task) -> None:
        """Take what a task came to in an earlier call, where it need not run again."""
        outcome = self.folder.read_outcome(task.name, task.key)
        if outcome is None:
            return
        if outcome.status == "ok":
            cell_run = self.folder.finished_run(task.name)
            may_repeat = self.plan.config.repeat_disturbed and task.name not in self.outcomes
            is_wanted = may_repeat and self._is_in_figures(task.name)
            if not (is_wanted and was_disturbed(outcome, cell_run)):
                self.record(task.name, outcome, cell_run)
        elif task.name in self.cells and self.cells[task.name].decides_rate:
            run = read_cell_run(self.folder.run_folder(task.name))
            result = read_result(self.cells[task.name], outcome, run)
            if result.has_diverged:  # which is what the search wanted to know
                self.record(task.name, outcome, run)

    def _is_in_figures(self, name: str) -> bool:
        """False for a cell that has only helped to choose a rate or what takes equal time.

        The micro-benchmark is. What was chosen stays: to choose anew is to start anew.
        """
        return name not in self.cells or (
            self.cells[name].counts and self.cells[name].role != "pace"
        )

    def left(self) -> list[Task]:
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


def list_paces(unmatched: ComparisonPlan) -> list[Cell]:
    """The short runs that tell how long an epoch takes, where that is asked for."""
    config = unmatched.config
    return list_pace_cells(config, unmatched.configurations) if config.matched == "time" else []


def with_clocks(unmatched: ComparisonPlan, own: Sequence[Cell]) -> list[Cell]:
    """The cells of a matrix, and before them those whose clocks equal time rests on.

    The baseline's own run is one of the matrix, unless its seed is left out there, as another
    configuration's rate was searched for with it: then it is in no figure.
    """
    if unmatched.config.matched != "time":
        return [*own]
    first = find_first_cell(unmatched)
    is_listed = any(cell.name == first.name for cell in own)
    clock = [] if is_listed else [replace(first, counts=False)]
    return [*list_paces(unmatched), *clock, *own]


def list_tasks(comparison: Comparison, cells: Sequence[Cell]) -> list[Task]:
    """Cells as processes, and the micro-benchmark before the first ones."""
    plan, folder = comparison.plan, comparison.folder
    tasks = []
    limit = plan.config.max_memory
    if plan.bench and BENCH not in comparison.tasks:
        config = to_plain(plan.bench)
        key = make_key({"bench": config, "max_memory": limit}, plan.environment)
        max_bytes = None if limit is None else parse_bytes("max_memory", limit)
        spec = describe_process("bench", config, folder.run_folder(BENCH), max_bytes)
        tasks.append(Task(name=BENCH, key=key, spec=spec))
    for cell in cells:
        config = to_plain(cell.config)
        key = make_key(describe_cell(cell, plan.training.data.sha256), plan.environment)
        spec = describe_process(
            cell.peer or "train", config, folder.run_folder(cell.name), cell.max_memory_bytes
        )
        tasks.append(Task(name=cell.name, key=key, spec=spec))
    return tasks


def was_disturbed(outcome: Outcome, cell_run: CellRun | None) -> bool:
    """True where figures of the cell, or of the micro-benchmark, are marked."""
    if cell_run is None:
        return False
    run = cell_run.run
    if is_train(run):
        return bool(list_disturbed_figures(run, outcome.other_cpu_cores))
    return is_bench(run) and bool(find_disturbed_timing(run))


def write_comparison(comparison: Comparison) -> ComparisonResults:
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
