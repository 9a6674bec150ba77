"""`--learning-rates auto`: at which rates a configuration is tried, and which one it takes.

The grid begins at the usual rate and its neighbours, all with one seed. While the lowest final
validation loss lies at its edge, the rate beyond is tried. A rate at which the run does not end
well is worse than all others. What comes next follows from the results alone, so a comparison that
was stopped goes on with its search.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from skip2bench.config.compare import FEW_SEEDS
from skip2bench.config.rates import RATE_STEP, beyond_edges, rates_around, round_rate
from skip2bench.results.figures import CellResult, find_best_rate

MOST_EXTENSIONS = 4
"""Rates that are tried beyond the first ones, at most."""
_ENDED = ("ok", "failed", "oom")


@dataclass(frozen=True, kw_only=True)
class RateSearch:
    """How far the search of one configuration has come."""

    rates: tuple[float, ...]
    """In the order they run."""
    best: float | None
    """The best so far; None where none ended well."""
    is_over: bool


def first_rates(middle: float) -> tuple[float, ...]:
    """The usual rate and its neighbours."""
    below, own, above = rates_around(middle)
    return own, below, above


def search_rate(first: Sequence[float], results: Sequence[CellResult]) -> RateSearch:
    """What follows from the results for the search of a configuration.

    Args:
        first: Rates that the grid begins with, in the order they run.
        results: Cells of the configuration; those count that decide its rate.
    """
    ended = {r.learning_rate: r for r in results if r.decides_rate and r.status in _ENDED}
    rates = list(first)
    while True:
        known = [ended[rate] for rate in rates if rate in ended]
        best, _ = find_best_rate(known)
        if len(known) < len(rates):
            return RateSearch(rates=tuple(rates), best=best, is_over=False)
        further = _find_further(best, known)
        if further is None or len(rates) == len(first) + MOST_EXTENSIONS:
            return RateSearch(rates=tuple(rates), best=best, is_over=True)
        rates.append(further)


def _find_further(best: float | None, tried: Sequence[CellResult]) -> float | None:
    """The rate beyond the edge that the best one lies at; None where it lies inside."""
    rates = [result.learning_rate for result in tried]
    if best is None:  # a lower rate may hold where all have diverged; what did not fit never will
        have_diverged = all(result.has_diverged for result in tried)
        return round_rate(min(rates) / RATE_STEP) if have_diverged else None
    return next(iter(beyond_edges(best, rates)), None)


def leaves_search_seed_out(seeds: Sequence[int]) -> bool:
    """True where every configuration has seeds enough beside the one that chose its rate.

    Args:
        seeds: How many each configuration has.
    """
    return min(seeds) > FEW_SEEDS
