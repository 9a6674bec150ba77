"""What of a comparison is settled before its cells are listed."""

import pytest

import skip2bench.compare.plan
from skip2bench.compare.matrix import list_cells
from skip2bench.compare.plan import plan_comparison
from skip2bench.config.compare import load_compare_config
from skip2bench.train.block_choice import rank_blocks


@pytest.fixture
def plan(tiny_checkpoint, tiny_data):
    def make(**changes):
        values = {
            "checkpoint_dir": str(tiny_checkpoint),
            "data": str(tiny_data),
            "device": "cpu",
            "bench": False,
            "methods": "lora,skip,skip2",
            "blocks": ["auto:2", "last:1", "auto:1"],
        }
        return plan_comparison(load_compare_config(values | changes), ["compare"])

    return make


@pytest.fixture
def ranked(monkeypatch):
    """How often blocks were ranked."""
    calls = []

    def rank(training):
        calls.append(training)
        return rank_blocks(training)

    monkeypatch.setattr(skip2bench.compare.plan, "rank_blocks", rank)
    return calls


def test_blocks_are_chosen_once_for_all_cells(plan, ranked, tmp_path):
    made = plan()
    assert len(ranked) == 1
    best = [block for block, _ in rank_blocks(made.training)]
    two, one = ",".join(map(str, sorted(best[:2]))), str(best[0])
    assert made.config.blocks == (two, "last:1", one)
    cells = list_cells(made.config, made.configurations, tmp_path)
    assert {cell.config.blocks for cell in cells if cell.role == "run"} >= {two, "last:1"}
    assert not any("auto" in cell.config.blocks for cell in cells)


def test_listed_configurations_choose_theirs(plan, ranked):
    entries = [{"method": "lora"}, {"method": "skip2", "blocks": "auto:1"}]
    made = plan(configurations=entries)
    assert len(ranked) == 1
    assert made.config.configurations[0] == {"method": "lora"}
    assert len(made.configurations[1].settings.blocks) == 1


def test_nothing_is_ranked_where_nobody_asks(plan, ranked):
    plan(blocks=["fast", "all"])
    plan(methods="lora,full")
    assert ranked == []


def test_each_projection_has_a_cache_of_its_own(plan, tmp_path):
    made = plan(methods="lora,skip2", blocks=["last:1", "all"], cache_project=4, seeds=1)
    cells = list_cells(made.config, made.configurations, tmp_path)
    caches = [cell.config for cell in cells if cell.role == "cache"]
    assert [(config.blocks, config.cache_project) for config in caches] == [
        ("3", 4),
        ("0,1,2,3", 4),
    ]
    labels = [one.label for one in made.configurations]
    assert labels[1:] == [
        "Skip2-LoRA (1 block, projected to 4)",
        "Skip2-LoRA (4 blocks, projected to 4)",
    ]
    assert plan(cache_project=4, bench=True).bench is None
    assert made.estimate(cells).keys() == {cell.name for cell in cells}
