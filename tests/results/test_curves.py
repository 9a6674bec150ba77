"""Curves read back, and the guide's own plotting code on the same files."""
# ruff: noqa: E501 - a case stands in one line where it can

from dataclasses import replace
from pathlib import Path

import pytest
from made_records import make_run

from skip2bench.errors import Skip2BenchError
from skip2bench.report.charts.runs import _combine_curves
from skip2bench.results.curves import LossCurve, metrics_path, read_loss_curve
from skip2bench.results.reading import TrainRun, read_run

RUNS = Path(__file__).parents[1] / "data" / "results" / "train"
FOLDERS = [
    RUNS / "20261123T101000Z-pystd-lora",
    RUNS / "20261123T101300Z-pystd-skip2-0-1-2-3",
    RUNS / "20261123T101500Z-pystd-skip2-0-1-2-3-4-5",
]


def write_run(folder: Path, metrics: str | None) -> TrainRun:
    if metrics is not None:
        (folder / "logs" / "version_0").mkdir(parents=True)
        (folder / "logs" / "version_0" / "metrics.csv").write_text(metrics, encoding="utf-8")
    return make_run(folder, label="A $1 run")


def test_reads_a_curve() -> None:
    curve = read_loss_curve(read_run(FOLDERS[0]))
    assert curve is not None
    assert curve.steps == [0, 50, 100, 150, 200, 250]
    assert curve.val_losses[0] == 3.1402
    assert curve.train_seconds[-1] == 98.74


def test_a_run_without_metrics_is_skipped(tmp_path: Path) -> None:
    header_only = write_run(tmp_path / "a", "step,train_seconds,train_loss,val_loss\n")
    assert read_loss_curve(header_only) is None
    assert read_loss_curve(write_run(tmp_path / "b", None)) is None


HEADER = "step,train_seconds,train_loss,val_loss"


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ("", "it is empty"),
        ("step,val_loss\n0,3.0\n", "the column train_seconds is missing"),
        ("step,step,train_seconds,train_loss,val_loss\n", "the column step stands twice"),
        ("\n\n", "the column step is missing"),
        (f"{HEADER}\n0,0,1,high\n", "row 1: val_loss is 'high', where a number was expected"),
        (f"{HEADER}\n0,0,1,nan\n", "row 1: val_loss is 'nan', where a number was expected"),
        (f"{HEADER}\n0,0,inf,1\n", "row 1: train_loss is 'inf', where a number was expected"),
        (f"{HEADER}\n0,0,1,1e999\n", "row 1: val_loss is inf, where a loss was expected"),
        (f"{HEADER}\n0,0,1,\n", "row 1: val_loss is '', where a number was expected"),
        (f"{HEADER}\n0,0,1,1_0\n", "row 1: val_loss is '1_0', where a number was expected"),
        (f"{HEADER}\n0,0,1,٣\n", "row 1: val_loss is '٣', where a number was expected"),
        (f"{HEADER}\n0,0,-1,1\n", "row 1: train_loss is '-1', where a number was expected"),
        (f"{HEADER}\n0,1e11,1,1\n", "row 1: train_seconds is 100000000000.0, where a number of seconds was expected"),
        (f"{HEADER}\n0.5,0,1,1\n", "row 1: step is '0.5', where a whole number was expected"),
        (f"{HEADER}\n{'9' * 400},0,1,1\n", f"row 1: step is '{'9' * 39}…, where a whole number was expected"),
        (f"{HEADER}\n0,0,1,1\n0,1,1,1\n", "row 2: step 0 comes after 0"),
        (f"{HEADER}\n9,0,1,1\n5,1,1,1\n", "row 2: step 5 comes after 9"),
        (f"{HEADER}\n0,2,1,1\n5,1,1,1\n", "row 2: train_seconds 1 comes after 2"),
        (f"{HEADER}\n0,0,1,1\n50,1.5", "its last row is cut off"),
        (f"{HEADER}\n0,0,1,1\n50,1.5\n", "its last row is cut off"),
        (f"{HEADER}\n0,0,1,1\n50,1.5,1,2.1", "its last row is cut off"),
        (f"{HEADER}\n0,0,1\n50,1.5,1,2.1\n", "row 1 has 3 cells, the header 4"),
        (f"{HEADER}\n0,0,1,1,7\n", "row 1 has 5 cells, the header 4"),
        ("step\n\x00", "it holds NUL bytes"),
        (f'{HEADER}\n"0,0,1,1\n', "it is no CSV: unexpected end of data"),
        (f"{HEADER}\n{'1' * 200_000},0,1,1\n", "it is no CSV: field larger than field limit (131072)"),
    ],
)  # fmt: skip
def test_damaged_metrics_have_an_exact_reason(tmp_path: Path, metrics: str, reason: str) -> None:
    run = write_run(tmp_path, metrics)
    with pytest.raises(Skip2BenchError) as caught:
        read_loss_curve(run)
    assert str(caught.value) == (
        f"the metrics of the run in {str(tmp_path)!r} cannot be read (metrics.csv: {reason}); move "
        "the run away"
    )


def test_more_columns_and_other_files_of_the_same_figures(tmp_path: Path) -> None:
    text = f"note,{HEADER}\nx,0,0,1,2\n\ny,50,1e1,1.,2E-1\n"
    plain = read_loss_curve(write_run(tmp_path / "a", text))
    assert plain == LossCurve(
        steps=[0, 50], train_seconds=[0.0, 10.0], val_losses=[2.0, 0.2], train_losses=[1.0, 1.0]
    )
    marked = write_run(tmp_path / "b", "\ufeff")
    metrics_path(marked).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_loss_curve(marked) == plain


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    run = write_run(tmp_path, "")
    metrics_path(run).write_bytes(b"\xff\xfe")
    with pytest.raises(Skip2BenchError, match=r"metrics\.csv is not in UTF-8 \(invalid start byte"):
        read_loss_curve(run)
    metrics_path(run).unlink()
    metrics_path(run).mkdir()
    with pytest.raises(Skip2BenchError, match=r"metrics\.csv is a folder, where a file was expect"):
        read_loss_curve(run)


def test_a_log_folder_that_leads_out_is_never_read(tmp_path: Path) -> None:
    outside = write_run(tmp_path / "outside", f"{HEADER}\n0,0,1,1\n")
    run = write_run(tmp_path / "run", None)
    (run.folder).mkdir()
    (run.folder / "logs").symlink_to(outside.folder / "logs")
    with pytest.raises(
        Skip2BenchError, match=r"log_folder 'logs/version_0' leads out of the run f"
    ):
        read_loss_curve(run)
    outside_too = {"log_folder": "../outside/logs/version_0"}
    named = replace(run, summary=run.summary.model_copy(update=outside_too))
    with pytest.raises(Skip2BenchError, match="leads out of the run folder"):
        read_loss_curve(named)


def test_a_hundred_thousand_rows_make_a_small_chart(tmp_path: Path) -> None:
    rows = "".join(f"{step},{step / 10},{2 + step % 7},{3 + step % 5}\n" for step in range(100_000))
    curve = read_loss_curve(write_run(tmp_path, f"{HEADER}\n{rows}"))
    assert curve is not None
    assert len(curve.steps) == 100_000
    series = _combine_curves("x", [curve, curve])
    assert (series.steps[0], series.steps[-1]) == (0, 99_999)
    assert len(series.val) == len(series.train) == len(series.seconds) <= 202
    assert series.val[1] == curve.val_losses[series.steps[1]]


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
