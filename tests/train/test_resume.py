import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file

import skip2bench.train.loop
from skip2bench.errors import Skip2BenchError
from skip2bench.results.reading import read_run
from skip2bench.train.state import DamagedStateError, State, StateFolder, read_state

LOSSES = ["step", "epoch", "train_loss", "val_loss", "val_ppl", "learning_rate", "tokens"]


@pytest.fixture
def stop_after(monkeypatch):
    """Have runs asked to stop during a step; None for runs to their end."""
    take_step = skip2bench.train.loop.take_step

    def set_step(step: int | None) -> None:
        def take(run, number, *arguments):
            if number + 1 == step:
                run.stop.make()
            return take_step(run, number, *arguments)

        monkeypatch.setattr(skip2bench.train.loop, "take_step", take)

    return set_step


@pytest.fixture
def stopped(train, stop_after):
    """A run of ten steps that was stopped after its seventh, and how to call it again."""

    def stop(**changes) -> Path:
        stop_after(7)
        with pytest.raises(KeyboardInterrupt):
            train(**({"save_interval": 2} | changes))
        stop_after(None)
        return changes.get("out_dir", train.folder / "run")

    return stop


def adapter(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "final").iterdir()}


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "lora", "lora_dropout": 0.1},
        {"method": "skip", "target": "logits"},
        {"method": "skip2", "lora_dropout": 0.1},
        {"method": "skip2", "cache_tier": "disk"},
        {"method": "lora-top", "lora_dropout": 0.1, "cache_max_bytes": "40000"},
        {"method": "skip2", "cache_max_bytes": "20000"},
        {"method": "skip2", "precision": "bf16-true", "cache_dtype": "int8"},
        {"method": "full"},
        {"method": "last", "precision": "bf16-mixed"},
        {"method": "full+lora"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_a_stopped_run_goes_on_bit_for_bit(train, stopped, changes):
    folder = stopped(**changes)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert [path.name for path in StateFolder(folder).files()] == [
        "step-00000007.safetensors",
        "step-00000006.safetensors",
    ]
    summary, metrics, steps, _ = train(resume=True, save_interval=2, **changes)
    expected, all_metrics, all_steps, undisturbed = train("undisturbed", **changes)
    assert adapter(folder) == adapter(undisturbed)
    assert metrics[LOSSES].equals(all_metrics[LOSSES])
    assert steps.drop(columns="train_seconds").equals(all_steps.drop(columns="train_seconds"))
    assert (summary["status"], summary["resumed_at_steps"]) == ("ok", [7])
    assert summary["resume_seconds"] > 0
    same = ("steps", "tokens", "epochs", "final_val_loss", "best_step", "cache_bytes")
    same += ("saved_for_backward_bytes", "cache_kept", "recomputed_samples")
    assert {k: summary.get(k) for k in same} == {k: expected.get(k) for k in same}
    # the clock goes on: a cache that is made again counts in none of its parts
    assert steps["train_seconds"].is_monotonic_increasing
    assert summary["train_seconds"] >= steps["train_seconds"].iloc[6]
    left = {path.name for path in folder.iterdir()}
    assert left == {*("config.yaml", "environment.json", "summary.json"), "logs", "final", ".lock"}
    environment = json.loads((folder / "environment.json").read_text())
    assert [it["command"] for it in environment["earlier_sessions"]] == ["skip2bench train"]


def test_a_run_may_be_stopped_again_and_again(train, stop_after):
    for step in (1, 2, 5, 9):
        stop_after(step)
        with pytest.raises(KeyboardInterrupt):
            train(resume=True)
    stop_after(10)  # too late: nothing is left to do
    summary, metrics, steps, folder = train(resume=True)
    stop_after(None)
    _, all_metrics, all_steps, undisturbed = train("undisturbed")
    assert summary["resumed_at_steps"] == [1, 2, 5, 9]
    assert adapter(folder) == adapter(undisturbed)
    assert metrics[LOSSES].equals(all_metrics[LOSSES])
    assert steps["loss"].equals(all_steps["loss"])


def test_a_run_whose_last_step_is_saved_only_ends(train, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("skip2bench.train.run.save_adapter", stop_at_once)
        with pytest.raises(KeyboardInterrupt):
            train(save_interval=5)
    summary, metrics, steps, folder = train(resume=True, save_interval=5)
    _, all_metrics, all_steps, undisturbed = train("undisturbed")
    assert summary["resumed_at_steps"] == [10]
    assert adapter(folder) == adapter(undisturbed)
    assert metrics[LOSSES].equals(all_metrics[LOSSES])
    assert steps["loss"].equals(all_steps["loss"])


def stop_at_once(*_):
    raise KeyboardInterrupt


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "header":
        content[20] ^= 1
        path.write_bytes(content)
    elif kind == "tensor":
        content[-100] ^= 1
        path.write_bytes(content)
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    else:
        save_file({"trained.x": torch.zeros(3)}, path)


@pytest.mark.parametrize("kind", ["truncated", "empty", "header", "tensor", "folder", "foreign"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_damaged_state_gives_way_to_the_one_before(train, stopped, capsys, kind, count):
    folder = stopped()
    for path in StateFolder(folder).files()[:count]:
        damage(path, kind)
    capsys.readouterr()
    summary, metrics, steps, _ = train(resume=True, save_interval=2)
    err = capsys.readouterr().err
    assert err.count("warning: the state step-0000000") == count
    assert summary["resumed_at_steps"] == ([6] if count == 1 else [])
    _, all_metrics, all_steps, undisturbed = train("undisturbed")
    assert adapter(folder) == adapter(undisturbed)
    assert metrics[LOSSES].equals(all_metrics[LOSSES])
    assert steps["loss"].equals(all_steps["loss"])
    if count == 2:  # it started again, and kept what the stopped run had logged
        assert "had saved nothing that can be used: it starts again" in err
        assert summary["log_folder"] == "logs/version_1"
        assert len(pd.read_csv(folder / "logs/version_0/steps.csv")) == 7


@pytest.mark.parametrize("kind", ["rows lost", "half a row", "gone"])
def test_a_state_whose_logs_are_damaged_is_not_used(train, stopped, capsys, kind):
    folder = stopped()
    path = folder / "logs/version_0/steps.csv"
    lines = path.read_text().splitlines(keepends=True)
    if kind == "rows lost":
        path.write_text("".join(lines[:7]))
    elif kind == "half a row":
        path.write_text("".join(lines)[:-9])
    else:
        path.unlink()
    summary, _, steps, _ = train(resume=True, save_interval=2)
    assert "the state step-00000007.safetensors is not used: steps.csv" in capsys.readouterr().err
    assert summary["resumed_at_steps"] == ([] if kind == "gone" else [6])
    assert steps["step"].tolist() == list(range(1, 11))


@pytest.mark.parametrize("what", ["weights", "data", "model_config.yaml"])
def test_a_run_whose_input_has_changed_does_not_go_on(train, stopped, tmp_path, what):
    checkpoint, data = tmp_path / "base", tmp_path / "data.json"
    shutil.copytree(train.checkpoint, checkpoint)
    shutil.copy(train.data, data)
    changes = {"checkpoint_dir": checkpoint, "data": str(data)}
    folder = stopped(**changes)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if what == "weights":
        weights = torch.load(checkpoint / "lit_model.pth", weights_only=True)
        torch.save({key: value + 1 for key, value in weights.items()}, checkpoint / "lit_model.pth")
    elif what == "data":
        data.write_text(data.read_text().replace("so", "no"))
    else:
        with (checkpoint / "model_config.yaml").open("a") as file:
            file.write("norm_eps: 0.001\n")
    with pytest.raises(Skip2BenchError) as caught:
        train(resume=True, save_interval=2, **changes)
    assert str(caught.value) == (
        f"the {what} of the run in {str(folder)!r} has changed since it began; restore it, or "
        "start a new run with another --out-dir"
    )
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize("has_folder", [True, False])
def test_a_run_goes_on_whose_model_and_data_have_moved(
    train, stopped, tmp_path, monkeypatch, has_folder
):
    monkeypatch.chdir(tmp_path)
    place = {} if has_folder else {"out_dir": None}
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    shutil.copytree(train.checkpoint, first / "base")
    shutil.copy(train.data, first / "data.json")

    def at(folder):
        return {"checkpoint_dir": folder / "base", "data": str(folder / "data.json")} | place

    stopped(**at(first))
    first.rename(second)
    summary, _, steps, folder = train(resume=True, save_interval=2, **at(second))
    assert summary["status"] == "ok"
    assert summary["resumed_at_steps"] == [7]
    assert steps["step"].tolist() == list(range(1, 11))
    own, whole = (
        {name: it for name, it in adapter(it).items() if name.endswith(".safetensors")}
        for it in (folder, train("undisturbed")[3])
    )
    assert own == whole
    assert own


def test_a_run_whose_own_domain_text_has_changed_does_not_go_on(train, stopped, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("def add(a, b):\n    return a + b\n" * 40)
    folder = stopped(domain_text=str(text))
    text.write_text("something else " * 80)
    with pytest.raises(Skip2BenchError) as caught:
        train(resume=True, domain_text=str(text))
    assert str(caught.value).startswith(
        f"the text of --domain-text of the run in {str(folder)!r} has changed since it began"
    )


def test_a_run_goes_on_only_with_its_own_configuration(train, stopped):
    folder = stopped()
    with pytest.raises(Skip2BenchError) as caught:
        train(resume=True, learning_rate=3e-3)
    assert str(caught.value) == (
        f"the run in {str(folder)!r} has learning_rate 0.01, not 0.003; leave the flags out to go "
        "on with it as it was, or choose another --out-dir"
    )
    with pytest.raises(Skip2BenchError, match="resume and force contradict each other"):
        train(resume=True, force=True)
    assert train(resume=True, save_interval=3)[0]["status"] == "ok"


@pytest.mark.parametrize("has_cache", [False, True])
def test_a_run_goes_on_where_its_cache_lies_elsewhere(train, stopped, tmp_path, has_cache):
    """It changes no figure; what the run began with, it keeps saying."""
    kept = {"method": "skip2", "cache_dir": tmp_path / "kept"}
    if has_cache:
        train("earlier", **kept)
    folder = stopped(**kept)
    summary, metrics, _, _ = train(resume=True, method="skip2", logger="csv")
    _, all_metrics, _, undisturbed = train("undisturbed", method="skip2")
    assert summary["cache_kept"] is has_cache
    assert adapter(folder) == adapter(undisturbed)
    assert metrics[LOSSES].equals(all_metrics[LOSSES])


def test_a_finished_run_has_nothing_left_to_do(train, capsys):
    first, _, _, folder = train()
    before = (folder / "summary.json").stat().st_mtime_ns
    again, _, _, _ = train(resume=True)
    assert again == json.loads(json.dumps(first))
    assert (folder / "summary.json").stat().st_mtime_ns == before
    assert f"the run in {folder} has finished already" in capsys.readouterr().err


def test_a_diverged_run_does_not_go_on(train):
    with pytest.raises(Skip2BenchError, match=r"the loss is \w+ at step (\d+); lower"):
        train(learning_rate=1e30, save_interval=1)
    folder = train.folder / "run"
    summary = read_run(folder).summary
    step = summary.diverged_at_step
    assert summary.status == "failed"
    assert f"at step {step}; lower --learning-rate" in summary.error
    steps = pd.read_csv(folder / "logs/version_0/steps.csv")
    assert steps["step"].tolist() == list(range(1, step + 1))
    assert not (folder / "state").exists()
    with pytest.raises(Skip2BenchError) as caught:
        train(learning_rate=1e30, save_interval=1, resume=True)
    assert str(caught.value) == (
        f"the run in {str(folder)!r} diverged at step {step} and would do so again; start a new "
        "one with a lower --learning-rate"
    )


def test_without_a_folder_the_newest_stopped_run_of_the_configuration_goes_on(
    train, stopped, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    stopped(out_dir=None)
    stopped(out_dir=None, seed=1)
    (first, second) = sorted((tmp_path / "results/train").iterdir())
    summary, *_ = train(resume=True, out_dir=None, save_interval=2)
    assert f"going on with the run in {Path('results/train') / first.name} after step 7" in (
        capsys.readouterr().err
    )
    assert (summary["status"], read_run(second).summary.status) == ("ok", "interrupted")
    train(resume=True, out_dir=None, save_interval=2)  # it is finished: a new one
    assert "no stopped run of this configuration below results/train" in capsys.readouterr().err
    assert len(list((tmp_path / "results/train").iterdir())) == 3


def test_a_folder_of_another_kind_is_refused(train, stopped):
    folder = stopped()
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"kind": "bench"}))
    with pytest.raises(Skip2BenchError, match=r"holds no run of skip2bench train; choose another"):
        train(resume=True)


def test_states_of_another_run_are_never_gone_on_from(train, stopped, stop_after):
    """Even where somebody has removed the files that say whose they are."""
    folder = stopped()
    for name in ("summary.json", "config.yaml"):
        (folder / name).unlink()
    other = {"seed": 7, "learning_rate": 1e-3, "save_interval": 1}
    with pytest.raises(Skip2BenchError, match="holds a run already; choose another --out-dir"):
        train(**other)
    with pytest.raises(Skip2BenchError) as caught:
        train(resume=True, **other)
    assert str(caught.value) == (
        f"summary.json of the run in {str(folder)!r} is missing; bring it back, or start anew with "
        "--force or another --out-dir"
    )
    stop_after(3)
    with pytest.raises(KeyboardInterrupt):
        train(force=True, **other)
    stop_after(None)
    summary, _, steps, _ = train(resume=True, **other)
    _, _, all_steps, undisturbed = train("undisturbed", **other)
    assert summary["resumed_at_steps"] == [3]
    assert adapter(folder) == adapter(undisturbed)
    assert steps["loss"].equals(all_steps["loss"])


def test_a_state_of_another_configuration_is_not_used(train, stopped, capsys):
    other = {"seed": 7, "learning_rate": 1e-3}
    mine, theirs = stopped(), stopped(out_dir=train.folder / "theirs", **other)
    for path in StateFolder(mine).files():
        path.unlink()
    for path in StateFolder(theirs).files():
        shutil.copy(path, mine / "state")
    with pytest.raises(Skip2BenchError) as caught:
        train(resume=True)
    assert "it is of other configuration" in capsys.readouterr().err
    assert str(caught.value) == (
        f"the configuration of the run in {str(mine)!r} has changed since it began; restore it, or "
        "start a new run with another --out-dir"
    )


def test_damaged_states_do_not_push_out_new_ones(train, stopped, stop_after):
    folder = stopped()
    for path in StateFolder(folder).files():  # of steps 6 and 7
        damage(path, "truncated")
    stop_after(3)
    with pytest.raises(KeyboardInterrupt):
        train(resume=True, save_interval=2)  # it starts again
    stop_after(None)
    assert [path.name for path in StateFolder(folder).files()] == [
        "step-00000003.safetensors",
        "step-00000002.safetensors",
    ]
    summary, _, steps, _ = train(resume=True, save_interval=2)
    _, _, all_steps, undisturbed = train("undisturbed")
    assert summary["resumed_at_steps"] == [3]
    assert adapter(folder) == adapter(undisturbed)
    assert steps["loss"].equals(all_steps["loss"])


@pytest.mark.parametrize("lost", ["summary.json", "config.yaml"])
def test_a_run_that_no_longer_says_what_it_is_does_not_go_on(train, stopped, lost):
    folder = stopped()
    (folder / lost).unlink()
    with pytest.raises(Skip2BenchError) as caught:
        train(resume=True)
    assert str(caught.value).startswith(f"{lost} of the run in {str(folder)!r} is missing; bring")


def test_a_configuration_that_is_half_there_is_named(train, stopped):
    folder = stopped()
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text("".join(text.splitlines(keepends=True)[:5]))
    with pytest.raises(
        Skip2BenchError, match=r"^config\.yaml of the run in .* has no .*: it is dam"
    ):
        train(resume=True)


def test_a_signal_saves_and_the_command_line_goes_on(train, tmp_path):
    """Only --resume and the folder are typed the second time; what SIGHUP does is the same."""
    command = [sys.executable, "-m", "skip2bench", "train"]
    config = {
        **{"checkpoint_dir": str(train.checkpoint), "data": str(train.data), "device": "cpu"},
        **{"method": "lora", "epochs": 1000, "eval_interval": 20, "micro_batch_size": 4},
        **{"max_steps": 200, "lr_warmup_steps": 2, "global_batch_size": 8},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    out = ["--out-dir", str(tmp_path / "run")]
    start = [*command, "--config", str(tmp_path / "run.yaml"), *out]
    with subprocess.Popen(start, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "run/state").exists():
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert "stopping where nothing is lost by it" in err
    resume = f"go on with: skip2bench train --resume --out-dir {tmp_path / 'run'}"
    assert f"interrupted; what was done is in {tmp_path / 'run'}; {resume}" in err
    assert "Traceback" not in err
    done = subprocess.run([*command, "--resume", *out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    steps = pd.read_csv(tmp_path / "run/logs/version_0/steps.csv")
    assert steps["step"].tolist() == list(range(1, 201))
    assert read_run(tmp_path / "run").summary.resumed_at_steps[0] < 200


def test_states_hold_what_they_were_given(tmp_path):
    folder = StateFolder(tmp_path)
    tensors = {
        "a": torch.randn(3, 2),
        "b": torch.randn(4).bfloat16(),
        "c": torch.tensor(7.0),
        "d": torch.randint(255, (9,), dtype=torch.uint8),
        "e": torch.empty(0),
    }
    values = {"x": [0.1, 1e-300], "nested": {"text": "日本"}}
    for step in (0, 1, 2):
        folder.save(step, State(tensors=tensors, values=values))
    assert len(folder.files()) == 2
    state = read_state(folder.files()[0])
    assert state.values == values | {"format": 1}
    assert state.tensors.keys() == tensors.keys()
    assert all(torch.equal(state.tensors[name], tensors[name]) for name in tensors)
    folder.clear()
    assert os.listdir(tmp_path) == []


def test_a_state_of_another_format_is_refused(tmp_path):
    folder = StateFolder(tmp_path)
    folder.save(1, State(tensors={}, values={"format": 2}))
    with pytest.raises(DamagedStateError, match="its format is 2, not 1"):
        read_state(folder.files()[0])
