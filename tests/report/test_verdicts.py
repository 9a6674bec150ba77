"""What is concluded from figures, and what is left open where noise could have made them."""

import random

import pytest
from made_records import make_configuration, make_results, make_summary

from skip2bench.report.claims import check_claims
from skip2bench.report.data import _find_break_even
from skip2bench.report.verdicts import (
    compare_entries,
    find_conclusion,
    name_preset,
    pick_presets,
)
from skip2bench.results.figures import CellResult, summarise_configuration
from skip2bench.results.stats import paired_ratio


def make_content(configurations):
    """A comparison: by name, blocks (None for LoRA), and (seconds, loss) of each seed."""
    cells, entries = {}, []
    results = {
        name: [
            CellResult(
                name=f"{name}-{seed}",
                configuration=name,
                role="run",
                learning_rate=1e-3,
                seed=seed,
                status="ok",
                summary=make_summary(
                    initial_val_loss=4.0,
                    final_val_loss=loss,
                    best_val_loss=loss,
                    train_seconds=seconds,
                    steps=10,
                    train_samples=30,
                    global_batch_size=16,
                    peak_memory_bytes=round(1000 * seconds),
                ),
            )
            for seed, (seconds, loss) in enumerate(values)
        ]
        for name, (_, _, values) in configurations.items()
    }
    for name, (blocks, parameters, values) in configurations.items():
        for result, (seconds, loss) in zip(results[name], values, strict=True):
            cells[result.name] = {
                "configuration": name,
                "role": "run",
                "status": "ok",
                "seed": result.seed,
                "learning_rate": 1e-3,
                "figures": {
                    "train_seconds": seconds,
                    "final_val_loss": loss,
                    "peak_memory_bytes": round(1000 * seconds),
                },
            }
        entries.append(
            make_configuration(
                name=name,
                label=name,
                method="lora" if blocks is None else "skip2",
                blocks=None if blocks is None else tuple(range(blocks)),
                is_baseline=blocks is None,
                trainable_parameters=parameters,
            ).joined(summarise_configuration(results[name], results["lora"], None))
        )
    return make_results(entries, cells)


LORA = (None, 100, [(100, 2.0), (110, 2.1), (105, 2.05)])


def test_the_conclusion_is_the_fastest_that_loses_nothing():
    content = make_content(
        {
            "lora": LORA,
            "four": (4, 100, [(5, 3.0), (5.1, 3.1), (5.2, 3.05)]),  # fast, and worse
            "six": (6, 100, [(6, 2.01), (6.1, 2.09), (6.2, 2.05)]),
            "eight": (8, 100, [(8, 1.9), (8.1, 2.0), (8.2, 1.95)]),
        }
    )
    assert find_conclusion(content).label == "six"


def test_where_all_are_worse_the_most_accurate_is_spoken_of():
    content = make_content(
        {
            "lora": LORA,
            "four": (4, 100, [(5, 3.0), (5.1, 3.1), (5.2, 3.05)]),
            "six": (6, 100, [(6, 2.5), (6.1, 2.6), (6.2, 2.55)]),
        }
    )
    assert find_conclusion(content).label == "six"
    assert find_conclusion(make_content({"lora": LORA})) is None


def test_presets_are_picked_from_what_was_measured():
    content = make_content(
        {
            "lora": LORA,
            "four": (4, 100, [(5, 3.0), (5.1, 3.1), (5.2, 3.05)]),
            "six": (6, 100, [(6, 2.02), (6.1, 2.08), (6.2, 2.05)]),
            "eight": (8, 100, [(8, 2.0), (8.1, 2.1), (8.2, 2.03)]),
        }
    )
    speed, balance, accuracy = pick_presets(content)
    assert (speed.entry.label, speed.tied) == ("four", [])
    assert balance.entry.label == "six"  # as good as eight within the noise, and faster
    assert accuracy.entry.label == "eight"
    assert [entry.label for entry in accuracy.tied] == ["six"]
    assert name_preset(speed.entry) == "fast"
    assert name_preset(make_configuration(blocks=(0, 2))) is None
    assert all(pick.is_tested for pick in (speed, balance, accuracy))


@pytest.mark.parametrize(
    ("matched", "conclusion", "purposes"),
    [(None, "four", ["speed", "balance", "accuracy"]), ("time", "eight", ["accuracy"])],
)
def test_at_equal_time_only_the_loss_chooses(matched, conclusion, purposes):
    content = make_content(
        {
            "lora": LORA,
            "four": (4, 100, [(5, 2.0), (5.1, 2.1), (5.2, 2.05)]),
            "eight": (8, 100, [(8, 1.9), (8.1, 1.95), (8.2, 1.92)]),
        }
    )
    content = content.model_copy(update={"config": content.config | {"match": matched}})
    assert find_conclusion(content).label == conclusion
    assert [pick.purpose for pick in pick_presets(content)] == purposes


@pytest.mark.parametrize(
    ("matched", "judged"),
    [
        (None, {"fast_parameters", "training_time", "eight_memory", "eight_accuracy"}),
        ("time", {"fast_parameters", "eight_memory", "eight_accuracy"}),
        ("memory", {"training_time", "eight_accuracy"}),
    ],
)
def test_what_was_made_equal_is_no_claim(matched, judged):
    content = make_content(
        {
            "lora": LORA,
            "four": (4, 100, [(5, 2.0), (5.1, 2.1), (5.2, 2.05)]),
            "eight": (8, 100, [(8, 1.9), (8.1, 1.95), (8.2, 1.92)]),
        }
    )
    content = content.model_copy(update={"config": content.config | {"match": matched}})
    found = {claim.name for claim in check_claims(content, []) if claim.found is not None}
    assert found == judged


def test_one_configuration_leaves_nothing_to_choose():
    assert pick_presets(make_content({"lora": LORA, "six": (6, 1, [(6, 2.0)])})) == []


def test_single_runs_are_picked_and_called_untested():
    content = make_content(
        {
            "lora": (None, 100, [(100, 2.0)]),
            "four": (4, 100, [(5, 3.0)]),
            "six": (6, 100, [(6, 2.0)]),
        }
    )
    assert not any(pick.is_tested for pick in pick_presets(content))
    claim = next(c for c in check_claims(content, []) if c.name == "training_time")
    assert claim.found == pytest.approx(0.95)
    assert claim.holds is None


def claims_of(values, parameters=100):
    content = make_content({"lora": LORA, "four": (4, parameters, values)})
    return {claim.name: claim for claim in check_claims(content, [])}


def test_the_papers_claim_is_contradicted_only_beyond_the_noise():
    slow = claims_of([(30, 2.0), (33, 2.0), (31.5, 2.0)])["training_time"]
    assert (slow.holds, round(slow.found, 2)) == (False, 0.7)
    fast = claims_of([(5, 2.0), (5.5, 2.0), (5.25, 2.0)])["training_time"]
    assert fast.holds
    near = claims_of([(10, 2.0), (13, 2.0), (11.5, 2.0)])["training_time"]
    assert near.holds is None  # 89 %, with 90 % inside the interval
    assert near.is_undecided
    assert near.low < 0.9 < near.high


def test_what_was_set_equal_is_no_claim():
    content = make_content({"lora": LORA, "four": (4, 100, [(5, 2.0)] * 3)})
    config = content.config | {"match": "params"}
    claims = check_claims(content.model_copy(update={"config": config}), [])
    assert next(c for c in claims if c.name == "fast_parameters").found is None


def test_there_is_no_break_even_with_a_baseline_that_is_not_there():
    content = make_content(
        {
            "lora": (None, 100, []),
            "four": (4, 100, [(5, 2.0)] * 3),
            "six": (6, 100, [(6, 2.0)] * 3),
        }
    )
    assert _find_break_even(content.configurations) == []


def test_a_claim_on_equal_parameters_is_not_tested_on_others():
    assert claims_of([(5, 2.0)] * 3, parameters=150)["training_time"].found is None
    fewer = claims_of([(5, 2.0)] * 3, parameters=25)
    assert fewer["fast_parameters"].found == 0.75
    assert fewer["fast_parameters"].holds
    assert fewer["balanced_parameters"].holds is None


def test_eight_blocks_are_the_best_only_where_no_other_is_as_good():
    def check(*losses):
        content = make_content(
            {
                "lora": LORA,
                "six": (6, 100, [(6, 2.0), (6, 2.1), (6, 2.05)]),
                "eight": (8, 100, [(8, loss) for loss in losses]),
            }
        )
        return {claim.name: claim.holds for claim in check_claims(content, [])}

    assert check(1.5, 1.6, 1.55)["eight_accuracy"]
    assert not check(2.04, 2.0, 2.06)["eight_accuracy"]
    assert not check(1.5, 1.6, 1.55)["eight_memory"]


def simulate(generator, effect, noise, n):
    baseline = [100 * generator.gauss(1, noise) for _ in range(n)]
    return paired_ratio([effect * 100 * generator.gauss(1, noise) for _ in range(n)], baseline)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_cover_the_truth_at_the_stated_rate(n):
    generator = random.Random(n)
    ratios = [simulate(generator, 0.8, 0.03, n) for _ in range(2000)]
    covered = sum(ratio.low <= 0.8 <= ratio.high for ratio in ratios)
    assert 0.935 <= covered / 2000 <= 0.965


def test_the_same_run_twice_gives_no_difference_in_95_of_100_reports():
    generator = random.Random(7)
    found = sum(simulate(generator, 1.0, 0.03, 5).is_difference for _ in range(4000))
    # one in twenty is what a 95 % interval promises; of 4,000, give or take three times 0.35 %
    assert found / 4000 <= 0.05 + 3 * 0.0035


def test_a_slowdown_of_a_tenth_is_found():
    generator = random.Random(1)
    found = sum(simulate(generator, 1.1, 0.03, 10).is_difference for _ in range(200))
    assert found == 200


def test_configurations_are_paired_by_their_common_seeds():
    content = make_content(
        {"lora": LORA, "four": (4, 1, [(5, 3.0), (6, 3.0)]), "six": (6, 1, [(10, 2.0)])}
    )
    _, four, six = content.configurations
    ratio = compare_entries(content, four, six, "train_seconds")
    assert (ratio.n, ratio.ratio) == (1, 0.5)


def test_figures_that_were_not_measured_are_not_claimed():
    content = make_content(
        {"lora": LORA, "six": (6, 1, [(6, 2.0)] * 3), "eight": (8, 1, [(8, 1.0)] * 3)}
    )
    for entry in content.configurations:
        del entry.figures["peak_memory_bytes"]
    claims = {claim.name: claim for claim in check_claims(content, [])}
    assert claims["eight_memory"].found is None
    assert claims["eight_accuracy"].found == 0.5
