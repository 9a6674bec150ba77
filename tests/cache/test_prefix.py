import pytest
import torch
from caches import CPU, PREFIX, build, make_model, make_samples

from skip2bench.cache.prefix import Backbone, find_prefix
from skip2bench.data.samples import Samples
from skip2bench.machine.clock import count_flops


def test_the_prefix_is_what_all_start_with():
    model, samples = make_model(), make_samples()
    assert find_prefix(model, samples, range(4)).tolist() == PREFIX
    other = Samples(input_ids=[*samples.input_ids, torch.arange(20)], labels=samples.labels)
    assert len(find_prefix(model, other, range(5))) == 0


def test_every_sample_keeps_a_token_of_its_own():
    model = make_model()
    ids = [torch.arange(12), torch.arange(12)]
    assert find_prefix(model, Samples(input_ids=ids, labels=ids), [0, 1]).tolist() == list(
        range(11)
    )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"n_query_groups": 1},
        {"rotary_percentage": 0.5},
        {"norm_qk": True},
        {"parallel_residual": True},
    ],
)
@pytest.mark.parametrize("first", [0, 12, 14])
def test_a_shared_prefix_changes_nothing_but_rounding(config, first, monkeypatch):
    model, samples = make_model(**config), make_samples(first)
    shared = build(model, samples, range(4)).arrays.tensors
    monkeypatch.setattr("skip2bench.cache.prefix._SHORTEST", 1000)
    plain_cache = build(model, samples, range(4))
    plain = plain_cache.arrays.tensors
    assert torch.equal(shared["targets"], plain["targets"])
    torch.testing.assert_close(shared["features"], plain["features"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"sliding_window_size": 4, "sliding_window_indices": [1, 1, 1, 1]},
        {"attention_logit_softcapping": 5.0},
    ],
)
def test_other_kinds_of_attention_do_without(config):
    assert len(find_prefix(make_model(**config), make_samples(), range(4))) == 0


def test_the_prefix_is_computed_once():
    model, samples = make_model(), make_samples(12)
    ids = torch.stack([s[:13] for s in samples.input_ids])  # twelve shared tokens and one
    rows = torch.tensor([12, 25, 38, 51])
    plain, prefix = (Backbone(model, p, CPU) for p in (torch.empty(0).long(), torch.tensor(PREFIX)))
    flops = [count_flops(lambda b=b: b.compute(ids, rows)) for b in (plain, prefix)]
    assert flops[1] < flops[0] / 4


def test_the_model_is_itself_again_afterwards():
    model, samples = make_model(), make_samples()
    tokens = samples.input_ids[0][None]
    model.eval()
    before = model(tokens)
    build(model, samples, range(4))
    model.eval()
    assert torch.equal(model(tokens), before)
