"""Several ranks of one run: what they compute is what one process computes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import torch
import torch.distributed as dist
from lightning.fabric.strategies import DDPStrategy
from rank_processes import Disturbance, run_ranks
from safetensors.torch import load_file

from skip2bench.config.train import TrainConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.machine.signals import stop_on_signals
from skip2bench.train.ranks.launch import _Replicas
from skip2bench.train.ranks.ranks import Ranks, share, step_bytes
from skip2bench.train.run import run_training

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo and /proc as on Linux")


@pytest.fixture
def values(tiny_checkpoint, tiny_data, tmp_path):
    """Of a configuration with which ranks have uneven shares: 38 samples to train, 2 to validate.

    The last batch of an epoch has 2 samples.
    """
    return {
        "checkpoint_dir": tiny_checkpoint,
        "data": str(tiny_data),
        "out_dir": tmp_path / "ranks",
        "blocks": "0,1,3",
        "lora_dropout": 0.0,
        "learning_rate": 1e-2,
        "lr_warmup_steps": 2,
        "global_batch_size": 12,
        "micro_batch_size": 3,
        "eval_interval": 3,
        "save_interval": 3,
        "max_steps": 9,
        "device": "cpu",
    }


def _read(folder: Path):
    summary = json.loads((folder / "summary.json").read_text())
    logs = folder / summary["log_folder"]
    return summary, pd.read_csv(logs / "steps.csv"), pd.read_csv(logs / "metrics.csv")


def _assert_like_one_process(values, folder):
    """The run in `folder` has the losses and the adapter of one process."""
    alone = values["out_dir"].with_name("alone")
    run_training(TrainConfig(**{**values, "out_dir": alone, "strategy": "auto"}), ["train"])
    expected, steps, metrics = _read(alone)
    summary, own_steps, own_metrics = _read(folder)
    assert own_steps["loss"].tolist() == pytest.approx(steps["loss"].tolist(), abs=1e-5)
    for name in ("train_loss", "val_loss"):
        assert own_metrics[name].tolist() == pytest.approx(metrics[name].tolist(), abs=1e-5)
    same = ["status", "tokens", "steps", "trainable_parameters", "total_parameters"]
    if "cache_max_bytes" in values:  # what has room depends on how samples are shared out
        assert summary["recomputed_samples"] > 0
    else:
        same += ["cache_bytes", "cache_samples", "recomputed_samples"]
    for name in same:
        assert summary.get(name) == expected.get(name), name
    adapter, own = (_adapter(run) for run in (alone, folder))
    assert own.keys() == adapter.keys()
    for name, value in adapter.items():
        # Adam divides by the root of a mean square: rounding of a tiny gradient shows in a weight
        assert (own[name] - value).abs().max() < 2e-4, name
    assert (expected["world_size"], expected["communication_bytes_per_step"]) == (1, 0)
    return summary


def _adapter(folder):
    skip, lora = (folder / "final" / name for name in ("adapter.safetensors", "lit_model.pth.lora"))
    return load_file(skip) if skip.exists() else torch.load(lora, weights_only=True)["model"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (4, {"method": "lora"}),
        (2, {"method": "skip"}),
        (4, {"method": "skip2"}),
        (2, {"method": "skip2", "cache_max_bytes": "200KiB"}),
        (2, {"method": "skip2", "strategy": "fsdp", "cache_max_bytes": "200KiB"}),
        (2, {"method": "skip2", "cache_tier": "disk"}),
        (2, {"method": "lora-top", "cache_max_bytes": "100KiB"}),
        (2, {"method": "skip", "strategy": "fsdp"}),
        (2, {"method": "skip", "strategy": "fsdp", "global_batch_size": 3, "micro_batch_size": 1}),
        (2, {"method": "lora", "micro_batch_size": "auto", "gradient_checkpointing": True}),
    ],
    ids=[
        *("lora", "skip", "skip2", "skip2 with samples that do not fit", "fsdp", "disk"),
        "lora-top",
        *("fsdp without a cache", "fsdp with an empty pass in each step", "switches"),
    ],
)
def test_losses_are_those_of_one_process(values, size, changes):
    values |= changes
    ends = run_ranks(size, values)
    assert [end.exit_code for end in ends] == [0] * size, ends
    summary = _assert_like_one_process(values, values["out_dir"])
    assert summary["world_size"] == size
    assert summary["strategy"] == changes.get("strategy", "ddp")
    trained = summary["trainable_parameters"]
    assert summary["communication_bytes_per_step"] == 4 * (trained + 2)


@pytest.mark.slow
def test_ranks_find_the_shares_that_they_kept(values, tmp_path):
    values |= {"method": "skip2", "cache_dir": tmp_path / "kept"}
    for is_kept, name in ((False, "built"), (True, "found")):
        values["out_dir"] = tmp_path / name / "ranks"
        values["out_dir"].parent.mkdir()
        assert [end.exit_code for end in run_ranks(2, values)] == [0, 0]
        summary = _assert_like_one_process(values | {"cache_dir": None}, values["out_dir"])
        assert summary["cache_kept"] == is_kept
    assert len(list((tmp_path / "kept").glob("*/manifest.json"))) == 4  # two sides of two ranks


@pytest.mark.slow
def test_a_rank_that_is_asked_to_stop_stops_all_and_the_run_can_be_resumed(values):
    values |= {"method": "skip2", "lora_dropout": 0.3}
    undisturbed = {**values, "out_dir": values["out_dir"].with_name("undisturbed")}
    assert [end.exit_code for end in run_ranks(2, undisturbed)] == [0, 0]

    ends = run_ranks(2, values, Disturbance(rank=1, step=4, number=signal.SIGTERM))
    # it comes when the sums of step 4 are on their way: the wish travels with those of step 5
    assert [end.steps for end in ends] == [5, 5]
    assert [end.exit_code for end in ends] == [1, 0]
    assert ends[0].error.startswith("KeyboardInterrupt")
    summary = _read(values["out_dir"])[0]
    assert summary["status"] == "interrupted"

    ends = run_ranks(2, values | {"resume": True})
    assert ([end.exit_code for end in ends], [end.steps for end in ends]) == ([0, 0], [4, 4])
    summary, steps, metrics = _read(values["out_dir"])
    _, expected, expected_metrics = _read(undisturbed["out_dir"])
    assert summary["resumed_at_steps"] == [5]
    assert steps["loss"].tolist() == expected["loss"].tolist()
    assert metrics["val_loss"].tolist() == expected_metrics["val_loss"].tolist()
    for name, value in _adapter(undisturbed["out_dir"]).items():
        assert (_adapter(values["out_dir"])[name] == value).all()


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run_with_an_error(values):
    values |= {"method": "lora"}
    ends = run_ranks(2, values, Disturbance(rank=1, step=5, number=signal.SIGKILL))
    assert [end.exit_code for end in ends] == [1, -signal.SIGKILL]
    line = (
        "another rank ended or does not answer; the run was stopped at step 5; go on with: "
        f"skip2bench train --resume --out-dir {values['out_dir']}"
    )
    assert ends[0].error == f"RankLostError: {line}"
    summary = _read(values["out_dir"])[0]
    assert (summary["status"], summary["error"]) == ("failed", line)
    assert [end.exit_code for end in run_ranks(2, values | {"resume": True})] == [0, 0]
    summary = _assert_like_one_process(values, values["out_dir"])
    assert summary["resumed_at_steps"] == [3]


@pytest.mark.slow
def test_the_command_starts_ranks_and_says_which_one_has_died(values, tmp_path):
    flags = [
        *("--devices", "2", "--max-steps", "100000", "--epochs", "100000", "--method", "skip2"),
        *("--checkpoint-dir", str(values["checkpoint_dir"]), "--data", values["data"]),
        *("--out-dir", str(tmp_path / "run"), "--save-interval", "5", "--device", "cpu"),
    ]
    command = [sys.executable, "-m", "skip2bench", "train", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not list((tmp_path / "run" / "state").glob("step-*5.safetensors")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    [child] = psutil.Process(process.pid).children()
    os.kill(child.pid, signal.SIGKILL)
    output, errors = process.communicate(timeout=60)
    last = errors.splitlines()[-1]
    assert (process.returncode, output) == (1, "")
    assert last.startswith("error: rank 1 ended (signal 9); the run was stopped at step ")
    assert last.endswith(f"; go on with: skip2bench train --resume --out-dir {tmp_path / 'run'}")
    assert _read(tmp_path / "run")[0]["status"] == "failed"


def test_a_rank_that_dies_while_they_connect_is_named(monkeypatch, capsys):
    strategy, is_over, statuses = _Replicas(), threading.Event(), []

    def leave(status):
        statuses.append(status)
        is_over.set()

    monkeypatch.setattr("skip2bench.train.ranks.launch._GRACE_SECONDS", 0.1)
    monkeypatch.setattr("os._exit", leave)
    monkeypatch.setattr(DDPStrategy, "setup_environment", lambda _: is_over.wait(30))
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    strategy._launcher = SimpleNamespace(procs=[child])
    strategy.setup_environment()
    assert statuses == [1]
    error = "error: rank 1 ended (exit status 3); the run was stopped at step 0\n"
    assert capsys.readouterr().err == error
    assert strategy.launcher.procs == []  # Fabric's observer would kill this process


def test_a_second_signal_ends_a_rank_that_waits_for_the_others():
    dist.init_process_group(
        "gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=5)
    )
    timers = [threading.Timer(s, os.kill, (os.getpid(), signal.SIGINT)) for s in (0.2, 0.4)]
    try:
        with stop_on_signals() as wish:
            for timer in timers:
                timer.start()
            with pytest.raises(KeyboardInterrupt):
                Ranks(size=2).together(lambda: None)
        assert wish.is_made
    finally:
        for timer in timers:
            timer.join()
        dist.destroy_process_group()


@pytest.mark.slow
def test_an_error_of_the_first_rank_ends_all_before_the_run_begins(values):
    values["out_dir"].mkdir()
    (values["out_dir"] / "summary.json").write_text("{}")
    ends = run_ranks(2, values)
    assert [end.exit_code for end in ends] == [1, 0]
    assert "holds a run already; choose another --out-dir" in ends[0].error
    assert ends[1].error == ""


def test_shares_are_whole_even_and_always_the_same():
    lengths = [7, 50, 3, 3, 20, 31, 8, 9, 11, 40]
    shares = share(range(10), lengths, 3)
    assert sorted(i for own in shares for i in own) == list(range(10))
    tokens = [sum(lengths[i] for i in own) for own in shares]
    assert max(tokens) - min(tokens) <= min(lengths) * 2
    assert share(list(reversed(range(10))), lengths, 3) == shares
    assert share([4], lengths, 3) == [[4], [], []]
    assert share(range(10), lengths, 1) == [list(range(10))]


def test_one_process_sends_nothing():
    alone, parameter = Ranks(), torch.nn.Parameter(torch.ones(3))
    assert alone.reduce_step([parameter], torch.tensor(2.0), False)() == (2.0, False)
    assert parameter.grad is None
    assert (alone.sum(1.5, 2.0), alone.gather("a"), alone.broadcast(7)) == ([1.5, 2.0], ["a"], 7)
    assert step_bytes([parameter], 1) == 0
    assert step_bytes([parameter], 2) == 4 * (3 + 2)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"devices": 0}, "devices is 0; give 1 or more"),
        ({"num_nodes": 5000}, "num_nodes is 5000; give at most 4096"),
        ({"strategy": "deepspeed"}, "strategy is 'deepspeed'; choose from auto, ddp, fsdp"),
        ({"strategy": "fsdp"}, "raise --devices or leave --strategy out"),
        ({"strategy": "fsdp", "devices": 2, "method": "lora"}, "use --strategy ddp"),
    ],
)
def test_configuration_is_checked(changes, error):
    with pytest.raises(Skip2BenchError, match=error):
        TrainConfig(**changes)


def test_a_call_that_cannot_be_repeated_starts_no_ranks(values):
    with pytest.raises(Skip2BenchError, match="start the script with torchrun"):
        run_training(TrainConfig(**values, devices=2), ["train"])
    assert not values["out_dir"].exists()
