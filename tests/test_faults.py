"""What a run does when the machine fails it: an error that says what to do, or a correct run."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pandas as pd
import pytest
import torch

import skip2bench.io.whole
import skip2bench.results.run_folder
import skip2bench.train.loop
import skip2bench.train.run
from skip2bench.cache.kept import CacheFolder
from skip2bench.errors import Skip2BenchError
from skip2bench.results.reading import read_run

BLOCK = 4096


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if (
        sys.platform != "linux"
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Leave no room on the disk; the file that takes it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(BLOCK)):
            pass
    assert shutil.disk_usage(disk).free == 0
    return ballast


@pytest.fixture
def at_step(monkeypatch):
    """Have something happen before a step."""
    take_step = skip2bench.train.loop.take_step

    def happen(step, action):
        def take(run, number, *arguments):
            if number + 1 == step:
                action()
            return take_step(run, number, *arguments)

        monkeypatch.setattr(skip2bench.train.loop, "take_step", take)

    return happen


def same_as_undisturbed(train, folder, **changes):
    """Compare a finished run with one that nothing happened to."""
    _, metrics, steps, undisturbed = train("undisturbed", **changes)
    own = folder / read_run(folder).summary.log_folder
    assert pd.read_csv(own / "steps.csv")["loss"].equals(steps["loss"])
    assert pd.read_csv(own / "metrics.csv")["val_loss"].equals(metrics["val_loss"])
    names = [path.name for path in (undisturbed / "final").iterdir()]
    for name in names:
        assert (folder / "final" / name).read_bytes() == (undisturbed / "final" / name).read_bytes()


def test_a_state_that_cannot_be_saved_does_not_stop_a_run(train, disk, at_step, capsys):
    ballast = disk / "ballast"
    at_step(5, lambda: fill(disk))
    changes = {"method": "lora", "save_interval": 2}
    steps = iter(range(99))

    def make_room(run, progress):
        if progress.step == 8 and next(steps) == 0:
            assert "step 6 could not be saved (No space left on device); the run goes on" in (
                capsys.readouterr().err
            )
            assert sorted(path.name for path in (disk / "run/state").glob("step-*")) == [
                "step-00000002.safetensors",
                "step-00000004.safetensors",
            ]
            ballast.unlink()
        return save(run, progress)

    save = skip2bench.train.loop._save_state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(skip2bench.train.loop, "_save_state", make_room)
        assert train(out_dir=disk / "run", **changes)[0]["status"] == "ok"
    same_as_undisturbed(train, disk / "run", **changes)


def test_logs_without_room_end_a_run_that_goes_on_with_room(train, disk, at_step, capsys):
    at_step(9, lambda: fill(disk))
    changes = {"method": "skip", "max_steps": 200, "epochs": 99, "save_interval": 3}
    folder = disk / "run"
    with pytest.raises(Skip2BenchError) as caught:
        train(out_dir=folder, **changes)
    assert str(caught.value) == (
        f"a file of the run in {str(folder)!r} could not be read or written ([Errno 28] No space "
        "left on device); make room or bring it back; go on with: skip2bench train --resume "
        f"--out-dir {folder}"
    )
    err = capsys.readouterr().err
    assert "could not be saved (No space left on device)" in err
    steps = pd.read_csv(folder / "logs/version_0/steps.csv")
    assert steps["step"].tolist() == list(range(1, len(steps) + 1))
    assert not steps.isna().any().any()
    assert read_run(folder).summary.status in ("failed", "running")
    (disk / "ballast").unlink()
    at_step(0, None)
    train(out_dir=folder, resume=True, **changes)
    same_as_undisturbed(train, folder, **changes)


@pytest.mark.parametrize("blocks", [0, 3])
@pytest.mark.parametrize("method", ["lora", "skip2", "full", "last"])
def test_an_adapter_without_room_is_made_again_with_room(train, disk, monkeypatch, method, blocks):
    """There is room for nothing at all, or for the small files before it."""
    monkeypatch.setattr("skip2bench.models.adapters.copy_config_files", lambda *_: None)
    monkeypatch.setattr("skip2bench.models.adapters.save_style", lambda *_: None)
    changes = {"method": method, "save_interval": 4}
    changes |= {"skip_r": 64} if method == "skip2" else {}
    changes |= {"lora_r": 64} if method == "lora" else {}
    folder = disk / "run"
    save = skip2bench.train.run.save_adapter

    def save_without_room(*arguments):
        (folder / "final").mkdir()
        ballast = fill(disk)
        os.truncate(ballast, ballast.stat().st_size - blocks * BLOCK)
        return save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(skip2bench.train.run, "save_adapter", save_without_room)
        with pytest.raises(Skip2BenchError, match=r"No space left.*go on with: skip2bench train"):
            train(out_dir=folder, **changes)
    assert list((folder / "final").iterdir()) == []  # nor half of it
    (disk / "ballast").unlink()
    summary, *_ = train(out_dir=folder, resume=True, **changes)
    assert summary["resumed_at_steps"] == [8]
    same_as_undisturbed(train, folder, **changes)


def test_a_disk_that_is_full_at_once_gives_no_advice_to_resume(train, disk):
    fill(disk)
    with pytest.raises(Skip2BenchError) as caught:
        train(out_dir=disk / "run")
    assert "No space left" in str(caught.value)
    assert "--resume" not in str(caught.value)


def test_a_summary_without_room_is_an_error_although_all_else_is_done(train, disk, monkeypatch):
    folder = disk / "run"
    write = skip2bench.results.run_folder.write_json

    def write_without_room(path, content):
        if getattr(content, "status", None) == "ok":
            fill(disk)
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(skip2bench.results.run_folder, "write_json", write_without_room)
        with pytest.raises(Skip2BenchError, match=r"cannot write '.*summary.json' \(No space left"):
            train(out_dir=folder, method="lora", save_interval=4)
    assert read_run(folder).summary.status == "running"
    (disk / "ballast").unlink()
    train(out_dir=folder, method="lora", save_interval=4, resume=True)
    same_as_undisturbed(train, folder, method="lora")


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_cache_without_room_is_an_error_and_leaves_nothing(train, disk, is_kept):
    fill(disk)
    ballast = disk / "ballast"
    os.truncate(ballast, ballast.stat().st_size - 20 * BLOCK)
    changes = {"cache_tier": "disk", "cache_max_bytes": "2MiB"}
    changes |= {"cache_dir": disk / "kept"} if is_kept else {}
    # the plan would know that there is no room; here another process takes it meanwhile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "skip2bench.cache.plan.measure_free", lambda *_: {"ram": 1 << 30, "disk": 1 << 30}
        )
        with pytest.raises(Skip2BenchError, match=r"cannot write the cache to .* \(No space left"):
            train(out_dir=disk / "run", **changes)
    assert not list(disk.rglob("*.bin"))
    assert read_run(disk / "run").summary.status == "failed"
    ballast.unlink()
    train(out_dir=disk / "run", resume=True, **changes)
    same_as_undisturbed(train, disk / "run")


def test_a_cache_in_memory_that_cannot_be_kept_still_serves(train, disk, capsys):
    fill(disk)
    os.truncate(disk / "ballast", (disk / "ballast").stat().st_size - 3 * BLOCK)
    summary, *_, folder = train(cache_dir=disk / "kept", cache_tier="ram")
    assert "the cache could not be kept in" in capsys.readouterr().err
    assert summary["status"] == "ok"
    assert CacheFolder(disk / "kept").entries() == []
    same_as_undisturbed(train, folder)


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_folder_that_vanishes_is_an_error(train, at_step, tmp_path, how):
    folder = tmp_path / "run"

    def vanish():
        if how == "moved":
            folder.rename(tmp_path / "elsewhere")
        else:
            shutil.rmtree(folder)
        if how == "replaced":
            (folder / "logs/version_0").mkdir(parents=True)

    at_step(3, vanish)
    with pytest.raises(Skip2BenchError) as caught:
        train(method="lora")
    assert str(caught.value).startswith(
        f"a file of the run in {str(folder)!r} could not be read or written ([Errno 2] No such "
        f"file or directory: {str(folder / 'logs/version_0/steps.csv')!r})"
    )
    assert not (folder / "final").exists()
    if how == "moved":  # and goes on where it is now
        at_step(0, None)
        train(method="lora", out_dir=tmp_path / "elsewhere", resume=True)
        same_as_undisturbed(train, tmp_path / "elsewhere", method="lora")


def test_a_disk_that_cannot_be_written_is_an_error_before_anything_else(train, disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(Skip2BenchError) as caught:
        train(out_dir=disk / "run")
    assert str(caught.value) == (
        f"out_dir {str(disk / 'run')!r} cannot be written to ({str(disk)!r} is read-only here); "
        "choose another --out-dir"
    )
    with pytest.raises(
        Skip2BenchError, match=r"^cache_dir .* is read-only here\); choose another --cache-dir"
    ):
        train(cache_dir=disk / "kept")


def test_running_out_of_memory_is_said_and_recorded(train, monkeypatch, tmp_path):
    def refuse(*_):
        torch.empty(1 << 60)

    monkeypatch.setattr(skip2bench.train.loop, "take_step", refuse)
    with pytest.raises(Skip2BenchError, match=r"out of memory \(.*\); use a smaller batch"):
        train(method="lora")
    assert read_run(tmp_path / "run").summary.status == "oom"


@pytest.mark.parametrize("hours", [-48, 48])
def test_a_clock_that_jumps_changes_no_duration(train, at_step, monkeypatch, hours):
    class Jumped(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(hours=hours)

    at_step(3, lambda: monkeypatch.setattr(skip2bench.io.whole, "datetime", Jumped))
    summary, metrics, steps, folder = train(method="lora")
    started = datetime.fromisoformat(summary["started_at"])
    assert abs(datetime.fromisoformat(summary["finished_at"]) - started) > timedelta(hours=47)
    assert 0 < summary["train_seconds"] < summary["wall_seconds"] < 600
    assert steps["train_seconds"].is_monotonic_increasing
    assert metrics["train_seconds"].is_monotonic_increasing
    assert started.tzinfo == timezone.utc
    same_as_undisturbed(train, folder, method="lora")


@pytest.mark.parametrize("harm", ["truncated", "flipped", "gone", "another model's"])
@pytest.mark.parametrize("tier", ["ram", "disk"])
def test_a_damaged_cache_is_made_anew(train, tmp_path, capsys, harm, tier):
    changes = {"cache_dir": tmp_path / "kept", "cache_tier": tier}
    train("first", **changes)
    entries = CacheFolder(tmp_path / "kept").entries()
    for entry in entries:
        path = entry.folder / "features.bin"
        content = bytearray(path.read_bytes())
        if harm == "truncated":
            path.write_bytes(content[:-64])
        elif harm == "flipped":
            content[len(content) // 2] ^= 16
            path.write_bytes(content)
        elif harm == "gone":
            path.unlink()
        else:  # its checksums fit: only the model can tell
            path.write_bytes(bytes(len(content)))
            with path.open("rb") as file:
                assert not any(file.read())
            manifest = json.loads((entry.folder / "manifest.json").read_text())
            from skip2bench.cache.checksums import read_file

            manifest["files"]["features"]["checksum"] = read_file(path)
            (entry.folder / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    summary, *_, folder = train("second", **changes)
    assert capsys.readouterr().err.count("is not used: ") == 2
    assert not summary["cache_kept"]
    same_as_undisturbed(train, folder)
    assert len(CacheFolder(tmp_path / "kept").entries()) == 2


def test_a_second_run_in_one_folder_is_refused_and_harms_nothing(train, at_step, tmp_path):
    messages = []

    def start_second():
        for changes in ({}, {"force": True}, {"resume": True}):
            with pytest.raises(Skip2BenchError) as caught:
                train(method="lora", **changes)
            messages.append(str(caught.value))

    at_step(5, start_second)
    train(method="lora")
    assert set(messages) == {
        f"process {os.getpid()} is working in {str(tmp_path / 'run')!r}; wait for it, or choose "
        "another --out-dir"
    }
    at_step(0, None)
    same_as_undisturbed(train, tmp_path / "run", method="lora")
