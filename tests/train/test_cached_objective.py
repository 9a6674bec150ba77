"""Skip-Cache in whole runs: the trajectory of `skip`, wherever the cache lives."""

import json

import pytest
import torch
from torch import nn

from skip2bench.cache import algebra
from skip2bench.cache.checksums import read_file
from skip2bench.errors import Skip2BenchError

STEPS = {"max_steps": 50, "epochs": 20, "eval_interval": 10}


@pytest.fixture
def skip(train):
    """Losses of 50 uncached steps; one run for a precision and target."""
    known = {}

    def run(**changes):
        key = tuple(changes.items())
        if key not in known:
            _, metrics, steps, _ = train(f"skip{len(known)}", method="skip", **(STEPS | changes))
            known[key] = (steps["loss"], metrics["val_loss"])
        return known[key]

    return run


def assert_same(result, expected, tolerance):
    _, metrics, steps, _ = result
    losses, val_losses = expected
    assert len(steps) == len(losses) == 50
    assert (steps["loss"] - losses).abs().max() < tolerance
    assert (metrics["val_loss"] - val_losses).abs().max() < tolerance


# a position takes 3 blocks x 16 x 4 + 8 bytes, and there are 2,400 of them: a third fits
PARTIAL = "160000"


@pytest.mark.parametrize(
    "changes",
    [
        {"cache_tier": "ram"},
        {"cache_tier": "device"},
        {"cache_tier": "disk"},
        {"cache_max_bytes": PARTIAL},
        {"cache_max_bytes": PARTIAL, "cache_tier": "disk"},
        {"cache_max_bytes": "1"},
        {"target": "logits"},
        {"target": "logits", "cache_max_bytes": PARTIAL},
        {"blocks": "2"},
        {"features": "raw"},
        {"features": "raw", "cache_max_bytes": PARTIAL},
        {"share_b": True},
        {"share_b": True, "target": "logits", "cache_max_bytes": PARTIAL},
    ],
    ids=str,
)
def test_fifty_steps_are_those_of_skip(train, skip, changes):
    own = ("target", "blocks", "features", "share_b")
    kept = {name: changes[name] for name in own if name in changes}
    result = train(method="skip2", **(STEPS | changes))
    assert_same(result, skip(**kept), 1e-5)
    summary, folder = result[0], result[3]
    assert (summary["recomputed_samples"] > 0) == ("cache_max_bytes" in changes)
    assert summary["cache_tier"] == {"device": "ram"}.get(
        changes.get("cache_tier"), changes.get("cache_tier", "ram")
    )
    assert not (folder / ".cache").exists()
    if "cache_max_bytes" in changes:
        limit = int(changes["cache_max_bytes"])
        assert summary["cache_bytes"] + summary["val_cache_bytes"] <= limit


def test_both_algebras_are_those_of_skip(train, skip, monkeypatch):
    for balance, name in ((0, "folded"), (10**9, "head")):
        monkeypatch.setitem(algebra.FLOPS_PER_BYTE, ("cpu", "ram"), balance)
        result = train(name, method="skip2", skip_r=1, blocks="0", **STEPS)
        assert result[0]["algebra"] == name
        assert_same(result, skip(skip_r=1, blocks="0"), 1e-5)


@pytest.mark.parametrize("name", ["folded", "head"])
@pytest.mark.parametrize("share_b", [False, True])
def test_the_algebra_that_is_asked_for_is_taken(train, skip, name, share_b):
    result = train(name, method="skip2", algebra=name, share_b=share_b, **STEPS)
    assert result[0]["algebra"] == name
    assert_same(result, skip(share_b=share_b), 1e-5)


@pytest.mark.parametrize("changes", [{}, {"cache_tier": "disk"}], ids=str)
def test_bfloat16_stays_within_a_hundredth(train, skip, changes):
    result = train(method="skip2", precision="bf16-true", **(STEPS | changes))
    assert_same(result, skip(precision="bf16-true"), 1e-2)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_narrow_caches_end_near_the_exact_loss(train, dtype):
    exact = train("exact", method="skip2", **STEPS)[0]
    narrow = train(dtype, method="skip2", cache_dtype=dtype, **STEPS)[0]
    assert narrow["cache_bytes"] < 0.6 * exact["cache_bytes"]
    assert narrow["final_val_loss"] == pytest.approx(exact["final_val_loss"], rel=5e-3)


@pytest.mark.parametrize("tier", ["ram", "disk"])
def test_a_cache_read_back_gives_the_same_run_without_a_forward_pass(
    train, skip, tier, tmp_path, monkeypatch
):
    settings = {"method": "skip2", "cache_dir": tmp_path / "kept", "cache_tier": tier, **STEPS}
    first = train("first", **settings)
    assert_same(first, skip(), 1e-5)
    assert first[0]["cache_kept"] is False
    assert first[0]["shared_prefix_tokens"] > 8  # the prompt's first lines
    monkeypatch.setattr(
        "skip2bench.cache.build.fill", lambda *_: pytest.fail("the backbone ran over the samples")
    )
    second = train("second", **settings)
    assert_same(second, skip(), 1e-5)
    assert second[0]["cache_kept"] is True
    # another rate, rank, alpha, dropout, seed, epoch count, and fewer blocks: the same cache
    changed = train(
        "third",
        **settings
        | {"learning_rate": 3e-3, "skip_r": 3, "lora_alpha": 8, "lora_dropout": 0.1, "seed": 7}
        | {"epochs": 2, "max_steps": None, "blocks": "3,1"},
    )
    assert changed[0]["status"] == "ok"
    assert_same(train("fourth", **settings | {"blocks": "0"}), skip(blocks="0"), 1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bf16-true"},
        {"max_seq_length": 60},
        {"mask_prompt": True},
        {"blocks": "0,1,2"},
        {"cache_dtype": "bf16"},
        {"prompt_style": "longform"},
    ],
    ids=str,
)
def test_what_changes_the_activations_builds_anew(train, change, tmp_path, monkeypatch):
    import skip2bench.cache.build as module

    builds = []
    fill = module.fill
    monkeypatch.setattr(module, "fill", lambda *a: (builds.append(1), fill(*a)))
    settings = {"method": "skip2", "cache_dir": tmp_path / "kept", "max_steps": 2}
    train("first", **settings)
    train("second", **settings)
    assert len(builds) == 2  # training and validation, once
    train("third", **settings | change)
    assert len(builds) >= 3


def test_other_weights_build_anew(train, tmp_path, tiny_checkpoint, monkeypatch):
    import shutil

    import skip2bench.cache.build as module

    settings = {"method": "skip2", "cache_dir": tmp_path / "kept", "max_steps": 2}
    train("first", **settings)
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    weights = torch.load(other / "lit_model.pth", weights_only=True)
    weights["transformer.h.0.attn.proj.weight"] *= 2
    torch.save(weights, other / "lit_model.pth")
    builds = []
    fill = module.fill
    monkeypatch.setattr(module, "fill", lambda *a: (builds.append(1), fill(*a)))
    train("second", **settings, checkpoint_dir=other)
    assert len(builds) == 2


@pytest.mark.parametrize("tier", ["ram", "disk"])
@pytest.mark.parametrize("harm", ["flipped", "foreign"])
def test_a_damaged_cache_is_built_anew_and_said_so(train, skip, harm, tier, tmp_path, capsys):
    """`foreign`: files and checksums in order, but not this model's numbers."""
    settings = {"method": "skip2", "cache_dir": tmp_path / "kept", "cache_tier": tier, **STEPS}
    train("first", **settings)
    for manifest_path in (tmp_path / "kept").glob("*/manifest.json"):
        path = manifest_path.parent / "features.bin"
        content = bytearray(path.read_bytes())
        for place in range(3, len(content), 4 if harm == "foreign" else len(content)):
            content[place] ^= 0x80  # the sign of a float
        path.write_bytes(content)
        if harm == "foreign":
            manifest = json.loads(manifest_path.read_text())
            manifest["files"]["features"]["checksum"] = read_file(path)
            manifest_path.write_text(json.dumps(manifest))
    assert_same(train("second", **settings), skip(), 1e-5)
    err = capsys.readouterr().err
    assert err.count("is not used") == 2
    assert ("checksum" in err) == (harm == "flipped")
    assert_same(train("third", **settings), skip(), 1e-5)
    assert "is not used" not in capsys.readouterr().err


def test_a_random_backbone_is_refused(train, monkeypatch):
    import skip2bench.train.parts

    build_model = skip2bench.train.parts.build_model

    def with_dropout(*args):
        model = build_model(*args)
        model.transformer.h[1].attn.proj = nn.Sequential(
            model.transformer.h[1].attn.proj, nn.Dropout(0.1)
        )
        return model

    monkeypatch.setattr(skip2bench.train.parts, "build_model", with_dropout)
    with pytest.raises(Skip2BenchError, match=r"dropout 0.1 in h\.1\.attn\.proj"):
        train(method="skip2")


def test_the_backbone_is_released_only_when_nothing_needs_it(train, monkeypatch):
    from skip2bench.models.skip import SkipGPT

    released = []
    monkeypatch.setattr(SkipGPT, "release_backbone", lambda self: released.append(self))
    train("complete", method="skip2")
    assert len(released) == 1
    train("partial", method="skip2", cache_max_bytes=PARTIAL, **STEPS)
    assert len(released) == 1


def test_the_projection_is_printed_first(train, capsys):
    train("pays", method="skip2", **STEPS)
    err = capsys.readouterr().err
    line = next(line for line in err.splitlines() if line.startswith("Skip-Cache: "))
    assert "to build" in line
    assert "paid for itself in epoch" in line
    train("single", method="skip2", epochs=1, max_steps=3)
    assert "it will not pay" in capsys.readouterr().err


def test_a_kept_cache_larger_than_the_cap_is_mapped(train, skip, tmp_path):
    settings = {"method": "skip2", "cache_dir": tmp_path / "kept", **STEPS}
    train("first", **settings)
    result = train("second", **settings, cache_max_bytes="1000")
    assert_same(result, skip(), 1e-5)
    assert (result[0]["cache_tier"], result[0]["recomputed_samples"]) == ("disk", 0)


def test_a_kept_cache_without_base_logits_serves_the_other_algebra(
    train, skip, tmp_path, monkeypatch
):
    balances = algebra.FLOPS_PER_BYTE
    thin = {"skip_r": 1, "blocks": "0"}
    settings = {"method": "skip2", "cache_dir": tmp_path / "kept", **thin, **STEPS}
    monkeypatch.setitem(balances, ("cpu", "ram"), 10**9)
    assert train("first", **settings)[0]["algebra"] == "head"
    monkeypatch.setitem(balances, ("cpu", "ram"), 0)
    result = train("second", **settings)
    assert result[0]["algebra"] == "head"
    assert_same(result, skip(**thin), 1e-5)


def test_saved_bytes_are_a_fraction_of_lora_s(train):
    """Of one step, from shapes: no time is involved."""
    lora = train("lora", method="lora", lora_r=8, max_steps=1)[0]
    skip2 = train("skip2", method="skip2", blocks="all", skip_r=16, max_steps=1)[0]
    assert skip2["saved_for_backward_bytes"] < 0.5 * lora["saved_for_backward_bytes"]
    assert skip2["steps_peak_memory_bytes"] <= skip2["peak_memory_bytes"]
