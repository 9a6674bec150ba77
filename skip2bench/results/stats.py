"""Summaries and paired comparisons of repeated measurements; pure functions.

Times scatter and drift with the machine, so configurations are compared round by round (a round
measures all of them close together in time), and a difference counts only where its interval leaves
1 out, or, where several are tested beside one another, where its p-value is small enough once it is
corrected for that.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

# Student's t, 97.5 % quantile, for 1 to 30 degrees of freedom; beyond, see `student_t`.
_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


SIGNIFICANCE = 0.05
POWER = 0.8
QUARTILES_FROM = 4
"""Values from which on quartiles say more than the values themselves."""
_MOST_LOG_RATIO = 20.0
_MANY_DEGREES = 1000
"""Of freedom, from which on Student's t is taken for normal: a file may name any number."""
_INTERVALS = 400
"""Of Simpson's rule."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Of n values: median, mean, minimum, maximum, sample standard deviation (0 where n is 1).

    The quartiles interpolate between the values (as numpy does by default); None of fewer than
    QUARTILES_FROM.
    """

    n: int
    median: float
    mean: float
    min: float
    max: float
    std: float
    lower_quartile: float | None = None
    upper_quartile: float | None = None


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

    @property
    def p_value(self) -> float | None:
        """Of the paired t test on the logarithms that the interval belongs to, two-sided.

        None for a single pair.
        """
        spread = self._half_interval()
        if spread is None or not self.low or not self.high:
            return None
        distance = abs(math.log(self.low) + math.log(self.high)) / 2
        if spread == 0:
            return 1.0 if distance == 0 else 0.0
        return student_t_p_value(distance * student_t(self.n - 1) / spread, self.n - 1)

    @property
    def detectable_ratio(self) -> float | None:
        """The smallest ratio above 1 that as many pairs with this scatter would have shown.

        One that the test at SIGNIFICANCE finds with a probability of POWER; its inverse below 1.
        None for a single pair, and where no difference of a sensible size would have been found.
        """
        spread = self._half_interval()
        if spread is None:
            return None
        log_ratio = detectable_effect(self.n) * spread / student_t(self.n - 1)
        return math.exp(log_ratio) if log_ratio < _MOST_LOG_RATIO else None

    def _half_interval(self) -> float | None:
        """Half of the interval's width on the logarithms."""
        if self.n < 2 or not self.low or not self.high:
            return None
        return max(0.0, math.log(self.high / self.low) / 2)


def summarise(values: Sequence[float]) -> Summary:
    """Summarise at least one value.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values to summarise")
    quartiles = (
        statistics.quantiles(values, n=4, method="inclusive")
        if len(values) >= QUARTILES_FROM
        else (None, None, None)
    )
    return Summary(
        n=len(values),
        median=statistics.median(values),
        mean=statistics.fmean(values),
        min=min(values),
        max=max(values),
        std=statistics.stdev(values) if len(values) > 1 else 0.0,
        lower_quartile=quartiles[0],
        upper_quartile=quartiles[2],
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
    half = student_t(n - 1) * statistics.stdev(logs) / math.sqrt(n)
    return Ratio(ratio=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half), n=n)


def student_t(degrees: int) -> float:
    """97.5 % quantile of Student's t, to three decimals.

    Beyond the table it is the Cornish-Fisher expansion around the normal distribution's quantile
    (Abramowitz and Stegun, 26.7.5), up to the second power of 1 / degrees.

    Args:
        degrees: Of freedom, from 1.
    """
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / degrees + second / degrees**2


def student_t_p_value(t: float, degrees: int) -> float:
    """Probability that Student's t lies further from 0 than `t`, on either side.

    The finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4.

    Args:
        t: From 0.
        degrees: Of freedom, from 1.
    """
    if degrees >= _MANY_DEGREES:
        return math.erfc(t / math.sqrt(2))
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2
    total, term = 0.0, cosine if is_odd else 1.0
    for k in range(is_odd, degrees - 1, 2):
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    inside = 2 / math.pi * (angle + sine * total) if is_odd else sine * total
    return max(0.0, 1.0 - inside)


@lru_cache(maxsize=1024)
def detectable_effect(n: int) -> float:
    """The mean of n differences, in standard errors, that a t test finds with a chance of POWER.

    Args:
        n: From 2.
    """
    n = min(n, _MANY_DEGREES)  # beyond, it is that of the normal distribution
    low, high = 0.0, 200.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if _power(middle, n - 1) > POWER else (middle, high)
    return high


def _power(effect: float, degrees: int) -> float:
    """Chance that Student's t around `effect` lies beyond the two quantiles of the test.

    Integrated by Simpson's rule over u, the sample's standard deviation over the true one, whose
    square times `degrees` is chi-squared.
    """
    critical, width = student_t(degrees), 8 / math.sqrt(2 * degrees)
    first, last = max(0.0, 1 - width), 1 + width
    step = (last - first) / _INTERVALS
    log_scale = math.log(2) + degrees / 2 * math.log(degrees / 2) - math.lgamma(degrees / 2)
    total = 0.0
    for number in range(_INTERVALS + 1):
        u = first + number * step
        weight = 1 if number in (0, _INTERVALS) else 4 if number % 2 else 2
        if u == 0:
            density = math.exp(log_scale) if degrees == 1 else 0.0
        else:
            density = math.exp(log_scale - degrees * u * u / 2 + (degrees - 1) * math.log(u))
        beyond = _normal(effect - critical * u) + _normal(-effect - critical * u)
        total += weight * density * beyond
    return total * step / 3


def _normal(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def adjust_p_values(p_values: Sequence[float]) -> list[float]:
    """P-values of tests made beside one another, by Holm's step-down correction.

    S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of
    Statistics 6 (1979): below SIGNIFICANCE they keep the chance of any false one of all below it.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted
