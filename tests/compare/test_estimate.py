from dataclasses import replace

import pytest

from skip2bench.compare.folder import BENCH
from skip2bench.compare.matrix import list_cells
from skip2bench.compare.plan import Rates, estimate_cells, plan_comparison, suggest_cut
from skip2bench.config.compare import CompareConfig, load_compare_config

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
    lora = "lora-lr0.001-seed1337"
    skip, skip2 = (f"{x}-0-1-lr0.003-seed1337" for x in ("skip", "skip2"))
    reused = f"{skip2}-reused"
    assert all(value > 0 for value in short.values())
    assert long[lora] / short[lora] == pytest.approx(2, rel=0.05)
    assert short[reused] < short[skip2] < short[skip] < short[lora]
    # epochs from the cache are cheap
    assert long[skip2] - short[skip2] < 0.5 * (long[skip] - short[skip])
    assert short["cache-1"] == short[skip2]


def test_dora_is_expected_to_take_longer_than_lora(estimate):
    pytest.importorskip("peft", reason="the extra 'peers' is not installed")
    seconds = estimate(methods="lora", peers="peft,peft-dora,peft-rslora")
    lora, dora, rslora = (
        seconds[f"peer-{name}-lr0.001-seed1337"] for name in ("peft", "peft-dora", "peft-rslora")
    )
    assert rslora == lora < dora


def test_rates_are_measured(tiny_checkpoint, tiny_data):
    from skip2bench.compare.plan import measure_rates

    config = load_compare_config(
        {"checkpoint_dir": str(tiny_checkpoint), "data": str(tiny_data), "device": "cpu"}
    )
    rates = measure_rates(plan_comparison(config, []).training, start_seconds=1.0)
    assert rates.flops_per_second > 1e6


@pytest.fixture
def small(tiny_checkpoint, tiny_data):
    """The plan of flow small, on 38 training and 2 validation samples."""
    train = {"checkpoint_dir": str(tiny_checkpoint), "data": str(tiny_data), "device": "cpu"}
    return replace(plan_comparison(CompareConfig(train=train), []), start_seconds=10.0)


def test_a_flow_that_takes_what_it_promises_has_no_hint(small):
    assert suggest_cut(small, {"a": 3000.0, "b": 2300.0}) is None
    detailed = replace(small, config=replace(small.config, flow="detailed"))
    assert suggest_cut(detailed, {"a": 1e6}) is None


def test_what_to_cut_fits_by_the_same_projection(small):
    """Two runs of 10 s to start and 2,990 of work: (3,600 - 20) / 5,980 of it fits."""
    hint = suggest_cut(small, {"a": 3000.0, "b": 3000.0, BENCH: 100.0})
    assert (
        "flow small is meant for 1 h 0 min 0 s; with --train-samples 22 --val-samples 16 it" in hint
    )
    assert "about 59 min 42 s" in hint  # 120 + 5,980 x 22 / 38


def test_a_long_benchmark_is_left_out_first(small):
    hint = suggest_cut(small, {"a": 1000.0, "b": 1000.0, BENCH: 6000.0})
    assert "with --no-bench it would take about 33 min" in hint
