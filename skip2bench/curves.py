"""Loss curves of train runs, read back from their metrics."""

import csv
from dataclasses import dataclass
from pathlib import Path

from skip2bench.errors import Skip2BenchError
from skip2bench.results import Run


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """The evaluation points of one run; the lists are equally long."""

    steps: list[int]
    train_seconds: list[float]
    val_losses: list[float]
    train_losses: list[float]


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
            train_losses=[float(row["train_loss"]) for row in rows],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Skip2BenchError(
            f"the metrics in {str(path)!r} cannot be read ({error!r}); move the run away"
        ) from error
    return curve if curve.steps else None
