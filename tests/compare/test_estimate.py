import pytest

from skip2bench.compare.matrix import list_cells
from skip2bench.compare.plan import Rates, estimate_cells, plan_comparison
from skip2bench.config.compare import load_compare_config

RATES = Rates(flops_per_second=1e9, start_seconds=2.0)


@pytest.fixture
def estimate(tiny_checkpoint, tiny_data, tmp_path):
    def run(**changes):
        values = {
            "checkpoint_dir": str(tiny_checkpoint),
            "data": str(tiny_data),
            "methods": "lora,skip,skip2",
            "blocks": ["0,1"],
            "seeds": 1,
            "device": "cpu",
            "eval_interval": 1000,
            **changes,
        }
        config = load_compare_config(values)
        plan = plan_comparison(config, ["compare"])
        cells = list_cells(config, plan.configurations, tmp_path)
        seconds = estimate_cells(plan.training, plan.configurations, cells, RATES)
        return {name: value - RATES.start_seconds for name, value in seconds.items()}

    return run


def test_more_work_takes_longer_and_a_cache_saves_it(estimate):
    short, long = estimate(epochs=10), estimate(epochs=20)
    lora, skip, skip2 = (f"{x}-lr0.001-seed1337" for x in ("lora", "skip-0-1", "skip2-0-1"))
    reused = f"{skip2}-reused"
    assert all(value > 0 for value in short.values())
    assert long[lora] / short[lora] == pytest.approx(2, rel=0.05)
    assert short[reused] < short[skip2] < short[skip] < short[lora]
    # epochs from the cache are cheap
    assert long[skip2] - short[skip2] < 0.5 * (long[skip] - short[skip])
    assert short["cache-1"] == short[skip2]


def test_rates_are_measured(tiny_checkpoint, tiny_data):
    from skip2bench.compare.plan import measure_rates

    config = load_compare_config(
        {"checkpoint_dir": str(tiny_checkpoint), "data": str(tiny_data), "device": "cpu"}
    )
    rates = measure_rates(plan_comparison(config, []).training, start_seconds=1.0)
    assert rates.flops_per_second > 1e6
