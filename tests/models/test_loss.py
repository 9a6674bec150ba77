from dataclasses import asdict

import pytest
import torch
from litgpt.lora import GPT as LoraGPT
from litgpt.lora import Config as LoraConfig
from litgpt.model import GPT
from tiny import ARCHITECTURES, small_config
from torch import nn

from skip2bench.cache.skip_cache import supervised_rows
from skip2bench.data.samples import IGNORE_INDEX
from skip2bench.machine.memory import count_saved_bytes
from skip2bench.models import loss
from skip2bench.models.loss import head_loss, logits_loss, token_loss


def make(n, dtype=torch.float32, bias=False):
    torch.manual_seed(0)
    head = nn.Linear(8, 1000, bias=bias, dtype=dtype).requires_grad_(False)
    return head, torch.randn(n, 8, dtype=dtype, requires_grad=True), torch.randint(1000, (n,))


def backward(loss, hidden):
    hidden.grad = None
    loss.backward()
    return loss.detach(), hidden.grad


@pytest.mark.parametrize("n", [1, 40, 4100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("way", ["sliced", "one slice", "chunked"])
def test_head_loss_is_that_of_all_logits(n, bias, way, monkeypatch):
    head, hidden, targets = make(n, bias=bias)
    if way == "sliced":  # far more rows than fit: slices of 256 of 1,000 columns
        monkeypatch.setattr(loss, "_SLICE_BYTES", 1)
    cap = (lambda logits: logits) if way == "chunked" else None
    expected = backward(logits_loss(head(hidden), targets), hidden)
    found = backward(head_loss(head, cap, hidden, targets), hidden)
    torch.testing.assert_close(found, expected)


def test_a_maximum_that_grows_from_slice_to_slice_loses_nothing(monkeypatch):
    monkeypatch.setattr(loss, "_SLICE_BYTES", 1)
    head, hidden, targets = make(7)
    with torch.no_grad():
        head.weight.mul_(torch.linspace(0.1, 300, len(head.weight))[:, None])
    expected = backward(logits_loss(head(hidden), targets), hidden)
    torch.testing.assert_close(
        backward(head_loss(head, None, hidden, targets), hidden), expected, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("spread", [50, 300])
def test_probabilities_that_a_float_can_hardly_hold_cost_no_exactness(spread):
    head, hidden, targets = make(40)
    with torch.no_grad():
        hidden *= spread
    expected = backward(logits_loss(head(hidden), targets), hidden)
    torch.testing.assert_close(backward(head_loss(head, None, hidden, targets), hidden), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_is_a_float32_sum(dtype):
    head, hidden, targets = make(512 + 3, dtype)
    loss = head_loss(head, None, hidden, targets)
    assert loss.dtype == torch.float32
    exact = (hidden.double() @ head.weight.double().T).float()
    rtol = {"rtol": 1e-6, "atol": 0} if dtype == torch.float32 else {"rtol": 1e-5, "atol": 0}
    torch.testing.assert_close(loss, logits_loss(exact, targets), **rtol)


def test_a_cap_is_part_of_the_gradient():
    head, hidden, targets = make(20)

    def cap(logits):
        return 2 * torch.tanh(logits / 2)

    expected = backward(logits_loss(cap(head(hidden)), targets), hidden)
    torch.testing.assert_close(backward(head_loss(head, cap, hidden, targets), hidden), expected)


@pytest.mark.parametrize("way", ["sliced", "chunked"])
def test_no_logits_are_kept(way):
    head, hidden, targets = make(2048)
    cap = (lambda logits: logits) if way == "chunked" else None
    saved = count_saved_bytes(lambda: head_loss(head, cap, hidden, targets), [*head.parameters()])
    assert saved <= 4 * (hidden.nbytes + targets.nbytes) < 2048 * 1000 * 4


def test_without_gradients_the_value_is_the_same():
    head, hidden, targets = make(512 + 3)
    expected = logits_loss(head(hidden), targets)
    with torch.no_grad():
        torch.testing.assert_close(head_loss(head, None, hidden.detach(), targets), expected)


def test_token_loss_leaves_out_what_is_not_supervised():
    torch.manual_seed(0)
    table = nn.Embedding(9, 9)
    ids = torch.tensor([[1, 2, 3, 4]])
    labels = torch.tensor([[IGNORE_INDEX, IGNORE_INDEX, 3, 4]])
    expected = logits_loss(table(ids)[0, 1:3], torch.tensor([3, 4]))
    torch.testing.assert_close(token_loss(table, ids, *supervised_rows(labels)), expected)


@pytest.fixture
def gpt():
    torch.manual_seed(0)
    return GPT(small_config("llama-2"))


@pytest.mark.parametrize("model_class", [GPT, LoraGPT])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_token_loss_and_its_gradients_are_those_of_all_logits(architecture, model_class):
    """For a head that is frozen, one that trains, and one with LoRA or a cap of its own way."""
    torch.manual_seed(0)
    config = small_config(architecture)
    if model_class is LoraGPT:
        lora = {"lora_r": 2, "lora_query": True, "lora_head": architecture == "pythia"}
        fields = {k: v for k, v in asdict(config).items() if k in LoraConfig.__dataclass_fields__}
        config = LoraConfig(**(fields | lora))
    model = model_class(config)
    ids, labels = torch.randint(40, (2, 9)), torch.randint(40, (2, 9))
    labels[:, :4] = IGNORE_INDEX
    rows, targets = supervised_rows(labels)
    for head_trains in (True, False):
        model.lm_head.requires_grad_(head_trains)
        found = []
        for summed in (
            lambda: logits_loss(model(ids).flatten(0, 1)[rows], targets),
            lambda: token_loss(model, ids, rows, targets),
        ):
            model.zero_grad()
            value = summed()
            value.backward()
            gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            found.append((value.detach(), gradients))
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            without = token_loss(model, ids, rows, targets)
        torch.testing.assert_close(without, found[0][0], rtol=1e-4, atol=1e-4)
        assert ("lm_head" in str(found[1][1].keys())) == head_trains


def test_only_logits_of_supervised_positions_are_made_and_they_are_kept_once(gpt):
    ids = torch.randint(40, (4, 32))
    labels = torch.where(torch.arange(32) < 30, IGNORE_INDEX, ids)
    rows, targets = supervised_rows(labels)
    gpt.requires_grad_(False)
    gpt.transformer.ln_f.requires_grad_(True)
    held = [*gpt.parameters(), ids, rows, targets]
    assert count_saved_bytes(lambda: token_loss(gpt, ids, rows, targets), held) < 4 * 32 * 40 * 4


def test_without_a_supervised_position_the_loss_is_zero(gpt):
    none = torch.empty(0, dtype=torch.long)
    assert token_loss(gpt, torch.randint(40, (1, 5)), none, none).item() == 0
