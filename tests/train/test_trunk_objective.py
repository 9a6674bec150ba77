"""LoRA on the last blocks: over a cached trunk, the run that runs the trunk in every step."""

import json

import pytest
import torch

from skip2bench.errors import Skip2BenchError
from skip2bench.models.adapters import load_trained_model
from skip2bench.models.top import TopGPT

STEPS = {"max_steps": 30, "epochs": 20, "eval_interval": 10, "top_blocks": 2}
CACHED, UNCACHED = "lora-top", "lora-top-uncached"


@pytest.fixture
def uncached(train):
    known = {}

    def run(**changes):
        key = tuple(changes.items())
        if key not in known:
            name = f"uncached{len(known)}"
            _, metrics, steps, _ = train(name, method=UNCACHED, **(STEPS | changes))
            known[key] = (steps["loss"], metrics["val_loss"])
        return known[key]

    return run


def assert_same(result, expected, tolerance=1e-5):
    _, metrics, steps, _ = result
    losses, val_losses = expected
    assert len(steps) == len(losses) > 0
    assert (steps["loss"] - losses).abs().max() < tolerance
    assert (metrics["val_loss"] - val_losses).abs().max() < tolerance


@pytest.mark.parametrize(
    "changes",
    [
        {"cache_tier": "ram"},
        {"cache_tier": "disk"},
        {"cache_max_bytes": "90000"},  # 72 bytes a position: about a third fits
        {"cache_max_bytes": "1"},
        {"top_blocks": 3, "lora_mlp": True, "lora_head": True},
        {"lora_dropout": 0.2},
        {"gradient_checkpointing": True},
    ],
    ids=str,
)
def test_steps_are_those_without_a_cache(train, uncached, changes):
    own = {name: value for name, value in changes.items() if not name.startswith("cache_")}
    result = train(method=CACHED, **(STEPS | changes))
    assert_same(result, uncached(**own))
    summary, _, steps, _ = result
    assert steps["loss"].iloc[-3:].mean() < steps["loss"].iloc[:3].mean()
    assert (summary["recomputed_samples"] > 0) == ("cache_max_bytes" in changes)
    assert summary["top_blocks"] == changes.get("top_blocks", 2)
    assert summary["algebra"] is None


def test_it_holds_one_vector_a_position(train, tiny_data):
    summary, *_ = train(method=CACHED, **STEPS)
    tokens = summary["cache_bytes"] / (16 * 4 + 8)
    assert tokens == int(tokens)
    assert tokens > 10 * summary["train_samples"]


def test_adapters_are_on_the_last_blocks_alone_and_load_as_lora(train):
    summary, *_, folder = train(method=CACHED, **STEPS)
    lora, *_ = train("lora", method="lora", max_steps=1)
    assert 2 * summary["trainable_parameters"] == lora["trainable_parameters"]
    model, settings, _ = load_trained_model(folder / "final")
    assert settings.method.is_traditional
    assert not isinstance(model, TopGPT)
    tensors = torch.load(folder / "final/lit_model.pth.lora")["model"]
    moved = {name.split(".")[2] for name, value in tensors.items() if value.any()}
    assert moved == {"2", "3"}


def test_a_kept_cache_serves_whatever_trains_above_it(train, uncached, tmp_path, monkeypatch):
    kept = {"method": CACHED, "cache_dir": tmp_path / "kept", **STEPS}
    assert_same(train("first", **kept), uncached())
    monkeypatch.setattr(
        "skip2bench.cache.build.fill", lambda *_: pytest.fail("the trunk ran over the samples")
    )
    second = train("second", **(kept | {"lora_r": 2, "lora_key": True}))
    assert second[0]["cache_kept"]
    assert_same(second, uncached(lora_r=2, lora_key=True))


def test_caches_of_skip_adapters_are_others(train, tmp_path):
    kept = {"cache_dir": tmp_path / "kept"}
    train("skip2", method="skip2", blocks="1,3", **kept)
    summary, *_ = train("top", method=CACHED, **(STEPS | kept))
    assert not summary["cache_kept"]
    manifests = [json.loads(p.read_text()) for p in (tmp_path / "kept").glob("*/manifest.json")]
    found = sorted((m["layout"]["blocks"], "whole_samples" in m["layout"]) for m in manifests)
    assert found == [([1], True), ([1], True), ([1, 3], False), ([1, 3], False)]


@pytest.mark.parametrize("top_blocks", [4, 9])
def test_some_block_has_to_be_left_to_cache(train, top_blocks):
    with pytest.raises(Skip2BenchError, match=f"top_blocks is {top_blocks}; the model has 4 bl"):
        train(method=CACHED, top_blocks=top_blocks)


def test_without_a_number_it_is_a_quarter_of_the_blocks(train):
    summary, *_ = train(method=CACHED, max_steps=1)
    assert summary["top_blocks"] == 1
    assert summary["label"] == "LoRA-Top (1 block)"
