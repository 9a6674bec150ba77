"""The logs of a training run: metrics.csv, steps.csv, and TensorBoard's where asked for."""

from pathlib import Path
from typing import Any

from skip2bench.csv_log import CsvLog
from skip2bench.errors import Skip2BenchError
from skip2bench.results import METRICS_COLUMNS, STEPS_COLUMNS


class RunLogs:
    """Writes each row to disk at once, and to TensorBoard as well if that is on."""

    def __init__(self, folder: Path, *, with_tensorboard: bool, step: int = 0) -> None:
        """Start the logs in `folder`, or go on with those that end at `step`.

        Raises:
            Skip2BenchError: TensorBoard is asked for and not installed.
        """
        self._metrics = CsvLog(folder / "metrics.csv", METRICS_COLUMNS)
        self._steps = CsvLog(folder / "steps.csv", STEPS_COLUMNS)
        self._tensorboard = _open_tensorboard(folder, step) if with_tensorboard else None

    def log_evaluation(self, **row: Any) -> None:
        """Write one evaluation point; the arguments are METRICS_COLUMNS."""
        self._metrics.append(row)
        if self._tensorboard is not None:
            for name in ("train_loss", "val_loss", "val_ppl", "peak_memory_bytes"):
                self._tensorboard.add_scalar(name, row[name], row["step"])

    def log_step(self, **row: Any) -> None:
        """Write one step; the arguments are STEPS_COLUMNS."""
        self._steps.append(row)
        if self._tensorboard is not None:
            for name in ("loss", "learning_rate", "train_seconds"):
                self._tensorboard.add_scalar(f"step/{name}", row[name], row["step"])

    def sync(self) -> None:
        """Force the rows to the disk, before a state counts on them."""
        self._metrics.sync()
        self._steps.sync()

    def close(self) -> None:
        """Close all files."""
        self._metrics.close()
        self._steps.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


class NoLogs:
    """What a rank that writes nothing has in place of `RunLogs`."""

    def log_evaluation(self, **row: Any) -> None:
        """Drop the row."""

    def log_step(self, **row: Any) -> None:
        """Drop the row."""

    def sync(self) -> None:
        """There is nothing to force to the disk."""

    def close(self) -> None:
        """There is nothing to close."""


def check_tensorboard() -> None:
    """Raise a Skip2BenchError where TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise Skip2BenchError(
            "logger 'tensorboard' needs the package tensorboard; install it with "
            "'pip install skip2bench[tensorboard]'"
        ) from error


def _open_tensorboard(folder: Path, step: int) -> Any:
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    # what was logged after the step that a run goes on from is not shown
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
