import pytest
from tiny import small_config

from skip2bench.config.rates import round_rate
from skip2bench.config.tune import TuneConfig
from skip2bench.tune.space import Space, guides_choice, single_choices

MODEL = small_config("llama-2")  # three blocks


def make(**values):
    return Space.of(TuneConfig(**values), MODEL)


def test_the_same_blocks_are_tried_once():
    space = make(blocks=("all", "fast", "0,2", "last:1"))
    assert dict(space.blocks) == {"all": (0, 1, 2), "0,2": (0, 2), "last:1": (2,)}


def test_rates_lie_around_the_default_where_none_are_given():
    assert make().learning_rates == (0.001, 0.003, 0.009)
    assert make(learning_rates=(1e-2,)).learning_rates == (1e-2,)


def test_a_small_space_is_drawn_whole():
    space = make(blocks=("all", "last:1"), ranks=(2, 4), learning_rates=(1e-3, 1e-2))
    assert space.size == 8
    drawn = space.draw(100, seed=1)
    assert len({choice.key for choice in drawn}) == len({choice.name for choice in drawn}) == 8


def test_few_points_of_a_large_space_cover_every_choice():
    space = make(
        blocks=("all", "last:1", "last:2"), ranks=(1, 2, 4), alphas=(8, 16), dropouts=(0.0, 0.1)
    )
    drawn = space.draw(12, seed=3)
    assert len({choice.key for choice in drawn}) == 12
    assert drawn == space.draw(12, seed=3) != space.draw(12, seed=4)
    for name, values in (("blocks", 3), ("rank", 3), ("learning_rate", 3), ("alpha", 2)):
        assert len({getattr(choice, name) for choice in drawn}) == values


def test_guide_and_single_blocks_have_the_middle_of_the_rest():
    space = make(blocks=("last:1",), ranks=(1, 2, 4))
    guide = guides_choice(space, MODEL)
    assert (guide.blocks, guide.rank, guide.learning_rate) == ((0, 1, 2), 2, 0.003)
    assert [choice.blocks for choice in single_choices(space, MODEL)] == [(0,), (1,), (2,)]


def test_a_choice_is_a_run_of_train():
    config = TuneConfig(ranks=(2,), train={"target": "logits", "epochs": 1})
    (choice, *_) = Space.of(config, MODEL).draw(1, seed=0)
    made = config.train_config(choice.values())
    assert (made.skip_r, made.target, made.learning_rate) == (2, "logits", choice.learning_rate)
    settings = choice.settings(config)
    assert (settings.r, settings.target, settings.dropout) == (2, "logits", made.lora_dropout)


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_a_neighbouring_rate_is_a_round_number(factor):
    rate = round_rate(guides_choice(make(), MODEL).learning_rate * factor)
    assert rate in (0.009, 0.001)
