from dataclasses import replace

import pytest
import torch
from litgpt.config import Config
from tiny import TINY

from skip2bench.cache.algebra import Sizes, Use, choose_algebra, count_costs
from skip2bench.cache.loss import ServedLoss
from skip2bench.cache.skip_cache import Served
from skip2bench.machine.clock import count_flops
from skip2bench.models.loss import logits_loss
from skip2bench.models.skip import SkipGPT, SkipSettings


def make_sizes(**changes):
    """Llama-2-7B with four adapters of rank 16, in bfloat16."""
    values = {
        "n_adapters": 4,
        "rank": 16,
        "width": 64,
        "n_embd": 4096,
        "vocabulary": 32000,
        "stored_blocks": 5,
        "feature_bytes": 2,
        "logit_bytes": 2,
        "adds_to_logits": False,
    }
    return Sizes(**(values | changes))


@pytest.mark.parametrize("target", ["hidden", "logits"])
@pytest.mark.parametrize("algebra", ["head", "folded"])
@pytest.mark.parametrize("share_b", [False, True])
def test_counted_flops_are_those_that_torch_counts(algebra, target, share_b):
    """A step of one portion on the meta device: forward, backward, and the fold."""
    n, width, vocabulary = 64, 16, 320
    with torch.device("meta"):
        config = Config(**TINY, vocab_size=vocabulary, padded_vocab_size=vocabulary)
        settings = SkipSettings(blocks=(0, 2), r=2, alpha=4, target=target, share_b=share_b)
        model = SkipGPT(config, settings)
        model.requires_grad_(False)
        model.adapters.requires_grad_(True)
        served = Served(
            features=torch.empty(n, 3, width),
            targets=torch.empty(n, dtype=torch.long),
            base_logits=torch.empty(n, vocabulary) if algebra == "folded" else None,
        )
    losses = ServedLoss(model, algebra)

    def step():
        if algebra == "head" and target == "hidden":
            # the same products as the chunked loss, which checks its targets' values
            logits_loss(model.forward_features(served.features), served.targets).backward()
        else:
            losses(served).backward()
            losses.finish_step()

    sizes = make_sizes(
        n_adapters=2,
        rank=2,
        width=2 if share_b else 4,
        n_embd=width,
        vocabulary=vocabulary,
        adds_to_logits=target == "logits",
    )
    # so many passes that the price of making the base logits, paid once, vanishes
    costs = count_costs(sizes, Use(positions_per_step=n, passes=10**9))
    assert count_flops(step) == pytest.approx(costs[algebra].flops_per_position * n, rel=1e-6)


def test_folding_wins_where_adapters_are_thin_and_memory_is_near():
    costs = count_costs(make_sizes(), Use(positions_per_step=8000, passes=5))
    assert costs["head"].flops_per_position > 4 * costs["folded"].flops_per_position
    assert choose_algebra(costs, "cuda", "device").name == "folded"


def test_the_head_wins_where_its_price_is_less():
    thin = count_costs(make_sizes(), Use(positions_per_step=8000, passes=5))
    assert choose_algebra(thin, "cuda", "disk").name == "head"  # too far away
    wide = count_costs(
        make_sizes(n_adapters=32, rank=128, width=4096), Use(positions_per_step=8000, passes=5)
    )
    assert choose_algebra(wide, "cuda", "device").name == "head"
    once = count_costs(make_sizes(), Use(positions_per_step=16, passes=1))
    assert choose_algebra(once, "cuda", "device").name == "head"  # folded for few positions


def test_base_logits_are_paid_for_once():
    few, many = (count_costs(make_sizes(), Use(positions_per_step=8000, passes=p)) for p in (1, 10))
    assert few["folded"].flops_per_position > many["folded"].flops_per_position
    assert few["folded"].bytes_per_position > many["folded"].bytes_per_position
    assert few["head"] == many["head"]


def test_validation_counts_for_both():
    use = Use(positions_per_step=8000, passes=5)
    alone = count_costs(make_sizes(), use)
    with_val = count_costs(make_sizes(), replace(use, val_ratio=0.5, evaluations=10))
    for name in ("head", "folded"):
        assert with_val[name].flops_per_position > alone[name].flops_per_position
        assert with_val[name].bytes_per_position > alone[name].bytes_per_position
    # one position evaluated for each that is trained: forward alone, half of the head's work
    head = 2 * 4096 * 32000
    gained = with_val["head"].flops_per_position - alone["head"].flops_per_position
    assert gained == pytest.approx(head, rel=0.02)


def test_the_summary_says_both_costs():
    algebra = choose_algebra(
        count_costs(make_sizes(), Use(positions_per_step=9, passes=2)), "cpu", "ram"
    )
    assert algebra.name in ("head", "folded")
    assert set(algebra.costs) == {"head", "folded"}
    assert algebra.costs["head"].bytes_per_position == 5 * 4096 * 2
