import pytest

from skip2bench.models.optimizer import learning_rate_factor


def factors(warmup: int, total: int) -> list[float]:
    return [learning_rate_factor(step, warmup, total) for step in range(total)]


def test_warms_up_linearly_and_falls_as_a_cosine():
    values = factors(4, 12)
    assert values[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert values[8] == pytest.approx(0.5)
    assert values[4:] == sorted(values[4:], reverse=True)
    assert 0 < values[-1] < 0.05


def test_a_run_may_end_inside_or_at_the_end_of_its_warmup():
    assert factors(100, 3) == [0.01, 0.02, 0.03]
    assert factors(3, 3) == [1 / 3, 2 / 3, 1.0]


def test_no_warmup_starts_at_the_peak():
    assert factors(0, 2) == [1.0, pytest.approx(0.5)]
