"""How often ranks that share a backbone agree, and that each makes as many passes as any."""

import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from litgpt.config import Config
from tiny import TINY
from torch.distributed.fsdp import FSDPModule

from skip2bench.errors import Skip2BenchError
from skip2bench.models.skip import SkipGPT, SkipSettings
from skip2bench.train.ranks.ranks import RankLostError, Ranks
from skip2bench.train.ranks.sharded import even_out_passes, shard_blocks, uncounted_passes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo as on Linux")


TOKENS = torch.arange(7)[None]


class _Accompanied(Ranks):
    """The first of two ranks; what the other one says each time is known."""

    def __init__(self, *others: float) -> None:
        super().__init__()
        self.others, self.said = list(others), []

    def max(self, *values: float) -> list[float]:
        [own] = values
        self.said.append(own)
        return [max(own, self.others.pop(0))]


@pytest.fixture
def model():
    """Spread over the one rank of this process."""
    dist.init_process_group(
        "gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=10)
    )
    model = _make_model()
    shard_blocks(model, Ranks())
    yield model
    dist.destroy_process_group()


def _make_model():
    torch.manual_seed(0)
    config = Config(**TINY, vocab_size=40, padded_vocab_size=40)
    return SkipGPT(config, SkipSettings(blocks=(0, 2), r=2, alpha=4)).requires_grad_(False)


@pytest.fixture
def gathered(model, monkeypatch):
    """A list that has an entry for each block that is gathered for an empty pass."""
    gathered, gather = [], FSDPModule.unshard
    monkeypatch.setattr(FSDPModule, "unshard", lambda m: (gathered.append(m), gather(m)))
    return gathered


def test_a_rank_with_fewer_passes_makes_empty_ones_first(model, gathered):
    ranks = _Accompanied(5, 1)
    even_out_passes(model, ranks, 2)
    assert (gathered, ranks.said) == ([*model.transformer.h] * 3, [2])
    even_out_passes(model, ranks, 3)
    assert (len(gathered), ranks.said) == (3 * 4, [2, 3])


def test_a_backbone_that_is_on_every_rank_asks_nobody():
    model, ranks = _make_model(), _Accompanied()
    even_out_passes(model, ranks, 2)
    with uncounted_passes(model, ranks):
        model.compute_features(TOKENS)
    assert ranks.said == []


@pytest.mark.parametrize("error", [None, Skip2BenchError("full"), KeyboardInterrupt()])
def test_uncounted_passes_go_on_until_no_rank_makes_one(model, gathered, error):
    """Also of a rank that had to stop, whose error is then the caller's."""
    ranks = _Accompanied(1, 1, 1, 0)

    def work():
        with uncounted_passes(model, ranks):
            model.compute_features(TOKENS)
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)) as caught:
            work()
        assert caught.value is error
    assert (gathered, ranks.said) == ([*model.transformer.h] * 2, [1, 0, 0, 0])
    model.compute_features(TOKENS)
    assert len(ranks.said) == 4  # announced only within


def test_nobody_is_asked_once_a_rank_is_lost(model, gathered):
    ranks = _Accompanied()
    with pytest.raises(RankLostError), uncounted_passes(model, ranks):
        raise RankLostError("rank 1 ended")
    assert (gathered, ranks.said) == ([], [])


def test_passes_of_every_kind_follow_each_other(model):
    """torch gathers a pass with gradients into what it made for one in inference mode."""
    features = model.compute_features(TOKENS)
    even_out_passes(model, _Accompanied(1), 0)
    again = model(TOKENS)
    assert torch.equal(_make_model()(TOKENS), again)
    assert torch.equal(features[-1], _make_model().compute_features(TOKENS)[-1])
