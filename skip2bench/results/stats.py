"""Summaries and paired comparisons of repeated measurements; pure functions.

Times scatter and drift with the machine, so configurations are compared round by round (a round
measures all of them close together in time), and a difference counts only where its interval leaves
1 out.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Student's t, 97.5 % quantile, for 1 to 30 degrees of freedom; beyond, the normal distribution's is
# near enough.
_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Of n values: median, mean, minimum, maximum, sample standard deviation (0 where n is 1)."""

    n: int
    median: float
    mean: float
    min: float
    max: float
    std: float


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A paired ratio with its 95 % confidence interval; the bounds are None for a single pair."""

    ratio: float
    low: float | None
    high: float | None
    n: int

    @property
    def is_difference(self) -> bool:
        """True where the whole interval lies on one side of 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


def summarise(values: Sequence[float]) -> Summary:
    """Summarise at least one value.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values to summarise")
    return Summary(
        n=len(values),
        median=statistics.median(values),
        mean=statistics.fmean(values),
        min=min(values),
        max=max(values),
        std=statistics.stdev(values) if len(values) > 1 else 0.0,
    )


def paired_ratio(values: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Geometric mean of values[i] / baseline[i] with a t interval on the logarithms.

    Args:
        values: One positive figure a round.
        baseline: The baseline's figure of the same rounds.

    Raises:
        ValueError: lengths differ, nothing is given, or a figure is not positive.
    """
    if len(values) != len(baseline) or not values:
        raise ValueError(f"{len(values)} values do not pair with {len(baseline)}")
    if min(*values, *baseline) <= 0:
        raise ValueError("a ratio needs positive figures")
    logs = [math.log(value / base) for value, base in zip(values, baseline, strict=True)]
    mean, n = statistics.fmean(logs), len(logs)
    if n == 1:
        return Ratio(ratio=math.exp(mean), low=None, high=None, n=n)
    t = _T_975[n - 2] if n - 2 < len(_T_975) else 1.96
    half = t * statistics.stdev(logs) / math.sqrt(n)
    return Ratio(ratio=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half), n=n)
