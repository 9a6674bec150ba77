import random
import statistics
from math import exp, sqrt

import pytest

from skip2bench.results.stats import (
    adjust_p_values,
    detectable_effect,
    paired_ratio,
    student_t,
    student_t_p_value,
    summarise,
)


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


def test_quartiles_are_those_of_enough_values():
    summary = summarise([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (summary.lower_quartile, summary.upper_quartile) == (2.0, 4.0)
    few = summarise([1.0, 2.0, 3.0])
    assert few.lower_quartile is few.upper_quartile is None


def test_nothing_to_summarise_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        summarise([])


def test_ratio_of_a_known_case():
    """Logs 0.1, 0.2, 0.3: mean 0.2, sd 0.1, t(2) = 4.303."""
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


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706), (30, 2.042), (31, 2.0395), (40, 2.0211), (60, 2.0003), (120, 1.9799)],
)
def test_quantiles_are_those_of_the_tables(degrees, quantile):
    assert student_t(degrees) == pytest.approx(quantile, abs=1e-4)


def test_quantiles_fall_to_that_of_the_normal_distribution():
    values = [student_t(degrees) for degrees in range(1, 200)]
    assert values == sorted(values, reverse=True)
    assert student_t(10**9) == pytest.approx(1.95996, abs=1e-5)


def test_an_interval_of_many_pairs_is_that_of_t():
    values = [exp(x / 100) for x in range(32)]
    ratio = paired_ratio(values, [1.0] * 32)
    half = 2.0395 * statistics.stdev([x / 100 for x in range(32)]) / sqrt(32)
    assert ratio.high / ratio.ratio == pytest.approx(exp(half), rel=1e-5)


@pytest.mark.parametrize("n", [3, 5, 10, 40])
def test_intervals_cover_at_their_stated_rate(n):
    generator = random.Random(n)
    covered = 0
    for _ in range(2000):
        values = [1.1 * generator.lognormvariate(0, 0.05) for _ in range(n)]
        ratio = paired_ratio(values, [1.0] * n)
        covered += ratio.low <= 1.1 <= ratio.high
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 30])
def test_a_quantile_has_its_p_value(degrees):
    assert student_t_p_value(student_t(degrees), degrees) == pytest.approx(0.05, abs=1e-4)
    assert student_t_p_value(0.0, degrees) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("t", "degrees", "p"), [(1.0, 1, 0.5), (2.0, 2, 0.183503), (3.0, 5, 0.030099)]
)
def test_p_values_of_known_cases(t, degrees, p):
    """The first two in closed form: 1 - 2 atan(t) / pi, and 1 - t / sqrt(2 + t^2)."""
    assert student_t_p_value(t, degrees) == pytest.approx(p, abs=1e-6)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_an_interval_leaves_1_out_where_its_p_value_is_below_5_percent(n):
    generator = random.Random(n)
    found = set()
    for _ in range(200):
        ratio = paired_ratio([generator.lognormvariate(0.1, 0.1) for _ in range(n)], [1.0] * n)
        assert ratio.is_difference == (ratio.p_value < 0.05)
        found.add(ratio.is_difference)
    assert found == {True, False}


def test_very_many_pairs_take_no_longer():
    assert student_t_p_value(1.959964, 10**9) == pytest.approx(0.05, abs=1e-6)
    assert student_t_p_value(2.0, 999) == pytest.approx(student_t_p_value(2.0, 1000), rel=0.01)
    assert detectable_effect(10**9) == pytest.approx(1.959964 + 0.841621, abs=0.01)


def test_figures_without_scatter_differ_or_do_not():
    assert paired_ratio([2.0, 3.0], [2.0, 3.0]).p_value == 1.0
    assert paired_ratio([4.0, 8.0], [2.0, 4.0]).p_value == 0.0
    assert paired_ratio([2.0, 3.0], [2.0, 3.0]).detectable_ratio == 1.0
    assert paired_ratio([2.0], [3.0]).p_value is paired_ratio([2.0], [3.0]).detectable_ratio is None


@pytest.mark.parametrize(
    ("n", "effect"),
    # of a paired test, in standard deviations of a difference: the sample sizes of J. Cohen's
    # tables lie just above these
    [(10, 0.996), (15, 0.778), (34, 0.495), (3, 3.264)],
)
def test_detectable_effects_are_those_of_the_noncentral_t(n, effect):
    assert detectable_effect(n) / sqrt(n) == pytest.approx(effect, abs=1e-3)


@pytest.mark.parametrize("n", [3, 10])
def test_the_detectable_ratio_is_found_four_times_of_five(n):
    generator = random.Random(n)
    sd = 0.02
    true = exp(detectable_effect(n) * sd / sqrt(n))
    found = 0
    for _ in range(4000):
        values = [true * generator.lognormvariate(0, sd) for _ in range(n)]
        found += paired_ratio(values, [1.0] * n).is_difference
    assert found / 4000 == pytest.approx(0.8, abs=0.02)


def test_p_values_are_corrected_by_how_many_there_are():
    assert adjust_p_values([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_p_values([0.04]) == [0.04]
    assert adjust_p_values([0.9, 0.8]) == [1.0, 1.0]
    assert adjust_p_values([]) == []


def test_any_false_difference_among_many_is_as_rare_as_one_alone():
    generator = random.Random(3)
    false = 0
    for _ in range(1000):
        baseline = [generator.lognormvariate(0, 0.02) for _ in range(5)]
        rows = [[generator.lognormvariate(0, 0.02) for _ in range(5)] for _ in range(8)]
        p_values = [paired_ratio(row, baseline).p_value for row in rows]
        false += min(adjust_p_values(p_values)) < 0.05
    assert false / 1000 <= 0.05 + 3 * 0.007
