"""The portions of a batch: pulled one by one, the next batch's made ready meanwhile."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from caches import build, make_model
from lightning.fabric import Fabric

import skip2bench.cache.portions
from skip2bench.cache.loss import ServedLoss
from skip2bench.cache.portions import Portion, PortionSource, make_passes
from skip2bench.cache.staging import Expected, Stager


@pytest.fixture
def make_source(samples, monkeypatch):
    """Portions of at most five positions from a cache of samples 0 to 3; sample 4 is recomputed."""

    def make(algebra="head", *, is_staged=False):
        monkeypatch.setattr(skip2bench.cache.portions, "is_worth_staging", lambda *_: is_staged)
        model = make_model().eval()
        cache = build(model, samples, range(4), n_logits=40 if algebra == "folded" else 0)
        loss, fabric = ServedLoss(model, algebra), Fabric(accelerator="cpu", devices=1)
        return model, PortionSource(fabric, model, samples, cache, loss, 5)

    return make


def test_a_portion_is_loaded_when_the_one_before_is_done_and_the_last_ends_the_batch():
    events, weight = [], torch.ones(1, requires_grad=True)

    def load(name):
        events.append(f"load {name}")
        return Portion(
            tensors=(), loss=lambda: weight.sum() * 4, finish=lambda: events.append(f"end {name}")
        )

    @contextmanager
    def phase(name):
        events.append(f"{name} {{")
        yield
        events.append("}")

    losses = make_passes(map(load, "ab"), 2.0, phase, torch.Tensor.backward)
    assert " ".join(events) == (
        "data { load a } forward { } backward { end a } "
        "data { load b } forward { } backward { end b } data { }"
    )
    assert [loss.item() for loss in losses] == [2, 2]
    assert not any(loss.requires_grad for loss in losses)


def test_a_batch_without_a_portion_has_no_loss():
    assert make_passes(iter(()), 1.0, nullcontext, torch.Tensor.backward) == []


@pytest.mark.parametrize("is_staged", [False, True])
def test_both_algebras_leave_the_same_gradients_after_the_last_portion(make_source, is_staged):
    found = []
    for algebra in ("head", "folded"):
        model, source = make_source(algebra, is_staged=is_staged)
        source.expect([0, 4, 3])
        *portions, last = source.portions(source.split([0, 4, 3]))
        assert len(portions) >= 2
        for portion in portions:
            portion.loss().backward()
            portion.finish()
        shared = source._loss._leaf
        assert (shared is not None) == (algebra == "folded")
        last.loss().backward()
        last.finish()
        assert source._loss._leaf is None
        found.append([model.adapters.lora_A.grad, model.adapters.lora_B.grad])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_what_is_expected_is_cut_once_and_another_batch_in_between_disturbs_nothing(
    make_source, monkeypatch
):
    _, source = make_source(is_staged=True)
    _, plain = make_source()
    (taken, take), (staged, stage) = ([], Stager.take), ([], Stager._stage)
    monkeypatch.setattr(Stager, "_stage", lambda *a: staged.append(a[1]) or stage(*a))
    monkeypatch.setattr(Stager, "take", lambda *a: taken.append(a[1]) or take(*a))
    source.expect([3, 0])
    expected = source._expected[3, 0]
    assert all(isinstance(part, Expected) for part in expected)
    for ids in ([1, 2], [3, 0], [3, 0]):
        portions = list(source.portions(source.split(ids)))
        others = list(plain.portions(plain.split(ids)))
        for one, other in zip(portions, others, strict=True):
            assert all(map(torch.equal, one.tensors, other.tensors))
    assert taken == expected  # once: those that nobody expects are read where they are
    assert [id(rows) for rows in staged] == [id(one.rows) for one in taken]
    assert source._expected == {}
