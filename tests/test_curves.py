"""Curves read back, and the guide's own plotting code on the same files."""

from pathlib import Path

import pytest

from skip2bench.curves import read_loss_curve
from skip2bench.errors import Skip2BenchError
from skip2bench.run_folders import Run, read_run

RUNS = Path(__file__).parent / "data" / "results" / "train"
FOLDERS = [
    RUNS / "20261123T101000Z-pystd-lora",
    RUNS / "20261123T101300Z-pystd-skip2-0-1-2-3",
    RUNS / "20261123T101500Z-pystd-skip2-0-1-2-3-4-5",
]


def make_run(folder: Path, metrics: str | None) -> Run:
    if metrics is not None:
        (folder / "logs" / "version_0").mkdir(parents=True)
        (folder / "logs" / "version_0" / "metrics.csv").write_text(metrics, encoding="utf-8")
    return Run(folder=folder, summary={"label": "A $1 run"}, environment={}, config={})


def test_reads_a_curve() -> None:
    curve = read_loss_curve(read_run(FOLDERS[0]))
    assert curve is not None
    assert curve.steps == [0, 50, 100, 150, 200, 250]
    assert curve.val_losses[0] == 3.1402
    assert curve.train_seconds[-1] == 98.74


def test_a_run_without_metrics_is_skipped(tmp_path: Path) -> None:
    header_only = make_run(tmp_path / "a", "step,train_seconds,train_loss,val_loss\n")
    assert read_loss_curve(header_only) is None
    assert read_loss_curve(make_run(tmp_path / "b", None)) is None


@pytest.mark.parametrize(
    "metrics",
    [
        "step,val_loss\n0,3.0\n",
        "step,train_seconds,train_loss,val_loss\n0,0,1,high\n",
        "step\n\x00",
    ],
)
def test_damaged_metrics_name_the_file(tmp_path: Path, metrics: str) -> None:
    with pytest.raises(Skip2BenchError, match=r"metrics\.csv.*move the run away"):
        read_loss_curve(make_run(tmp_path, metrics))


def test_the_guides_plotting_code_works(tmp_path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    import pandas as pd

    baseline, skip2lora_4, skip2lora_6 = (
        pd.read_csv(folder / "logs" / "version_0" / "metrics.csv") for folder in FOLDERS
    )
    plt.figure(figsize=(12, 6))
    plt.plot(baseline["step"], baseline["val_loss"], label="Traditional LoRA", marker="o")
    plt.plot(
        skip2lora_4["step"], skip2lora_4["val_loss"], label="Skip2-LoRA (4 blocks)", marker="s"
    )
    plt.plot(
        skip2lora_6["step"], skip2lora_6["val_loss"], label="Skip2-LoRA (6 blocks)", marker="^"
    )
    plt.xlabel("Training Step")
    plt.ylabel("Validation Loss")
    plt.legend()
    plt.grid(True)
    plt.savefig(tmp_path / "loss_comparison.png")
    lines = plt.gca().get_lines()
    plt.close()
    assert [len(line.get_xdata()) for line in lines] == [6, 6, 6]
    assert not baseline.isna().any().any()
