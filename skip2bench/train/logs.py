"""The logs of a training run: metrics.csv, steps.csv, and another program's where asked for.

Every row is in its file before anything else happens, or not at all, whatever ends the process; a
run that goes on cuts its logs back to the step it goes on from, so that each step stands in them
once.
"""

import csv
import errno
import io
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from skip2bench.config.train import LoggerName
from skip2bench.errors import Skip2BenchError
from skip2bench.io.whole import write_bytes
from skip2bench.results.run_folder import METRICS_COLUMNS, STEPS_COLUMNS


class RunLogs:
    """Writes each row to disk at once, and to another program's log as well if one is asked for."""

    def __init__(self, folder: Path, logger: LoggerName = "csv", *, step: int = 0) -> None:
        """Start the logs in `folder`, or go on with those that end at `step`.

        Raises:
            Skip2BenchError: the logger is not installed, or cannot start.
        """
        self._metrics = CsvLog(folder / "metrics.csv", METRICS_COLUMNS)
        self._steps = CsvLog(folder / "steps.csv", STEPS_COLUMNS)
        self._other = open_logger(logger, folder, step)

    def log_evaluation(self, **row: Any) -> None:
        """Write one evaluation point; the arguments are METRICS_COLUMNS."""
        self._metrics.append(row)
        self._log(("train_loss", "val_loss", "val_ppl", "peak_memory_bytes"), row)

    def log_step(self, **row: Any) -> None:
        """Write one step; the arguments are STEPS_COLUMNS."""
        self._steps.append(row)
        self._log(("loss", "learning_rate", "train_seconds"), row, prefix="step/")

    def _log(self, names: Sequence[str], row: Mapping[str, Any], prefix: str = "") -> None:
        if self._other is not None:
            metrics = {f"{prefix}{name}": row[name] for name in names if row[name] is not None}
            self._other.log_metrics(metrics, step=row["step"])

    def sync(self) -> None:
        """Force the rows to the disk, before a state counts on them."""
        self._metrics.sync()
        self._steps.sync()

    def close(self, *, succeeded: bool) -> None:
        """Close all files, and say in the other program's log how the run ended."""
        self._metrics.close()
        self._steps.close()
        if self._other is not None:
            self._other.finalize("success" if succeeded else "failed")


class NoLogs:
    """What a rank that writes nothing has in place of `RunLogs`."""

    def log_evaluation(self, **row: Any) -> None:
        """Drop the row."""

    def log_step(self, **row: Any) -> None:
        """Drop the row."""

    def sync(self) -> None:
        """There is nothing to force to the disk."""

    def close(self, *, succeeded: bool) -> None:
        """There is nothing to close."""


def check_logger(name: LoggerName) -> None:
    """Raise a Skip2BenchError where a logger's package, which has its name, is not installed."""
    if name != "csv" and find_spec(name) is None:
        raise Skip2BenchError(
            f"logger {name!r} needs the package {name}; install it with "
            f"'pip install skip2bench[{name}]'"
        )


def open_logger(name: LoggerName, folder: Path, step: int) -> Any:
    """Lightning's logger of that name, writing to `folder`; None for the CSV files alone.

    wandb and mlflow work offline unless their own variables say otherwise.

    Args:
        name: Of the logger.
        folder: Of the logs.
        step: That a run goes on from: TensorBoard does not show what was logged after it.

    Raises:
        Skip2BenchError: it is not installed, or cannot start.
    """
    if name == "csv":
        return None
    check_logger(name)
    run = folder.parent.parent.name
    try:
        if name == "tensorboard":
            from lightning.fabric.loggers import TensorBoardLogger

            more = {"purge_step": step + 1} if step else {}
            return TensorBoardLogger(folder, name="", version="", **more)
        if name == "wandb":
            from lightning.pytorch.loggers import WandbLogger

            os.environ.setdefault("WANDB_MODE", "offline")
            return WandbLogger(
                project=os.environ.get("WANDB_PROJECT", "skip2bench"), name=run, save_dir=folder
            )
        if name == "mlflow":
            from lightning.pytorch.loggers import MLFlowLogger

            own = f"sqlite:///{folder.absolute() / 'mlflow.db'}"
            return MLFlowLogger(
                "skip2bench",
                run_name=run,
                tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", own),
                artifact_location=(folder.absolute() / "mlruns").as_uri(),
            )
        from lightning.pytorch.loggers import LitLogger

        return LitLogger(root_dir=folder, name=run)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Skip2BenchError(
            f"logger {name!r} cannot start ({reason}); leave --logger out, the CSV files are "
            "always written"
        ) from error


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
    if sum(map(len, lines)) == path.stat().st_size:
        return
    try:
        write_bytes(path, b"".join(lines))
    except OSError as error:
        raise Skip2BenchError(
            f"{str(path)!r} cannot be cut back to the step that the run goes on from "
            f"({error.strerror}); make room, and call again"
        ) from error


def _no_space() -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
