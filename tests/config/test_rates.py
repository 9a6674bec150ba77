"""Learning rates around a usual one, and beyond an edge."""

import pytest

from skip2bench.config.rates import RATES, beyond_edges, rates_around


def test_neighbours_are_a_factor_of_three_away():
    assert rates_around(3e-3) == (1e-3, 3e-3, 9e-3)
    below, _, above = rates_around(1e-3)
    assert rates_around(below)[2] == pytest.approx(1e-3, rel=2e-3)
    assert rates_around(above)[0] == 1e-3


@pytest.mark.parametrize(
    ("best", "further"),
    [(1e-3, [0.000333]), (3e-3, []), (9e-3, [0.027])],
)
def test_a_search_goes_on_beyond_the_edge_alone(best, further):
    assert beyond_edges(best, [3e-3, 1e-3, 9e-3]) == further


def test_a_single_rate_lies_at_both_edges():
    assert beyond_edges(3e-3, [3e-3]) == [1e-3, 9e-3]


def test_there_is_an_end():
    low, high = RATES
    assert beyond_edges(low, [low, 1e-3]) == beyond_edges(high, [1e-3, high]) == []
