"""Losses from base logits against autograd's."""

import pytest
import torch

from skip2bench.sweep import folded
from skip2bench.sweep.folded import FoldedLoss, Update


@pytest.mark.parametrize("spread", [1.0, 60.0], ids=["near", "far"])
@pytest.mark.parametrize("rows_at_once", [1000, 3])
def test_loss_and_gradients_are_those_of_autograd(monkeypatch, spread, rows_at_once):
    monkeypatch.setitem(folded._CHUNK_BYTES, "cpu", 4 * 50 * rows_at_once)
    torch.manual_seed(0)
    base, targets = spread * torch.randn(11, 50), torch.randint(50, (11,))
    reduced, fold = torch.randn(11, 4), spread * torch.randn(50, 4)
    leaf, matrix = reduced.clone().requires_grad_(), fold.clone().requires_grad_()
    logits = base + leaf @ matrix.t()
    expected = 0.25 * torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    expected.backward()

    gathered = torch.ones(50, 4)
    update = Update(reduced=reduced, fold=fold, gradient=gathered)
    loss, gradient = FoldedLoss()(base, targets, update, 0.25)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gathered - 1, matrix.grad, rtol=1e-4, atol=1e-5)

    only = Update(reduced=reduced, fold=fold, gradient=None)
    loss, gradient = FoldedLoss()(base, targets, only, 0.25)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert gradient is None
