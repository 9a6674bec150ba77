"""The GPU script on a CPU, with a small model: its stages, its summary, and where it stops."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pandas as pd
import pytest

from skip2bench.cli import app as cli

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "gpu_reference.sh"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs bash")

SMALL = {
    "MODEL": "pythia-14m",
    "DEVICE": "cpu",
    "PRECISION": "32-true",
    "BLOCKS": "fast",
    "BENCH_FLAGS": "--methods lora,skip2 --batch-size 1 --seq-length 8 --rounds 1 --iterations 1",
    "TRAIN_FLAGS": "--train-samples 8 --max-seq-length 256 --global-batch-size 4 "
    "--micro-batch-size 2 --lr-warmup-steps 1 --domain-text none",
    "EPOCHS": "3",
}


@pytest.fixture(scope="module")
def script():
    path = ROOT / "scripts" / "gpu_reference.py"
    spec = spec_from_file_location(path.stem, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(folder: Path, *arguments: str, **changes: str):
    places = {"PYTHON": sys.executable, "OUT": str(folder / "out"), "WORK": str(folder / "work")}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env={**os.environ, **SMALL, **places, **changes},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_stages_give_figures_that_can_be_committed(tmp_path, tiny_data):
    flags = f"{SMALL['TRAIN_FLAGS']} --data {tiny_data}"
    done = run(tmp_path, "14", STAGES="3 5", TRAIN_FLAGS=flags)
    out = tmp_path / "out"
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"the figures are in {out}" in done.stdout
    for name in ("train/lora", "train/skip2-fast", "train/skip2-all"):
        assert json.loads((out / name / "summary.json").read_text())["status"] == "ok"
        assert not (out / name / "final").exists()
    summaries = [
        json.loads((out / "train" / name / "summary.json").read_text())
        for name in ("lora", "skip2-fast", "skip2-all")
    ]
    trained = [summary["trainable_parameters"] for summary in summaries]
    assert max(trained) <= 1.02 * min(trained)
    inference = json.loads((out / "inference.json").read_text())
    assert inference["samples"] == 8
    assert inference["seconds"] > 0
    summary = (out / "summary.md").read_text()
    assert "One inference pass over the same 8 samples" in summary
    multiples = summary.split("and no logits):")[1].splitlines()[4:]
    assert [line.count(" ×") for line in multiples] == [2, 2, 2]  # after 1 and 3 epochs
    figures = pd.read_csv(out / "summary.csv")
    assert set(figures["figure"]) == {"1 epoch", "3 epochs"}
    assert figures["measured"].notna().all()
    assert "Skip2-LoRA (4 blocks)" in (out / "report.en.md").read_text(encoding="utf-8")
    assert "評価レポート" in (out / "report.ja.md").read_text(encoding="utf-8")
    assert json.loads((out / "doctor.json").read_text())["device"] == "cpu"
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert size < 2_000_000
    stages = (out / "stages.txt").read_text().splitlines()
    assert [line.split(",")[0] for line in stages[1:]] == [f"stage {n}: ok" for n in (3, 5)]


def test_the_benchmark_is_called_as_its_command_takes_it(tmp_path, monkeypatch):
    """Stage 2 by itself: what it would run, resolved by the command's own configuration."""
    typed = tmp_path / "typed"
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nfor one in "$@"; do echo "$one"; done >> {typed}\n')
    fake.chmod(0o755)
    done = run(tmp_path, STAGES="2", PYTHON=str(fake), MODEL="Llama-2-7b-hf", BLOCKS="fast all")
    assert done.returncode == 0, done.stdout + done.stderr
    arguments = typed.read_text().split("\n")[2:-1]
    seen = []
    monkeypatch.setattr(sys, "argv", ["skip2bench", *arguments])
    monkeypatch.setattr(
        "skip2bench.bench.run.run_bench", lambda config, _: seen.append(config) or {}
    )
    monkeypatch.setattr("skip2bench.cli.screens.print_bench", lambda _: None)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    config = seen[0]
    assert (config.model, config.methods) == ("Llama-2-7b-hf", ("lora", "skip2"))
    assert config.blocks == ("fast", "all")
    assert (config.batch_size, config.seq_length, config.device) == (1, 8, "cpu")
    assert config.out_dir == tmp_path / "out" / "bench"


def test_the_summary_puts_the_benchmark_beside_its_flops(script, tmp_path):
    """The kept benchmark of the embedded model stands for a GPU's."""
    kept = ROOT / "tests" / "data" / "results" / "bench"
    shutil.copytree(next(path.parent for path in kept.rglob("summary.json")), tmp_path / "bench")
    script.write_summary(tmp_path)
    figures = pd.read_csv(tmp_path / "summary.csv")
    assert set(figures["figure"]) == {"backward", "step", "cached step"}
    assert figures["measured"].notna().all()
    assert figures["by_flops"].between(0, 1).all()
    assert (
        (figures["share_of_flops"] * figures["by_flops"])
        .round(9)
        .equals(figures["measured"].round(9))
    )
    assert "| Skip2-LoRA (4 blocks) | cached step |" in (tmp_path / "summary.md").read_text()


def test_a_stage_that_takes_too_long_ends_and_is_named(tmp_path):
    done = run(tmp_path, STAGES="2", STAGE_SECONDS="1")
    assert done.returncode == 1
    assert "stage 2: out of time" in done.stdout
    assert "not done: 2" in done.stdout


def test_stages_for_which_there_is_no_time_are_named(tmp_path):
    done = run(tmp_path, "0")
    assert done.returncode == 1
    assert done.stdout.count("left out, no time") == 5
    assert "not done: 1 2 3 4 5" in done.stdout


def test_a_stage_that_fails_does_not_stop_the_others(tmp_path):
    done = run(tmp_path, STAGES="5 4", MODEL="no-such-model")
    assert done.returncode == 1
    assert "stage 5: failed" in done.stdout
    assert "stage 4: " in done.stdout


def test_ranks_train_as_many_parameters_as_lora(script):
    """Llama-2-7B, rank 4 on query and value: 2 x 32 x 4 x (4096 + 4096) of each."""
    assert script.find_ranks("Llama-2-7b-hf") == {
        "fast": 64,
        "balanced": 43,
        "accurate": 32,
        "all": 8,
    }


def test_reductions_by_flops_are_those_of_llama_2_7b(script):
    """On paper: backward -98.1 %, step -49.3 %, cached step -98.1 %, 5 epochs -88 %, 10 -93 %."""
    from skip2bench.bench.workload import count_workload_flops
    from skip2bench.config.train import TrainConfig
    from skip2bench.models.base import config_by_name
    from skip2bench.models.methods import resolve_method

    model, flops = config_by_name("Llama-2-7b-hf"), {}
    for method, blocks in (("lora", "all"), ("skip2", "0,1,2,3")):
        settings = resolve_method(method, blocks, TrainConfig(skip_r=64), model)
        flops[settings.label] = count_workload_flops(settings, model, 1, 512)
    label = "Skip2-LoRA (4 blocks)"
    own, lora = flops[label], flops["Traditional LoRA"]
    step = lora["train_forward_flops"] + lora["backward_flops"]
    uncached = own["train_forward_flops"] + own["backward_flops"]
    assert 1 - uncached / step == pytest.approx(0.493, abs=0.002)
    cached = own["cached_forward_flops"] + own["cached_backward_flops"]
    assert 1 - own["backward_flops"] / lora["backward_flops"] == pytest.approx(0.981, abs=0.002)
    assert 1 - cached / step == pytest.approx(0.981, abs=0.002)
    found = {epochs: script._flops_reduction(flops, label, epochs) for epochs in (5, 10)}
    assert found == {5: pytest.approx(0.88, abs=0.01), 10: pytest.approx(0.93, abs=0.01)}
