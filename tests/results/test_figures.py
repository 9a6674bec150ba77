import math
from dataclasses import replace

import pytest
from made_records import make_configuration, make_summary, plain

from skip2bench.results.curves import CurvePoint
from skip2bench.results.figures import (
    CellResult,
    correct_for_rows,
    find_best_rate,
    find_target,
    find_warnings,
    read_figures,
    summarise_configuration,
)


def cell(
    name="lora", *, rate=1e-3, seed=1, loss=2.0, seconds=10.0, role="run", status="ok", **more
):
    """A cell whose loss falls from 4 to `loss` in 10 steps, a second each."""
    curve = [
        CurvePoint(
            step=step, val_loss=4 - (4 - loss) * step / 10, train_seconds=seconds * step / 10
        )
        for step in (0, 5, 10)
    ]
    summary = {
        "initial_val_loss": 4.0,
        "final_val_loss": loss,
        "best_val_loss": loss,
        "train_seconds": seconds,
        "cache_build_seconds": min(1.0, seconds),
        "steps": 10,
        "tokens": 1000,
        "train_samples": 30,
        "global_batch_size": 16,
        "trainable_parameters": 100,
        "forgetting": -0.1,
        **more,
    }
    return CellResult(
        name=f"{name}-{rate}-{seed}-{role}",
        configuration=name,
        role=role,
        learning_rate=rate,
        seed=seed,
        status=status,
        wall_seconds=seconds + 5,
        summary=make_summary(**summary) if status == "ok" else None,
        curve=curve if status == "ok" else (),
    )


def test_the_best_rate_has_the_lowest_mean_over_the_seeds():
    cells = [
        cell(rate=rate, seed=seed, loss=loss)
        for rate, seed, loss in [
            (1e-3, 1, 3.0),
            (1e-3, 2, 2.0),
            (1e-2, 1, 2.4),
            (1e-2, 2, 2.4),
        ]
    ]
    rate, grid = find_best_rate(cells)
    assert rate == 1e-2
    assert [row.mean_final_val_loss for row in grid] == [2.5, 2.4]
    assert grid[0].std_final_val_loss == pytest.approx(math.sqrt(0.5))


def test_a_rate_at_which_runs_failed_is_not_the_best():
    cells = [
        *(cell(rate=1e-3, seed=seed, loss=3.0) for seed in (1, 2)),
        cell(rate=1e-1, seed=1, loss=1.0),
        cell(rate=1e-1, seed=2, status="failed"),
    ]
    rate, grid = find_best_rate(cells)
    assert rate == 1e-3
    assert [(row.ok, row.runs) for row in grid] == [(2, 2), (1, 2)]


def test_a_rate_that_has_run_more_seeds_so_far_is_not_the_best_for_that():
    """As where a grid is stopped in the middle of a seed, or a run waits to be made again."""
    cells = [
        cell(rate=1e-3, seed=1, loss=3.0),
        cell(rate=1e-3, seed=2, loss=1.0),
        cell(rate=1e-2, seed=1, loss=2.0),
        cell(rate=1e-2, seed=2, status="interrupted"),
    ]
    assert find_best_rate(cells)[0] == 1e-2


def test_no_cell_that_ended_well_has_no_best_rate():
    rate, grid = find_best_rate([cell(status="oom")])
    assert rate is None
    assert grid[0].mean_final_val_loss is None


def test_figures_of_a_cell():
    figures = read_figures(cell(), target_loss=None)
    assert figures["loss_change_per_step"] == pytest.approx(-0.2)
    assert figures["steps_per_second"] == 1.0
    assert figures["tokens_per_second"] == 100.0
    assert figures["wall_seconds"] == 15.0
    assert "steps_to_target" not in figures


def test_the_target_is_reached_at_the_first_evaluation_at_or_below_it():
    # 30 samples in batches of 16: two steps an epoch, the second of 14 samples
    assert find_target(cell(), 3.0) == {
        "time_to_target_seconds": 5.0,
        "steps_to_target": 5,
        "samples_to_target": 2 * 30 + 16,
    }
    assert find_target(cell(), 2.0)["samples_to_target"] == 5 * 30
    assert find_target(cell(), 1.9) == {}
    assert find_target(cell(), 4.0)["steps_to_target"] == 0


def test_ratios_are_paired_by_seed_at_each_ones_best_rate():
    baseline = [
        cell(rate=rate, seed=seed, loss=2.0 + rate, seconds=10.0 * seed)
        for rate in (0.0, 1.0)
        for seed in (1, 2, 3)
    ]
    own = [
        cell("skip2", rate=rate, seed=seed, loss=3.0 - rate / 2, seconds=seed * (1 + rate))
        for rate in (0.0, 1.0)
        for seed in (1, 2, 3)
    ]
    result = summarise_configuration(own, baseline, None)
    assert result.learning_rate == 1.0  # the baseline's is 0
    assert result.learning_rate_at_edge
    assert result.seeds == (1, 2, 3)
    ratio = result.against_baseline["train_seconds"]
    # the times scatter by a factor of three, their ratios not at all
    assert ratio.ratio == pytest.approx(0.2)
    assert ratio.low == pytest.approx(0.2)
    assert ratio.is_difference
    assert result.figures["train_seconds"].mean == pytest.approx(4.0)
    assert result.target_reached == 0
    assert "steps_to_target" not in result.figures
    # a figure that may be negative has no ratio
    assert "forgetting" not in result.against_baseline
    assert result.figures["forgetting"].mean == pytest.approx(-0.1)


def test_the_baseline_reaches_its_own_target():
    cells = [cell(seed=seed, loss=2.0 + seed / 10) for seed in (1, 2, 3)]
    result = summarise_configuration(cells, cells, None)
    assert result.target_reached == 3
    assert result.figures["steps_to_target"].mean == 10
    assert result.against_baseline["train_seconds"].ratio == pytest.approx(1.0)
    assert not result.against_baseline["train_seconds"].is_difference


def test_a_fixed_target_holds_for_every_seed():
    cells = [cell(seed=seed, loss=loss) for seed, loss in ((1, 2.0), (2, 3.5))]
    result = summarise_configuration(cells, cells, 3.0)
    assert result.target_loss == 3.0
    assert result.target_reached == 1


def test_the_clocks_of_a_built_and_a_kept_cache_are_two_figures():
    baseline = [cell(seed=seed) for seed in (1, 2)]
    own = [
        *(cell("skip2", seed=seed, seconds=2.0) for seed in (1, 2)),
        *(cell("skip2", seed=s, seconds=0.5, role="reused", cache_kept=True) for s in (1, 2)),
    ]
    result = summarise_configuration(own, baseline, None)
    assert result.figures["train_seconds"].mean == 2.0
    assert result.figures["reused_train_seconds"].mean == 0.5
    assert result.against_baseline["reused_train_seconds"].ratio == pytest.approx(0.05)
    assert result.figures["reused_time_to_target_seconds"].mean == 0.5


def test_a_run_that_had_to_build_its_cache_does_not_count_as_one_that_found_it():
    own = [
        cell("skip2", seconds=2.0),
        cell("skip2", seconds=1.9, role="reused", cache_kept=False),
    ]
    result = summarise_configuration(own, [cell()], None)
    assert "reused_train_seconds" not in result.figures


def test_a_disturbed_clock_marks_the_figures_of_its_own_kind_of_run():
    baseline = [cell(seed=seed) for seed in (1, 2)]
    both = ("train_seconds", "reused_train_seconds")
    built = [cell("skip2", seed=seed, seconds=2.0) for seed in (1, 2)]
    kept = [cell("skip2", seed=s, seconds=0.5, role="reused", cache_kept=True) for s in (1, 2)]
    one = [*built, *(replace(it, disturbed=both) for it in kept)]
    found = summarise_configuration(one, baseline, None)
    assert not found.figures["train_seconds"].is_disturbed
    assert found.figures["reused_train_seconds"].is_disturbed
    other = [*(replace(it, disturbed=both) for it in built), *kept]
    found = summarise_configuration(other, baseline, None)
    assert found.figures["train_seconds"].is_disturbed
    assert not found.against_baseline["reused_train_seconds"].is_disturbed


def test_only_seeds_that_both_have_are_paired():
    baseline = [cell(seed=1), cell(seed=2, status="failed"), cell(seed=3)]
    own = [cell("skip", seed=seed, seconds=5.0) for seed in (1, 2, 3)]
    result = summarise_configuration(own, baseline, None)
    assert result.figures["train_seconds"].n == 3
    assert result.against_baseline["train_seconds"].n == 2


def test_a_configuration_of_which_nothing_ended_well_has_no_figures():
    result = summarise_configuration([cell("full", status="oom")], [cell()], None)
    assert result.figures == result.against_baseline == {}
    assert result.failed == ("full-0.001-1-run",)
    assert result.learning_rate is None


def searched(rate, loss, seed=1, name="lora", *, counts=True):
    from dataclasses import replace

    made = cell(name, rate=rate, seed=seed, loss=loss, seconds=10.0 + seed)
    return replace(made, decides_rate=seed == 1, counts=counts or seed != 1)


def test_a_searched_rate_is_the_first_seeds_choice():
    cells = [searched(1e-3, 2.2), searched(1e-2, 2.0), searched(1e-1, 2.1)]
    cells += [searched(1e-2, 2.6, seed) for seed in (2, 3)]
    result = summarise_configuration(cells, cells, None)
    assert result.learning_rate == 1e-2  # though the other seeds do worse at it
    assert not result.learning_rate_at_edge
    assert [(row.runs, row.mean_final_val_loss) for row in result.grid] == [
        *((1, 2.2), (1, 2.0), (1, 2.1))
    ]
    assert result.seeds == (1, 2, 3)
    assert result.figures["final_val_loss"].mean == pytest.approx(2.4)


def test_the_seed_that_chose_is_in_no_figure_where_it_does_not_count():
    def make(name):
        grid = [searched(rate, 2.0, name=name, counts=False) for rate in (1e-3, 1e-2)]
        return grid + [searched(1e-3, 2.6, seed, name) for seed in (2, 3, 4)]

    result = summarise_configuration(make("skip2"), make("lora"), None)
    assert result.seeds == (2, 3, 4)
    assert result.figures["final_val_loss"].mean == pytest.approx(2.6)
    assert result.against_baseline["train_seconds"].n == 3
    assert result.target_loss == pytest.approx(2.6)


def test_more_seeds_than_the_baselines_count_for_its_own_figures_alone():
    baseline = [cell(seed=seed) for seed in (1, 2, 3)]
    own = [cell("skip", seed=seed, seconds=5.0) for seed in range(1, 11)]
    result = summarise_configuration(own, baseline, None)
    assert result.figures["train_seconds"].n == 10
    assert result.against_baseline["train_seconds"].n == 3
    assert (result.target_reached, result.target_tried) == (3, 3)


def test_ratios_are_corrected_for_the_rows_of_their_table():
    baseline = [cell(seed=seed, seconds=10.0) for seed in (1, 2, 3)]

    def make(name, seconds):
        own = [
            cell(name, seed=seed, seconds=value)
            for seed, value in zip((1, 2, 3), seconds, strict=True)
        ]
        known = make_configuration(name=name, label=name, is_baseline=name == "lora")
        return known.joined(summarise_configuration(own, baseline, None))

    rows = [
        make("lora", (10.0, 10.0, 10.0)),
        make("fast", (5.0, 5.01, 5.02)),
        make("near", (9.4, 9.6, 9.5)),
        make("same", (9.9, 10.2, 10.1)),
    ]
    alone = correct_for_rows([rows[0], rows[2]])[1].against_baseline["train_seconds"]
    assert alone.is_difference
    assert alone.comparisons == 1
    assert alone.adjusted_p_value == alone.p_value
    corrected = [row.against_baseline["train_seconds"] for row in correct_for_rows(rows)]
    assert [ratio.is_difference for ratio in corrected[1:]] == [True, True, False]
    assert corrected[2].adjusted_p_value == pytest.approx(2 * corrected[2].p_value)
    many = [*rows, *(make(f"same {n}", (9.9, 10.2, 10.1)) for n in range(8))]
    near = correct_for_rows(many)[2].against_baseline["train_seconds"]
    assert not near.is_difference
    assert near.high < 1
    assert near.comparisons == 11
    # the baseline is tested against nothing
    assert corrected[0].p_value is None
    assert correct_for_rows(many) == correct_for_rows(correct_for_rows(many))
    # of figures without any scatter, parameters among them, none is in doubt
    steps = correct_for_rows(rows)[1].against_baseline["steps_per_second"]
    assert steps.detectable_ratio > 1


def make_control(**ratio):
    return make_configuration(is_aa=True, against_baseline={"train_seconds": ratio})


def test_runs_that_were_stopped_in_between_are_named():
    cells = [cell(seed=1), cell(seed=2, resumed_at_steps=[5]), cell(seed=3, resumed_at_steps=[])]
    expected = [{"kind": "resumed", "cells": ["lora-0.001-2-run"]}]
    assert plain(find_warnings([make_configuration()], cells, n_cores=2)) == expected


@pytest.mark.parametrize(
    ("entries", "others", "expected"),
    [
        ([make_configuration()], 0.1, []),
        ([make_configuration()], 0.3, [{"kind": "busy", "cells": ["lora-0.001-1-run"]}]),
        ([make_configuration(seeds=[1])], 0.0, [{"kind": "few_runs", "label": "x", "n": 1}]),
        (
            [make_configuration(learning_rate_at_edge=True)],
            0.0,
            [{"kind": "edge", "label": "x", "learning_rate": 1e-3}],
        ),
        (
            [
                make_configuration(
                    is_aa=True,
                    against_baseline={
                        "train_seconds": {"ratio": 0.5, "low": 0.4, "high": 0.6, "n": 3}
                        | {"is_difference": False}  # corrected, which an alarm is not
                    },
                )
            ],
            0.0,
            [{"kind": "aa", "label": "x", "figure": "train_seconds"}],
        ),
        (
            [
                make_configuration(
                    is_aa=True,
                    against_baseline={
                        "train_seconds": {"ratio": 1.0, "low": 0.9, "high": 1.1, "n": 3}
                        | {"is_difference": False}
                    },
                )
            ],
            0.0,
            [],
        ),
    ],
)
def test_warnings_speak_only_when_they_apply(entries, others, expected):
    from dataclasses import replace

    result = replace(cell(), other_cpu_cores=others)
    assert plain(find_warnings(entries, [result], n_cores=2)) == expected
