"""What a person is told while a comparison runs: each cell that has ended, and the time left."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from skip2bench.compare.comparison import Comparison
from skip2bench.compare.folder import BENCH
from skip2bench.compare.matrix import Cell
from skip2bench.compare.task import Task
from skip2bench.io.console import note, warn
from skip2bench.io.units import format_duration
from skip2bench.results.disturbance import is_disturbed

Seconds = Mapping[tuple[str, str], float]
"""Estimated, by configuration and role: the learning rate and the seed make no difference."""


Total = Callable[[Sequence[tuple[Cell | None, float]]], float]
"""Of tasks and their seconds, the micro-benchmark under None: seconds until all have ended."""


def sum_up(left: Sequence[tuple[Cell | None, float]]) -> float:
    """Of tasks that run one after the other."""
    return sum(seconds for _, seconds in left)


def by_kind(cells: Sequence[Cell], seconds: Mapping[str, float]) -> Seconds:
    """The estimate of each cell, as one of its configuration and role."""
    kinds = {(cell.configuration, cell.role): seconds[cell.name] for cell in cells}
    return kinds | ({(BENCH, BENCH): seconds[BENCH]} if BENCH in seconds else {})


def _by_name(cells: Iterable[Cell], seconds: Seconds) -> dict[str, float]:
    """The estimate of each cell, and of the micro-benchmark where there is one."""
    found = {cell.name: seconds[cell.configuration, cell.role] for cell in cells}
    bench = seconds.get((BENCH, BENCH))
    return found if bench is None else found | {BENCH: bench}


def expect_left(
    comparison: Comparison, seconds: Seconds, total: Total = sum_up
) -> tuple[int, float]:
    """How many tasks there are as far as is known, and the seconds until all have ended."""
    outcomes = comparison.outcomes
    cells = [*comparison.cells.values(), *comparison.list_cells(is_forecast=True)]
    expected = _by_name(cells, seconds)
    done = [name for name in outcomes if outcomes[name].status == "ok" and name in expected]
    # the estimate, corrected by what the finished cells really took
    taken = sum(outcomes[name].wall_seconds for name in done)
    factor = taken / sum(expected[name] for name in done) if done else 1.0
    left = {name: value for name, value in expected.items() if name not in outcomes}
    by_name = {cell.name: cell for cell in cells}
    return len(expected), factor * total(
        [(by_name.get(name), value) for name, value in left.items()]
    )


def report_progress(
    comparison: Comparison, task: Task, seconds: Seconds, total: Total = sum_up
) -> None:
    """One line on the cell that has ended, and on the time that is left."""
    plan, folder, outcomes = comparison.plan, comparison.folder, comparison.outcomes
    outcome = outcomes[task.name]
    count, left = expect_left(comparison, seconds, total)
    line = f"{len(outcomes)}/{count} {task.name}: {outcome.status}"
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
