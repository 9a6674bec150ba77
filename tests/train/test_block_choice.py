"""`--blocks auto`: chosen once, from the model and its data, and recorded as numbers."""

import pytest
import yaml

from skip2bench.config.train import TrainConfig
from skip2bench.train import block_choice
from skip2bench.train.block_choice import choose_blocks, rank_blocks, resolve_blocks
from skip2bench.train.plan import plan_training

FEW = {"max_steps": 2, "eval_interval": 2}


@pytest.fixture
def plan(train):
    def make(**changes):
        values = {"checkpoint_dir": train.checkpoint, "data": str(train.data), "device": "cpu"}
        return plan_training(TrainConfig(**(values | changes)))

    return make


def test_all_blocks_are_ranked_whatever_the_method_and_the_seed(plan):
    ranking = rank_blocks(plan(blocks="auto:2"))
    assert sorted(block for block, _ in ranking) == [0, 1, 2, 3]
    assert all(0 < energy < 1 for _, energy in ranking)
    assert rank_blocks(plan(method="lora", seed=5)) == ranking
    assert rank_blocks(plan(method="skip", blocks="1", cache_project=3)) == ranking


def test_streamed_blocks_are_ranked_alike(plan):
    expected = rank_blocks(plan())
    ranking = rank_blocks(plan(stream_blocks=True))
    assert [block for block, _ in ranking] == [block for block, _ in expected]
    assert [e for _, e in ranking] == pytest.approx([e for _, e in expected], rel=1e-4)


@pytest.mark.parametrize("method", ["skip", "skip2"])
def test_a_run_records_the_blocks_it_chose(train, capsys, plan, method):
    chosen = sorted(block for block, _ in rank_blocks(plan())[:2])
    summary, _, _, folder = train(method=method, blocks="auto:2", **FEW)
    assert summary["blocks"] == chosen
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert stored["blocks"] == ",".join(map(str, chosen))
    assert "blocks auto: 2 of 4 by the energy" in capsys.readouterr().err
    # typed again, it means the same run
    assert train(method=method, blocks="auto:2", resume=True, **FEW)[0]["blocks"] == chosen
    by_number = train("by-number", method=method, blocks=stored["blocks"], **FEW)[0]
    assert summary["final_val_loss"] == by_number["final_val_loss"]


def test_it_goes_with_a_projection(train):
    summary = train(method="skip2", blocks="auto:2", cache_project=4, **FEW)[0]
    assert len(summary["blocks"]) == 2


def test_a_model_of_fewer_blocks_gives_all_of_them(plan):
    assert resolve_blocks(plan(blocks="auto")).settings.blocks == (0, 1, 2, 3)


def test_what_names_its_blocks_is_not_ranked(plan, monkeypatch):
    monkeypatch.setattr(block_choice, "rank_blocks", None)
    for changes in ({"blocks": "0,2"}, {"blocks": "auto", "method": "lora"}):
        made = plan(**changes)
        assert resolve_blocks(made) is made


def test_the_best_are_named_in_the_model_s_order(capsys):
    assert choose_blocks([(7, 0.02), (1, 0.01), (3, 0.001)], 2) == "1,7"
    assert "2 of 3" in capsys.readouterr().err
