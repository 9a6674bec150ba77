import random
import statistics

import pytest

from skip2bench.results.stats import paired_ratio, summarise


def test_summary_of_known_values():
    summary = summarise([4.0, 1.0, 3.0, 2.0])
    assert (summary.n, summary.median, summary.mean, summary.min, summary.max) == (
        4,
        2.5,
        2.5,
        1,
        4,
    )
    assert summary.std == pytest.approx(statistics.stdev([1, 2, 3, 4]))
    assert summarise([7.0]).std == 0


def test_nothing_to_summarise_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        summarise([])


def test_ratio_of_a_known_case():
    """Logs 0.1, 0.2, 0.3: mean 0.2, sd 0.1, t(2) = 4.303."""
    from math import exp, sqrt

    ratio = paired_ratio([exp(0.1), exp(0.2), exp(0.3)], [1, 1, 1])
    assert ratio.ratio == pytest.approx(exp(0.2))
    assert ratio.low == pytest.approx(exp(0.2 - 4.303 * 0.1 / sqrt(3)))
    assert ratio.high == pytest.approx(exp(0.2 + 4.303 * 0.1 / sqrt(3)))
    assert not ratio.is_difference


def test_one_pair_has_no_interval_and_is_no_difference():
    ratio = paired_ratio([1.0], [2.0])
    assert (ratio.ratio, ratio.low, ratio.high, ratio.is_difference) == (0.5, None, None, False)


def test_pairing_removes_a_drift_that_both_share():
    drift = [1.0, 2.0, 4.0]
    ratio = paired_ratio(
        [0.5 * d * e for d, e in zip(drift, [1.0, 1.01, 0.99], strict=True)], drift
    )
    assert ratio.is_difference
    assert ratio.high < 0.52


@pytest.mark.parametrize(
    ("values", "baseline", "text"),
    [([1.0], [1.0, 2.0], "do not pair"), ([], [], "do not pair"), ([0.0], [1.0], "positive")],
)
def test_what_cannot_be_compared_is_an_error(values, baseline, text):
    with pytest.raises(ValueError, match=text):
        paired_ratio(values, baseline)


@pytest.mark.parametrize("n", [3, 5, 10, 40])
def test_intervals_cover_at_their_stated_rate(n):
    generator = random.Random(n)
    covered = 0
    for _ in range(2000):
        values = [1.1 * generator.lognormvariate(0, 0.05) for _ in range(n)]
        ratio = paired_ratio(values, [1.0] * n)
        covered += ratio.low <= 1.1 <= ratio.high
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)
