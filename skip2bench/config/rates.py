"""Learning rates that are tried: around a usual one, and beyond the edge that the best lies at."""

from collections.abc import Collection

RATE_STEP = 3.0
"""Neighbouring rates differ by this factor."""
RATES = (1e-7, 10.0)
"""No search goes beyond these."""


def round_rate(rate: float) -> float:
    """The rate in three digits, so that going up and down again gives the same one."""
    return float(f"{rate:.3g}")


def rates_around(middle: float) -> tuple[float, float, float]:
    """The rate below, the rate itself, and the rate above."""
    return round_rate(middle / RATE_STEP), round_rate(middle), round_rate(middle * RATE_STEP)


def beyond_edges(best: float, tried: Collection[float]) -> list[float]:
    """The next rates beyond the edges that the best one lies at: none where it lies inside."""
    below, _, above = rates_around(best)
    further = [rate for rate, edge in ((below, min(tried)), (above, max(tried))) if best == edge]
    return [rate for rate in further if RATES[0] <= rate <= RATES[1]]
