"""Checkpointing and compiling change no result, no name, and what they say they change."""

import shutil

import pytest
import torch

from skip2bench.cache.skip_cache import supervised_rows
from skip2bench.config.methods import METHODS
from skip2bench.config.train import TrainConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.machine.memory import count_saved_bytes
from skip2bench.models.base import load_checkpoint
from skip2bench.models.loss import token_loss
from skip2bench.models.methods import build_model, resolve_method
from skip2bench.models.switches import (
    check_can_compile,
    checkpoint_blocks,
    compile_model,
    is_compiled,
)

IDS = torch.arange(120).view(3, 40)


@pytest.fixture
def make(tiny_checkpoint):
    """A method's model on the tiny base, in training mode."""

    def build(method, dropout=0.1):
        base = load_checkpoint(tiny_checkpoint, torch.device("cpu"), torch.float32)
        config = TrainConfig(lora_dropout=dropout, blocks="all")
        settings = resolve_method(method, "all", config, base.config)
        return build_model(settings, base, torch.device("cpu"), seed=1).train()

    return build


def loss_and_gradients(model):
    torch.manual_seed(3)
    loss = token_loss(model, IDS, *supervised_rows(IDS))
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def saved_bytes(model):
    return count_saved_bytes(
        lambda: token_loss(model, IDS, *supervised_rows(IDS)), list(model.parameters())
    )


WALKED = ("lora", "lora-all", "full", "full+lora")
UNWALKED = ("skip", "last", "lora-last")


@pytest.mark.parametrize("method", WALKED + UNWALKED)
def test_checkpointing_changes_neither_loss_nor_gradients(make, method):
    plain, changed = make(method), make(method)
    names = list(changed.state_dict())
    checkpoint_blocks(changed)
    loss, gradients = loss_and_gradients(plain)
    own_loss, own_gradients = loss_and_gradients(changed)
    assert torch.equal(own_loss, loss)
    assert own_gradients.keys() == gradients.keys()
    assert all(torch.equal(own_gradients[name], gradients[name]) for name in gradients)
    assert list(changed.state_dict()) == names


@pytest.mark.parametrize("method", WALKED)
def test_a_checkpointed_block_keeps_its_input_alone(make, method):
    model = make(method)
    before = saved_bytes(model)
    checkpoint_blocks(model)
    after = saved_bytes(model)
    inputs = model.config.n_layer * IDS.numel() * model.config.n_embd * 4
    head = saved_bytes(make("lora-last"))  # lm_head's input and the logits
    assert after <= head + inputs + 40_000
    assert after < before / 3


@pytest.mark.parametrize("method", UNWALKED)
def test_blocks_that_no_gradient_walks_keep_nothing_either_way(make, method):
    model = make(method)
    before = saved_bytes(model)
    checkpoint_blocks(model)
    assert saved_bytes(model) == before


@pytest.mark.parametrize("method", ["lora", "full", "skip2"])
def test_a_checkpointed_run_ends_with_the_same_adapter(train, method):
    file = "lit_model.pth" if method == "full" else "lit_model.pth.lora"
    file = "adapter.safetensors" if METHODS[method].is_skip else file
    ends = []
    for is_on in (False, True):
        summary, metrics, _, folder = train(
            f"{method}-{is_on}", method=method, lora_dropout=0.2, gradient_checkpointing=is_on
        )
        assert summary["gradient_checkpointing"] is is_on
        assert f"gradient_checkpointing: {str(is_on).lower()}" in (
            (folder / "config.yaml").read_text()
        )
        ends.append((list(metrics["val_loss"]), (folder / "final" / file).read_bytes(), summary))
    assert ends[0][0] == ends[1][0]
    if method != "full":  # whose pickle is not the same twice
        assert ends[0][1] == ends[1][1]
    saved = [end[2]["saved_for_backward_bytes"] for end in ends]
    assert (saved[0] == saved[1]) if method == "skip2" else (saved[1] < saved[0] / 2)


@pytest.mark.parametrize(
    ("device", "name", "missing"),
    [("cpu", "CXX", "'no-such-compiler'"), ("cuda", "CC", "'no-such-compiler'")],
)
def test_a_missing_compiler_is_one_line(monkeypatch, device, name, missing):
    monkeypatch.setenv(name, "no-such-compiler")
    monkeypatch.setattr("skip2bench.models.switches.find_spec", lambda _: object())
    with pytest.raises(Skip2BenchError, match=f"{missing} is not found.*leave --compile out"):
        check_can_compile(torch.device(device))


def test_a_gpu_without_triton_is_one_line(monkeypatch):
    monkeypatch.setattr("skip2bench.models.switches.find_spec", lambda _: None)
    with pytest.raises(Skip2BenchError, match="pip install triton"):
        check_can_compile(torch.device("cuda"))


def test_a_run_without_a_compiler_writes_nothing(train, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(Skip2BenchError, match="not found"):
        train(compile=True)
    assert not (train.folder / "run").exists()


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def test_compiling_keeps_names_and_marks_the_model(make):
    model = make("skip")
    names = list(model.state_dict())
    assert not is_compiled(model)
    compile_model(model)
    assert is_compiled(model)
    assert list(model.state_dict()) == names


def test_the_first_step_comes_before_whatever_else_would_compile_it(train, monkeypatch):
    from skip2bench.train import loop

    order = []

    def spy(name):
        original = getattr(loop, name)
        monkeypatch.setattr(loop, name, lambda *a: order.append(name) or original(*a))

    for name in ("take_step", "_measure_saved_bytes"):
        spy(name)
    monkeypatch.setattr("skip2bench.train.parts.compile_model", lambda model: None)
    summary, *_ = train("compiled", method="lora", compile=True, max_steps=2)
    assert order == ["take_step", "_measure_saved_bytes", "take_step"]
    order.clear()
    plain, *_ = train("plain", method="lora", max_steps=2)
    assert order == ["_measure_saved_bytes", "take_step", "take_step"]
    assert summary["saved_for_backward_bytes"] == plain["saved_for_backward_bytes"]


def test_the_products_of_compiled_lora_are_its_grouped_convolution(make):
    plain, changed = make("lora-all", dropout=0.0), make("lora-all", dropout=0.0)
    for model in (plain, changed):
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                torch.nn.init.normal_(parameter, generator=torch.manual_seed(1))
    compile_model(changed)
    one, other = (model.transformer.h[0].attn.qkv for model in (plain, changed))
    x, weight = torch.randn(2, one.lora_A.size(0), 7), one.lora_B.unsqueeze(-1)
    torch.testing.assert_close(other.conv1d(x, weight), one.conv1d(x, weight))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("method", ["lora", "skip2"])
def test_a_compiled_run_has_the_same_losses(train, method):
    common = {"method": method, "max_steps": 5, "eval_interval": 5, "micro_batch_size": 4}
    plain_summary, plain, _, _ = train("plain", **common)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    summary, metrics, _, folder = train(
        "compiled", compile=True, gradient_checkpointing=True, **common
    )
    assert summary["compile"] is True
    assert list(metrics["val_loss"]) == pytest.approx(list(plain["val_loss"]), abs=1e-4)
    # one for each way to run, not one for each length
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6
    saved, before = (s["saved_for_backward_bytes"] for s in (summary, plain_summary))
    assert 0 < saved < (before if method == "lora" else before + 1000)
    assert "_orig_mod" not in (folder / "final").joinpath(
        "lit_model.pth.lora" if method == "lora" else "adapter.safetensors"
    ).read_bytes().decode("latin-1")


@pytest.mark.slow
@needs_compiler
def test_streamed_blocks_compile(train):
    common = {"method": "skip2", "stream_blocks": True, "max_steps": 3}
    _, plain, _, _ = train("plain", **common)
    _, metrics, _, _ = train("compiled", compile=True, **common)
    assert list(metrics["val_loss"]) == pytest.approx(list(plain["val_loss"]), abs=1e-4)
