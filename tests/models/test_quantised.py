"""Weights in few bits: what is refused, what is quantised, and that no cache is mistaken.

What runs bitsandbytes itself (0.46 or newer has a CPU backend) is skipped where it is missing.
"""

import pytest
import torch

from skip2bench.config.train import TrainConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.models.adapters import merge_adapter
from skip2bench.models.base import load_checkpoint
from skip2bench.models.methods import build_model, count_parameters, resolve_method, trained_tensors
from skip2bench.models.quantised import choose_quantised_precision, quantise

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
KINDS = ("bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq")


@pytest.fixture
def bnb():
    return pytest.importorskip("bitsandbytes", "0.46", reason="needs the extra 'quantize'")


@pytest.fixture
def pretended(monkeypatch):
    """Bitsandbytes is there by name, and quantises nothing."""
    monkeypatch.setattr("skip2bench.models.quantised.find_spec", lambda _: object())
    monkeypatch.setattr("skip2bench.train.parts.quantise", lambda model, *_: model)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quantize": "nf4"}, "quantize is 'nf4'; choose from bnb.nf4"),
        ({"method": "full"}, "method 'full' trains some of them"),
        ({"method": "full+lora"}, "method 'full\\+lora' trains some of them"),
        ({"method": "last"}, "method 'last' trains some of them"),
        ({"method": "bias"}, "method 'bias' trains some of them"),
        ({"stream_blocks": True}, "leave quantize out"),
        ({"devices": 2}, "quantize runs on one device"),
        ({"precision": "32-true"}, "use --precision bf16-true or 16-true"),
        ({"precision": "bf16-mixed"}, "use --precision bf16-true or 16-true"),
        (
            {"quantize": "bnb.int8-training", "precision": "bf16-true"},
            "precision is 'bf16-true'; use --precision 16-true",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(values, message):
    with pytest.raises(Skip2BenchError, match=message):
        TrainConfig(**({"quantize": "bnb.nf4"} | values))


def test_without_bitsandbytes_one_line_says_what_to_install(train, monkeypatch):
    monkeypatch.setattr("skip2bench.models.quantised.find_spec", lambda _: None)
    with pytest.raises(Skip2BenchError, match=r"pip install 'skip2bench\[quantize\]'"):
        train(quantize="bnb.nf4")
    assert not (train.folder / "run").exists()


def test_auto_precision_is_what_the_kind_computes_in(pretended, monkeypatch):
    assert choose_quantised_precision("bnb.nf4", "auto", CPU) == "bf16-true"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert choose_quantised_precision("bnb.nf4", "auto", CUDA) == "bf16-true"
    assert choose_quantised_precision("bnb.int8-training", "auto", CUDA) == "16-true"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert choose_quantised_precision("bnb.fp4", "auto", CUDA) == "16-true"
    with pytest.raises(Skip2BenchError, match="use a CUDA GPU, or bnb"):
        choose_quantised_precision("bnb.int8-training", "auto", CPU)
    with pytest.raises(Skip2BenchError, match="use --device cpu"):
        choose_quantised_precision("bnb.nf4", "auto", torch.device("mps"))


def test_a_cache_serves_only_its_own_kind(train, pretended):
    common = {"precision": "bf16-true", "cache_dir": train.folder / "kept", "max_steps": 2}
    kept = [
        train(str(number), quantize=quantize, **common)[0]["cache_kept"]
        for number, quantize in enumerate((None, "bnb.nf4", "bnb.fp4", "bnb.nf4", None))
    ]
    assert kept == [False, False, False, True, True]


def test_a_run_records_it(train, pretended):
    summary, _, _, folder = train(quantize="bnb.nf4", max_steps=2)
    assert (summary["quantize"], summary["precision"]) == ("bnb.nf4", "bf16-true")
    assert "quantize: bnb.nf4" in (folder / "config.yaml").read_text()
    assert "bitsandbytes" in (folder / "environment.json").read_text()


def build(checkpoint, method, **values):
    base = load_checkpoint(checkpoint, CPU, torch.bfloat16)
    settings = resolve_method(method, "all", TrainConfig(**values), base.config)
    return build_model(settings, base, CPU, seed=1)


@pytest.mark.parametrize("quantize", KINDS)
@pytest.mark.parametrize("method", ["lora", "lora-last", "skip"])
def test_linear_layers_are_quantised_and_adapters_are_not(bnb, tiny_checkpoint, method, quantize):
    plain, model = build(tiny_checkpoint, method), build(tiny_checkpoint, method)
    quantise(model, quantize, torch.bfloat16, CPU)
    kinds = {type(layer) for layer in model.modules() if isinstance(layer, torch.nn.Linear)}
    assert all(issubclass(kind, bnb.nn.Linear4bit) for kind in kinds)
    assert count_parameters(model) == count_parameters(plain)
    own, others = trained_tensors(model), trained_tensors(plain)
    assert own.keys() == others.keys()
    assert all(torch.equal(own[name], others[name]) for name in own)
    held = sum(p.nbytes for p in model.transformer.h.parameters() if not p.requires_grad)
    full = sum(p.nbytes for p in plain.transformer.h.parameters() if not p.requires_grad)
    assert held < full / 3
    ids = torch.arange(40)[None]
    with torch.no_grad():
        distance = (model(ids) - plain(ids)).float().norm() / plain(ids).float().norm()
    assert 0 < distance < 0.3


def test_int8_layers_hold_float16_and_do_not_train(bnb, tiny_checkpoint):
    base = load_checkpoint(tiny_checkpoint, CPU, torch.float16)
    settings = resolve_method("lora", "all", TrainConfig(), base.config)
    model = build_model(settings, base, CPU, seed=1)
    names = set(trained_tensors(model))
    quantise(model, "bnb.int8-training", torch.float16, CPU)
    linear = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    assert all(isinstance(layer, bnb.nn.Linear8bitLt) for layer in linear)
    assert {layer.weight.dtype for layer in linear} == {torch.float16}
    assert set(trained_tensors(model)) == names
    model(torch.arange(40)[None]).float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("target", ["hidden", "logits"])
def test_cached_and_uncached_agree_on_a_quantised_backbone(bnb, train, target):
    common = {"quantize": "bnb.nf4", "target": target}
    losses = [train(m, method=m, **common)[1]["val_loss"] for m in ("skip", "skip2")]
    assert list(losses[0]) == pytest.approx(list(losses[1]), abs=1e-2)  # in bfloat16
    assert losses[0].iloc[-1] < losses[0].iloc[0] - 0.2


def test_lora_trains_on_a_quantised_backbone_and_merges_onto_the_checkpoint(bnb, train):
    plain = train("plain", method="lora", precision="bf16-true")[1]["val_loss"]
    _, metrics, _, folder = train("run", method="lora", quantize="bnb.nf4")
    assert metrics["val_loss"].iloc[-1] == pytest.approx(plain.iloc[-1], abs=0.05)
    assert metrics["val_loss"].iloc[-1] < metrics["val_loss"].iloc[0] - 0.1
    merged = torch.load(merge_adapter(folder / "final"), weights_only=True)
    base = torch.load(train.checkpoint / "lit_model.pth", weights_only=True)
    assert merged.keys() == base.keys()
    same = merged["transformer.h.0.mlp.proj.weight"]
    assert torch.equal(same, base["transformer.h.0.mlp.proj.weight"].to(same.dtype))
    assert not torch.equal(
        merged["transformer.h.0.attn.qkv.weight"], base["transformer.h.0.attn.qkv.weight"]
    )


def test_a_checkpointed_run_on_a_quantised_backbone_is_the_same(bnb, train):
    common = {"method": "lora", "quantize": "bnb.nf4", "lora_dropout": 0.1}
    ends = [
        train(str(is_on), gradient_checkpointing=is_on, **common)[1]["val_loss"].tolist()
        for is_on in (False, True)
    ]
    assert ends[0] == ends[1]


def test_a_run_does_not_go_on_in_another_kind(train, pretended):
    train("run", method="lora", quantize="bnb.nf4", max_steps=2)
    with pytest.raises(Skip2BenchError, match=r"has quantize 'bnb\.nf4', not 'bnb\.fp4'"):
        train("run", method="lora", quantize="bnb.fp4", max_steps=2, resume=True)


@pytest.mark.gpu
@pytest.mark.parametrize("quantize", [*KINDS, "bnb.int8-training"])
@pytest.mark.parametrize("method", ["lora", "skip2"])
def test_quantised_training_on_a_gpu(bnb, train, method, quantize):
    summary, metrics, _, _ = train(method=method, quantize=quantize, device="cuda")
    assert summary["quantize"] == quantize
    assert metrics["val_loss"].iloc[-1] < metrics["val_loss"].iloc[0]
