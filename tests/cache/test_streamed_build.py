"""Whole runs with --stream-blocks: those of the whole model, wherever the cache lives."""

import json
import shutil

import pytest
import torch

from skip2bench.cache import algebra
from skip2bench.cache.build import CacheBuilder
from skip2bench.cache.kept import CacheFolder
from skip2bench.cache.streaming import StreamedBackbone
from skip2bench.errors import Skip2BenchError
from skip2bench.models.skip import SkipGPT

STEPS = {"method": "skip2", "lora_dropout": 0.1, "max_steps": 6, "eval_interval": 3}


@pytest.fixture
def whole(train):
    """The run without streaming."""
    return lambda name="whole", **changes: train(name, **(STEPS | changes))


@pytest.fixture
def streamed(train, monkeypatch):
    """The run with it; no pass over the whole model is allowed."""

    def run(name="streamed", **changes):
        with monkeypatch.context() as patch:
            patch.setattr(SkipGPT, "compute_features", lambda *_: pytest.fail("the whole model"))
            return train(name, stream_blocks=True, **(STEPS | changes))

    return run


def assert_same(one, other):
    """Losses and adapters, bit for bit."""
    assert one[2]["loss"].tolist() == other[2]["loss"].tolist()
    assert one[1]["val_loss"].tolist() == other[1]["val_loss"].tolist()
    adapters = [run[3] / "final" / "adapter.safetensors" for run in (one, other)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cache_tier": "disk"},
        {"cache_tier": "disk", "cache_dtype": "int8", "target": "logits", "blocks": "1"},
        {"precision": "bf16-true", "blocks": "all"},
        {"precision": "bf16-mixed", "cache_tier": "disk"},
    ],
    ids=str,
)
def test_a_streamed_run_is_the_same_run(whole, streamed, changes):
    expected, found = whole(**changes), streamed(**changes)
    assert_same(found, expected)
    summary, _, _, folder = found
    assert not (folder / ".cache").exists()
    differing = ("streamed_blocks", "block_bytes", "hidden_states_bytes")
    differing += ("hidden_states_disk_bytes", "peak_anonymous_memory_bytes")
    assert set(summary) - set(expected[0]) == set(differing) - {"streamed_blocks"}
    assert (summary["streamed_blocks"], expected[0]["streamed_blocks"]) == (True, False)
    for name in ("cache_bytes", "val_cache_bytes", "cache_tier", "algebra", "total_parameters"):
        assert summary[name] == expected[0][name]
    assert summary["shared_prefix_tokens"] == expected[0]["shared_prefix_tokens"] > 8
    assert summary["cache_build_seconds"] > 0


def test_the_folded_algebra(whole, streamed, monkeypatch):
    balances = algebra.FLOPS_PER_BYTE
    monkeypatch.setitem(balances, ("cpu", "ram"), 0)
    thin = {"skip_r": 1, "blocks": "0"}
    found = streamed(**thin)
    assert found[0]["algebra"] == "folded"
    assert_same(found, whole(**thin))


@pytest.mark.parametrize("tier", ["ram", "disk"])
def test_kept_caches_are_the_same_files_and_serve_each_other(
    whole, streamed, tmp_path, tier, monkeypatch
):
    kept = [{"cache_dir": tmp_path / name, "cache_tier": tier} for name in ("one", "other")]
    first = whole(**kept[0])
    assert_same(streamed(**kept[1]), first)
    files = [sorted((tmp_path / name).glob("*/*")) for name in ("one", "other")]
    assert [f.relative_to(tmp_path / "one") for f in files[0]] == [
        f.relative_to(tmp_path / "other") for f in files[1]
    ]
    for one, other in zip(*files, strict=True):
        if one.suffix == ".bin":
            assert one.read_bytes() == other.read_bytes()
        else:
            ignored = {"created_at": None}
            assert json.loads(one.read_text()) | ignored == json.loads(other.read_text()) | ignored
    # and now the other way round
    monkeypatch.setattr(
        "skip2bench.cache.build.fill", lambda *_: pytest.fail("the backbone ran over the samples")
    )
    filled = []
    fill = StreamedBackbone.fill

    def count(self, tasks):
        filled.append([i for task in tasks for i in task.order.ids])
        fill(self, tasks)

    monkeypatch.setattr(StreamedBackbone, "fill", count)
    for run, place in ((whole, kept[1]), (streamed, kept[0])):
        again = run(f"again-{place['cache_dir'].name}", **place)
        assert again[0]["cache_kept"] is True
        assert_same(again, first)
    assert [len(ids) for ids in filled] == [3, 2]  # the few that are recomputed as a check


def test_the_side_that_is_missing_is_built_alone(whole, streamed, tmp_path, monkeypatch):
    settings = {"cache_dir": tmp_path / "kept"}
    first = whole(**settings)
    for manifest in (tmp_path / "kept").glob("*/manifest.json"):
        if json.loads(manifest.read_text())["about"]["side"] == "val":
            shutil.rmtree(manifest.parent)
    sides = []
    fill = StreamedBackbone.fill

    def count(self, tasks):
        sides.append([len(task.order.ids) for task in tasks])
        fill(self, tasks)

    monkeypatch.setattr(StreamedBackbone, "fill", count)
    second = streamed(**settings)
    assert_same(second, first)
    assert sides == [[3], [2]]  # three training samples to check, both of validation
    assert second[0]["cache_kept"] is True


def test_samples_that_do_not_fit_are_an_error_that_says_what_to_do(streamed, tmp_path):
    with pytest.raises(Skip2BenchError) as raised:
        streamed(cache_max_bytes="160000")
    summary = json.loads((tmp_path / "streamed" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert str(raised.value) == summary["error"]
    assert summary["error"] == (
        "26 samples too many for 156.2 KiB of Skip-Cache on ram, and stream_blocks holds no "
        "backbone to recompute them: raise --cache-max-bytes, use --cache-tier disk, or store "
        "less with --cache-dtype or --blocks"
    )


def test_a_full_disk_is_one_line(streamed, monkeypatch, tmp_path):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("skip2bench.cache.arrays._allocate", fail)
    for name, changes in (("scratch", {}), ("kept", {"cache_dir": tmp_path / "kept"})):
        with pytest.raises(Skip2BenchError, match=r"cannot write the cache to '.*' \(No space"):
            streamed(name, cache_tier="disk", **changes)
        assert not list(tmp_path.rglob("*.bin"))


def test_hidden_states_in_a_file(whole, streamed, monkeypatch):
    monkeypatch.setattr("skip2bench.cache.streaming.MEMORY_BYTES", 0)
    found = streamed()
    assert found[0]["hidden_states_disk_bytes"] == found[0]["hidden_states_bytes"] > 0
    assert not (found[3] / ".cache").exists()
    assert_same(found, whole())


def test_progress_is_one_bar_over_all_blocks(streamed, capsys):
    streamed()
    lines = capsys.readouterr().err.splitlines()
    (projection,) = [line for line in lines if line.startswith("Skip-Cache: ")]
    assert projection.startswith("Skip-Cache: 456.2 KiB on ram, validation included; about ")
    assert projection.endswith(" s to build, one of 4 blocks at a time")
    (bar,) = [line for line in lines if line.startswith("Skip-Cache, block by block: ")]
    assert "9,504/9,504 block tokens block 4 of 4" in bar


def test_a_float32_checkpoint_in_bfloat16_and_the_reverse(
    whole, streamed, tiny_checkpoint, tmp_path
):
    narrow = shutil.copytree(tiny_checkpoint, tmp_path / "narrow")
    weights = torch.load(narrow / "lit_model.pth", weights_only=True)
    torch.save(
        {"model": {key: value.bfloat16() for key, value in weights.items()}},
        narrow / "lit_model.pth",
    )
    for checkpoint, precision in ((tiny_checkpoint, "bf16-true"), (narrow, "32-true")):
        changes = {"checkpoint_dir": checkpoint, "precision": precision}
        assert_same(
            streamed(f"streamed-{precision}", **changes), whole(f"whole-{precision}", **changes)
        )


def test_a_cache_that_another_process_made_meanwhile_is_opened(
    whole, streamed, tmp_path, monkeypatch
):
    settings = {"cache_dir": tmp_path / "kept"}
    first = whole(**settings)
    locked, looked = [], []
    lock, open_kept = CacheFolder.lock, CacheBuilder.open_kept

    def note_lock(self, name):
        locked.append(name)
        return lock(self, name)

    def find_later(self, side, samples, ids):
        looked.append(side)
        return open_kept(self, side, samples, ids) if looked.count(side) > 1 else None

    monkeypatch.setattr(CacheFolder, "lock", note_lock)
    monkeypatch.setattr(CacheBuilder, "open_kept", find_later)
    second = streamed(**settings)
    assert_same(second, first)
    assert second[0]["cache_kept"] is True
    # always in one order, so that two processes never wait for each other
    assert locked == sorted(locked)
    assert len(locked) == 2


def test_a_streamed_run_gives_freed_memory_back(streamed, monkeypatch):
    calls = []
    for name in ("hold_freed_memory", "return_freed_memory"):
        monkeypatch.setattr(f"skip2bench.train.run.{name}", lambda name=name: calls.append(name))
    streamed(max_steps=1)
    assert calls == ["return_freed_memory"]
