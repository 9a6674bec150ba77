"""The plot of the report: validation loss of every run, over steps and over the training clock.

Drawn straight on matplotlib's Agg canvas: pyplot would double the start-up time and keep global
state. Words on the plot are English in every report, as matplotlib's fonts lack Japanese glyphs.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skip2bench.errors import Skip2BenchError
from skip2bench.results import Run

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, for colour-blind readers; with eight markers, 56 lines differ."""


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """The evaluation points of one run; the three lists are equally long."""

    steps: list[int]
    train_seconds: list[float]
    val_losses: list[float]


def metrics_path(run: Run) -> Path:
    """Where the metrics of a train run lie, whether or not the file exists."""
    return run.folder / str(run.summary.get("log_folder") or "logs/version_0") / "metrics.csv"


def read_loss_curve(run: Run) -> LossCurve | None:
    """Read the evaluation points of a train run; None where it has no metrics or no row.

    Raises:
        Skip2BenchError: the file lacks a column or holds something that is no number.
    """
    path = metrics_path(run)
    if not path.is_file():
        return None
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        curve = LossCurve(
            steps=[int(row["step"]) for row in rows],
            train_seconds=[float(row["train_seconds"]) for row in rows],
            val_losses=[float(row["val_loss"]) for row in rows],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Skip2BenchError(
            f"the metrics in {str(path)!r} cannot be read ({error!r}); move the run away"
        ) from error
    return curve if curve.steps else None


def draw_loss_comparison(runs: Sequence[Run], path: Path) -> Path:
    """Draw the validation loss of train runs as a PNG: one line a run, none without metrics.

    Args:
        runs: Train runs, in the order of the legend.
        path: File to write; its folder is made.

    Returns:
        `path`.

    Raises:
        Skip2BenchError: no run has metrics, or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = [
        (str(run.summary.get("label", run.folder.name)), read_loss_curve(run)) for run in runs
    ]
    drawn = [(label, curve) for label, curve in curves if curve is not None]
    if not drawn:
        raise Skip2BenchError("no run has a metrics.csv to draw; run 'skip2bench train' first")

    figure = Figure(figsize=(12, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    over_steps, over_seconds = figure.subplots(1, 2, sharey=True)
    for number, (label, curve) in enumerate(drawn):
        style = {
            "marker": MARKERS[number % len(MARKERS)],
            "color": COLOURS[number % len(COLOURS)],
            "label": label.replace("$", r"\$"),  # a dollar would start mathematics
        }
        over_steps.plot(curve.steps, curve.val_losses, **style)
        over_seconds.plot(curve.train_seconds, curve.val_losses, **style)
    over_steps.set(xlabel="Training step", ylabel="Validation loss")
    over_seconds.set(xlabel="Training time (s)", ylabel="Validation loss")
    for axes in (over_steps, over_seconds):
        axes.grid(True, alpha=0.4)
        axes.legend()
        axes.tick_params(labelleft=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise Skip2BenchError(f"cannot write the plot {str(path)!r}: {error.strerror}") from error
    return path
