"""A model, a tokenizer and a data set small enough for a test: made here, in a moment, offline."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny import make_checkpoint, make_records

from skip2bench.config import TrainConfig
from skip2bench.train import run_training


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


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
        summary = run_training(TrainConfig(**(values | changes)), ["train"])
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
