import pytest
import torch
from torch import nn

import skip2bench.models.loss
from skip2bench.data.samples import IGNORE_INDEX
from skip2bench.machine.memory import count_saved_bytes
from skip2bench.models.loss import CHUNK, head_loss, logits_loss, token_loss


def make(n, dtype=torch.float32, bias=False):
    torch.manual_seed(0)
    head = nn.Linear(8, 50, bias=bias, dtype=dtype).requires_grad_(False)
    return head, torch.randn(n, 8, dtype=dtype, requires_grad=True), torch.randint(50, (n,))


def backward(loss, hidden):
    hidden.grad = None
    loss.backward()
    return loss.detach(), hidden.grad


@pytest.mark.parametrize("n", [1, CHUNK, CHUNK + 3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("way", ["fused", "chunked", "old torch"])
def test_head_loss_is_that_of_all_logits(n, bias, way, monkeypatch):
    head, hidden, targets = make(n, bias=bias)
    if way == "old torch":
        monkeypatch.delattr(nn.functional, "linear_cross_entropy", raising=False)
    cap = (lambda logits: logits) if way == "chunked" else None
    expected = backward(logits_loss(head(hidden), targets), hidden)
    found = backward(head_loss(head, cap, hidden, targets), hidden)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_is_a_float32_sum(dtype):
    head, hidden, targets = make(CHUNK + 3, dtype)
    loss = head_loss(head, None, hidden, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, logits_loss(head(hidden), targets))


def test_a_cap_is_part_of_the_gradient():
    head, hidden, targets = make(20)

    def cap(logits):
        return 2 * torch.tanh(logits / 2)

    expected = backward(logits_loss(cap(head(hidden)), targets), hidden)
    torch.testing.assert_close(backward(head_loss(head, cap, hidden, targets), hidden), expected)


@pytest.mark.parametrize("way", ["fused", "chunked"])
def test_no_logits_are_kept(way, monkeypatch):
    head, hidden, targets = make(4 * CHUNK)
    if way == "chunked":
        monkeypatch.setattr(skip2bench.models.loss, "_torch_can_fuse", lambda *_: False)
    saved = count_saved_bytes(lambda: head_loss(head, None, hidden, targets), [*head.parameters()])
    assert saved <= 4 * (hidden.nbytes + targets.nbytes) < 4 * CHUNK * 50 * 4


def test_without_gradients_the_value_is_the_same():
    head, hidden, targets = make(CHUNK + 3)
    expected = logits_loss(head(hidden), targets)
    with torch.no_grad():
        torch.testing.assert_close(head_loss(head, None, hidden.detach(), targets), expected)


def test_token_loss_leaves_out_what_is_not_supervised():
    torch.manual_seed(0)
    table = nn.Embedding(9, 9)
    ids = torch.tensor([[1, 2, 3, 4]])
    labels = torch.tensor([[IGNORE_INDEX, IGNORE_INDEX, 3, 4]])
    expected = logits_loss(table(ids)[0, 1:3], torch.tensor([3, 4]))
    torch.testing.assert_close(token_loss(table, ids, labels), expected)
