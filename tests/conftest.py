"""A model, a tokenizer and a data set small enough for a test: made here, in a moment, offline."""

import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")  # else fewer while other tests run beside these

import pandas as pd
import pytest
import torch
from tiny import as_written, make_checkpoint, make_records

import skip2bench.cli.app as cli
from skip2bench.config.train import TrainConfig
from skip2bench.data.samples import IGNORE_INDEX, Samples
from skip2bench.machine import processor_use
from skip2bench.train.run import run_training


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """Every run collects garbage before it is measured: let that pass the loaded modules by.

    Going through them took 0.2 s each time, two fifths of the tests of training.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Nothing that a test sees follows from what else this machine does."""
    monkeypatch.setattr(processor_use, "busy_seconds", lambda: None)


@pytest.fixture(autouse=True)
def _few_threads():
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LitGPT checkpoint folder of a 4-block model, 16 wide."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Alpaca file of 40 records whose outputs differ in length."""
    return make_records(tmp_path_factory.mktemp("data") / "tiny.json")


@pytest.fixture
def train(tiny_checkpoint, tiny_data, tmp_path):
    """Run a small training and return (summary, metrics, steps, run folder)."""

    def run(name="run", **changes):
        values = {
            "checkpoint_dir": tiny_checkpoint,
            "data": str(tiny_data),
            "out_dir": tmp_path / name,
            "blocks": "0,1,3",
            "lora_dropout": 0.0,
            "learning_rate": 1e-2,
            "lr_warmup_steps": 2,
            "global_batch_size": 8,
            "micro_batch_size": 3,
            "eval_interval": 4,
            "max_steps": 10,
            "device": "cpu",
        }
        summary = as_written(run_training(TrainConfig(**(values | changes)), ["train"]))
        folder = Path(summary["folder"])
        logs = folder / summary["log_folder"]
        return (
            summary,
            pd.read_csv(logs / "metrics.csv"),
            pd.read_csv(logs / "steps.csv"),
            folder,
        )

    run.folder, run.checkpoint, run.data = tmp_path, tiny_checkpoint, tiny_data
    return run


@pytest.fixture
def samples() -> Samples:
    torch.manual_seed(1)
    ids = [torch.randint(40, (n,)) for n in (7, 12, 3, 12, 9)]
    labels = [i.clone() for i in ids]
    for number, label in enumerate(labels):
        label[: number + 1] = IGNORE_INDEX  # prompts of different lengths
    return Samples(input_ids=ids, labels=labels)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command line in an empty folder; returns (exit status, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["skip2bench", *arguments])
        status = 0
        try:
            cli.main()
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
