"""The logs of a training run: metrics.csv, steps.csv, and TensorBoard's where asked for.

Every row is in its file before anything else happens, or not at all, whatever ends the process; a
run that goes on cuts its logs back to the step it goes on from, so that each step stands in them
once.
"""

import csv
import errno
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skip2bench.errors import Skip2BenchError
from skip2bench.io.whole import write_bytes
from skip2bench.results.run_folder import METRICS_COLUMNS, STEPS_COLUMNS


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


class DamagedLogError(Exception):
    """A log does not hold the rows that it should."""


class CsvLog:
    """A CSV file that grows by one row at a time; every row is in the file when `append` returns.

    A row that cannot be written whole is not written at all.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Start `path` with a header row, or go on where `keep_rows` has left one."""
        self._path, self._columns = path, columns
        # unbuffered: what has not been written is not written later, when nobody expects it
        self._file = path.open("ab", buffering=0)
        if self._file.tell() == 0:
            self._write(dict(zip(columns, columns, strict=True)))

    def append(self, row: dict[str, Any]) -> None:
        """Append one row; its keys are exactly the columns.

        Raises:
            OSError: it cannot be written, or was removed; the file is as it was then.
        """
        self._write(row)

    def sync(self) -> None:
        """Force the rows to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, row: dict[str, Any]) -> None:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerow(row)
        content = memoryview(text.getvalue().encode())
        now = os.fstat(self._file.fileno())
        if not os.path.samestat(os.stat(self._path), now):
            # somebody has put another in its place; rows would go where nobody finds them
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path))
        try:
            while content:  # a disk that is filling up takes a part, and says why at the next
                content = content[self._file.write(content) or _no_space() :]
        except OSError:
            self._file.truncate(now.st_size)
            raise


def keep_rows(path: Path, columns: Sequence[str], steps: Sequence[int]) -> None:
    """Cut a log of a stopped run back to the rows of the given steps, which come first in it.

    Raises:
        DamagedLogError: they do not; the file is as it was then.
    """
    header = ",".join(columns).encode()
    expected = [header, *(f"{step},".encode() for step in steps)]
    try:
        lines = path.read_bytes().splitlines(keepends=True)[: len(expected)]
    except OSError as error:
        raise DamagedLogError(f"{path.name} cannot be read ({error.strerror})") from error
    is_whole = len(lines) == len(expected) and all(
        line.startswith(start) and line.endswith(b"\n") and line.count(b",") == len(columns) - 1
        for line, start in zip(lines, expected, strict=True)
    )
    if not is_whole:
        raise DamagedLogError(f"{path.name} does not hold the {len(steps)} rows until there")
    write_bytes(path, b"".join(lines))


def _no_space() -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
