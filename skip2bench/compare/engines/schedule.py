"""Which cells may run where, and when: the order of a comparison, shared out.

What is compared by pairs runs on one worker, one after the other, as it would alone: all cells of a
seed are a group. Cells that are in no figure, as those of a search for a learning rate, are groups
of their own. A group waits for what it reads: kept caches for the cells that fill them, the other
seeds for the rates that the first one finds.
"""

import heapq
from collections.abc import Collection, Iterable, Sequence

from skip2bench.compare.comparison import Comparison
from skip2bench.compare.folder import BENCH
from skip2bench.compare.matrix import Cell

_CACHE, _PACE = "caches", "paces"


def name_group(cell: Cell) -> str:
    """The group of a cell."""
    if cell.role == "cache":
        return _CACHE
    if cell.role == "pace":
        return _PACE
    if not cell.counts:
        return cell.name
    return f"seed {cell.config.seed}"


def list_ready(comparison: Comparison, running: Collection[str]) -> dict[str, list[str]]:
    """By group, names of the tasks that may start now, in their order.

    Args:
        comparison: How far it has come.
        running: Groups that have a worker already.
    """
    cells = comparison.cells
    has_caches = all(
        name in comparison.outcomes for name, cell in cells.items() if cell.role == "cache"
    )
    is_listed = not comparison.has_search or _is_complete(comparison)
    groups: dict[str, list[str]] = {}
    held = set()
    for task in comparison.left():
        if task.name == BENCH:
            groups[BENCH] = [BENCH]
            continue
        cell = cells[task.name]
        group = name_group(cell)
        waits_for_rates = not is_listed and cell.role == "run" and not cell.decides_rate
        if waits_for_rates or (cell.role == "reused" and not (has_caches and is_listed)):
            held.add(group)  # the rest of it too: its order must not change
        groups.setdefault(group, []).append(task.name)
    ready = {}
    for group, names in groups.items():
        if group in held:
            # of the seed that searches, the search itself goes on
            names = [name for name in names if name in cells and cells[name].decides_rate]
        if names and group not in running:
            ready[group] = names
    return ready


def _is_complete(comparison: Comparison) -> bool:
    """True once nothing more follows from what cells come to."""
    expected = {cell.name for cell in comparison.list_cells(is_forecast=True)}
    return expected <= comparison.cells.keys()


def expect_seconds(groups: Iterable[Sequence[float]], workers: int) -> float:
    """How long groups of cells take on workers, each group on one, in the order they are given."""
    free = [0.0] * max(1, workers)
    for seconds in groups:
        heapq.heappush(free, heapq.heappop(free) + sum(seconds))
    return max(free)


def group_left(left: Iterable[tuple[Cell | None, float]]) -> list[list[float]]:
    """Seconds of cells, the micro-benchmark under None, by group."""
    groups: dict[str, list[float]] = {}
    for cell, seconds in left:
        groups.setdefault(name_group(cell) if cell else BENCH, []).append(seconds)
    return list(groups.values())
