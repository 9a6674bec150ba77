import shlex
from dataclasses import replace

import pytest
from tiny import small_config
from typer.testing import CliRunner

import skip2bench.cli.app as cli
from skip2bench.config.tune import TuneConfig
from skip2bench.tune.entrant import Entrant, Evaluation
from skip2bench.tune.finalists import (
    Candidate,
    choose_finalists,
    make_command,
    pick_by_purpose,
    recommend,
)
from skip2bench.tune.space import Space, guides_choice

MODEL = small_config("llama-2")
SPACE = Space.of(TuneConfig(ranks=(1, 2, 4, 8)), MODEL)
GUIDE = guides_choice(SPACE, MODEL)


def entrant(blocks, loss, cost, status="finished", step=8, rate=3e-3):
    middle = SPACE.middle(blocks, tuple(map(int, blocks.split(","))))
    choice = replace(middle, learning_rate=rate)
    curve = [Evaluation(step=step, epoch=1.0, train_loss=loss, val_loss=loss, rung=2)]
    return Entrant(
        choice=choice,
        origin="drawn",
        trainable_parameters=int(cost),
        flops_per_position=cost,
        trial=None,
        curve=curve,
        status=status,
    )


def candidates(*values):
    made = [entrant(str(number), loss, cost) for number, (loss, cost) in enumerate(values)]
    return [
        Candidate(entrant=it, val_loss=it.best_val_loss, cost=it.flops_per_position) for it in made
    ]


def test_the_cheapest_that_has_enough_of_the_gain_is_picked():
    all_of_it, most, half = candidates((1.0, 100.0), (1.04, 50.0), (1.19, 10.0))
    picks = pick_by_purpose([all_of_it, most, half], initial_val_loss=2.0)
    assert picks == {
        "accurate": all_of_it.entrant,  # a gain of 1
        "balanced": most.entrant,  # 0.96
        "fastest": half.entrant,  # 0.81
    }


def test_where_nothing_is_gained_the_best_is_all_that_is_picked():
    best, worse = candidates((2.1, 100.0), (2.2, 10.0))
    picks = pick_by_purpose([best, worse], initial_val_loss=2.0)
    assert all(pick is best.entrant for pick in picks.values())
    assert pick_by_purpose([], 2.0) == {}


def test_a_few_percent_faster_is_no_reason_to_be_less_accurate():
    best, hardly_cheaper = candidates((1.0, 100.0), (1.01, 95.0))
    picks = pick_by_purpose([best, hardly_cheaper], 2.0)
    assert all(pick is best.entrant for pick in picks.values())


def test_finalists_begin_with_the_best_of_the_guides_blocks():
    guide = entrant("0,1,2", 1.3, 60.0, status="left", step=4)
    better_guide = entrant("0,1,2", 1.2, 60.0, status="left", step=4, rate=9e-3)
    best, cheap = entrant("2", 1.0, 80.0), entrant("1", 1.1, 5.0)
    lost = entrant("0", 0.5, 1.0, status="diverged")
    all_of_them = [guide, better_guide, best, cheap, lost]
    assert choose_finalists(all_of_them, 2.0, 2, GUIDE) == [better_guide, best, cheap]
    assert choose_finalists(all_of_them, 2.0, 1, GUIDE) == [better_guide, best]
    assert choose_finalists(all_of_them, 2.0, 0, GUIDE) == []


def test_without_runs_of_their_own_a_recommendation_is_not_tested():
    config = TuneConfig()
    picks = recommend(config, [entrant("2", 1.0, 80.0)], {}, 2.0)
    assert {pick.is_tested for pick in picks} == {False}
    assert [pick.purpose for pick in picks] == ["fastest", "balanced", "accurate"]


def test_the_command_repeats_what_was_typed_and_trains_the_choice(monkeypatch):
    train = {"target": "logits", "epochs": 2, "mask_prompt": True, "data": "my data.json"}
    config = TuneConfig(ranks=(8,), alphas=(8, 16), train=train)
    choice = Space.of(config, MODEL).draw(1000, 0)[0]
    words = shlex.split(make_command(config, choice))
    assert words[:2] == ["skip2bench", "train"]
    seen = []
    monkeypatch.setattr("skip2bench.train.run.run_training", lambda made, _: seen.append(made))
    result = CliRunner().invoke(cli.app, words[1:])
    assert result.exit_code == 0, result.output
    made = seen[0]
    assert made.mask_prompt is True
    assert (made.data, made.target, made.epochs) == ("my data.json", "logits", 2)
    assert (made.skip_r, made.learning_rate) == (8, choice.learning_rate)
    assert made.lora_alpha == choice.alpha


def test_a_flag_of_the_default_value_is_left_out():
    config = TuneConfig()
    choice = guides_choice(Space.of(config, MODEL), MODEL)
    assert make_command(config, choice) == (
        "skip2bench train --method skip2 --blocks balanced --skip-r 16 --learning-rate 0.003"
    )


@pytest.mark.parametrize("share", [0.8, 0.95])
def test_picks_need_their_share_of_the_gain(share):
    best, just_below = candidates((1.0, 100.0), (2.0 - share + 1e-3, 1.0))
    purpose = {0.8: "fastest", 0.95: "balanced"}[share]
    assert pick_by_purpose([best, just_below], 2.0)[purpose] is best.entrant
