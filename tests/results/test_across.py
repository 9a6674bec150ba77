"""Sums over several data sets, by hand where numbers are small."""

import json
import math
import random
import statistics
from dataclasses import replace

import pytest
from made_records import make_configuration, make_results, plain

from skip2bench.results.across import (
    AcrossResults,
    DataSetResults,
    estimate,
    interquartile_mean,
    probability_of_improvement,
    read_across,
    summarise_across,
)
from skip2bench.results.plain import DamagedFileError


def make_cell(name, seed, loss, seconds, **more):
    return {
        "configuration": name,
        "role": "run",
        "learning_rate": 1e-3,
        "seed": seed,
        "status": "ok",
        "figures": {"initial_val_loss": 2.0, "final_val_loss": loss, "train_seconds": seconds},
        **more,
    }


def make_data_set(folder, losses, seconds=(10.0, 2.0), **changes):
    """A baseline and another, a loss each by seed."""
    known = {"lora": {"label": "LoRA", "is_baseline": True}, "skip2": {"label": "Skip2"}}
    entries = [
        make_configuration(name=name, method=name, seeds=tuple(range(len(own))), **more)
        for (name, more), own in zip(known.items(), losses, strict=True)
    ]
    cells = {
        f"{name}-{seed}": make_cell(name, seed, loss, taken, **changes)
        for name, taken, own in zip(("lora", "skip2"), seconds, losses, strict=True)
        for seed, loss in enumerate(own)
    }
    results = make_results(entries, cells)
    return DataSetResults(name=f"{folder}.json", folder=folder, samples=8, results=results)


def test_the_middle_half():
    assert interquartile_mean([3.0]) == 3.0
    assert interquartile_mean([1.0, 2.0, 3.0, 400.0]) == 2.5
    assert interquartile_mean(range(8)) == 3.5
    # of six, a quarter is one and a half: the second and the fifth count by half
    assert interquartile_mean([0.0, 10.0, 1.0, 1.0, 20.0, 90.0]) == pytest.approx(
        (0.5 * 1 + 1 + 10 + 0.5 * 20) / 3
    )


def test_data_sets_weigh_alike_however_many_runs_they_have():
    # nine runs of one data set have the weight of the other's three
    values, weights = [0.0] * 9 + [1.0] * 3, [1 / 9] * 9 + [1 / 3] * 3
    assert interquartile_mean(values, weights) == pytest.approx(0.5)
    many = make_data_set("a", [(1.0,) * 9, (1.5,) * 9])
    few = make_data_set("b", [(1.0,) * 3, (1.0,) * 3])
    _, (_, skip2) = summarise_across([many, few])
    assert skip2.gain.value == pytest.approx(0.75)


def test_data_sets_of_one_name_are_told_apart():
    found = [
        make_data_set("a", [(1.0, 1.0), (1.5, 1.5)]),
        make_data_set("b", [(1.8, 1.8), (1.8, 1.7)]),
    ]
    same = [replace(one, name="train.json") for one in found]
    data_sets, (_, skip2) = summarise_across(same)
    assert [it.name for it in data_sets] == ["train.json (a)", "train.json (b)"]
    assert skip2.by_data == pytest.approx({"train.json (a)": 0.5, "train.json (b)": 1.25})
    assert skip2.gain == summarise_across(found)[1][1].gain


def test_the_baselines_own_scatter_is_in_the_interval():
    steady = make_data_set("a", [(1.0, 1.0, 1.0), (1.5, 1.5, 1.5)])
    shaky = make_data_set("a", [(0.8, 1.0, 1.2), (1.5, 1.5, 1.5)])
    (_, (_, first)), (_, (_, second)) = summarise_across([steady]), summarise_across([shaky])
    assert first.gain.low == first.gain.high
    assert second.gain.low < 0.5 < second.gain.high


def test_who_is_below_whom():
    assert probability_of_improvement([1.0, 2.0], [3.0]) == 1.0
    assert probability_of_improvement([3.0], [1.0, 2.0]) == 0.0
    assert probability_of_improvement([1.0, 3.0], [2.0, 3.0]) == (1 + 1 + 0 + 0.5) / 4


def test_the_interval_holds_what_it_should_as_often_as_it_says():
    """About 95 % of intervals hold the mean that normal samples of 20 were drawn around."""
    draw, held = random.Random(3), 0

    def mean(by_data):
        return statistics.fmean(statistics.fmean(values) for values in by_data.values())

    for _ in range(60):
        found = estimate({name: [draw.gauss(5, 1) for _ in range(20)] for name in "ab"}, mean)
        held += found.low <= 5 <= found.high
    assert 50 <= held <= 60


def test_gains_are_shares_of_the_baselines():
    found = [
        make_data_set("a", [(1.0, 1.0), (1.5, 1.5)]),  # LoRA gains 1, Skip2 half of it
        make_data_set("b", [(1.8, 1.8), (1.8, 1.7)]),  # 0.2, and 1 and 1.5 times that
    ]
    data_sets, (lora, skip2) = summarise_across(found)
    assert [it.baseline_gain for it in data_sets] == pytest.approx([1.0, 0.2])
    assert lora.gain.value == pytest.approx(1.0)
    assert (lora.improvement, lora.time_ratio) == (None, None)
    assert skip2.by_data == pytest.approx({"a.json": 0.5, "b.json": 1.25})
    assert skip2.gain.value == pytest.approx(0.75)  # the middle of 0.5, 0.5, 1, 1.5
    # on the first never below, on the second once level and once below
    assert skip2.improvement.value == pytest.approx((0 + (0.5 + 0.5 + 1 + 1) / 4) / 2)
    assert skip2.time_ratio.value == pytest.approx(0.2)
    assert skip2.gain.low <= skip2.gain.value <= skip2.gain.high
    assert (skip2.runs, skip2.data_sets) == (4, ("a.json", "b.json"))


def test_time_is_the_geometric_mean_over_data_sets():
    found = [
        make_data_set("a", [(1.0, 1.0), (1.5, 1.5)], seconds=(10.0, 1.0)),
        make_data_set("b", [(1.0, 1.0), (1.5, 1.5)], seconds=(10.0, 10.0)),
    ]
    _, (_, skip2) = summarise_across(found)
    assert skip2.time_ratio.value == pytest.approx(math.sqrt(0.1))


def test_the_same_files_give_the_same_interval():
    found = [make_data_set(name, [(1.0, 1.1), (1.5, 1.2)]) for name in "ab"]
    assert summarise_across(found) == summarise_across(found)


def test_a_data_set_without_a_gain_is_named_and_left_out():
    found = [
        make_data_set("a", [(1.0, 1.0), (1.5, 1.5)]),
        make_data_set("b", [(2.5, 2.5), (1.5, 1.5)]),
    ]
    data_sets, (_, skip2) = summarise_across(found)
    assert [it.is_summed_up for it in data_sets] == [True, False]
    assert skip2.data_sets == ("a.json",)


def test_single_runs_have_no_interval():
    _, (_, skip2) = summarise_across([make_data_set(name, [(1.0,), (1.5,)]) for name in "ab"])
    assert (skip2.gain.low, skip2.improvement.high) == (None, None)


@pytest.mark.parametrize("changes", [{"is_left_out": True}, {"learning_rate": 1.0}])
def test_runs_that_chose_a_rate_are_in_no_sum(changes):
    _, found = summarise_across([make_data_set("a", [(1.0, 1.0), (1.5, 1.5)], **changes)])
    assert [it.gain for it in found] == [None, None]


def test_what_lies_elsewhere_is_not_read(tmp_path):
    data_sets, configurations = summarise_across([make_data_set("a", [(1.0,), (1.5,)])])
    content = AcrossResults(
        schema_version=1,
        config={},
        data_sets=data_sets,
        configurations=configurations,
        resamples=1,
    )
    file, text = tmp_path / "across.json", json.dumps(plain(content))
    assert read_across(tmp_path) is None
    file.write_text(text)
    assert read_across(tmp_path) == content
    file.write_text(text.replace('"folder": "a"', '"folder": "../a"'))
    with pytest.raises(DamagedFileError, match="not below"):
        read_across(tmp_path)
