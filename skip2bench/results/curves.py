"""Loss curves of train runs, read back from their metrics."""

import csv
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from skip2bench.errors import Skip2BenchError
from skip2bench.io.record import Count, Loss, Seconds, kind_of, shown
from skip2bench.results.plain import DamagedFileError, read_text
from skip2bench.results.reading import TrainRun

_COLUMNS = {
    "step": kind_of(Count),
    "train_seconds": kind_of(Seconds),
    "val_loss": kind_of(Loss),
    "train_loss": kind_of(Loss),
}
# what Python and Lightning write; float() would also take "nan", "1_0" and digits of other scripts
_WHOLE = re.compile(r"[0-9]{1,15}")
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One evaluation point."""

    step: int
    val_loss: float
    train_seconds: float


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """The evaluation points of one run; the lists are equally long."""

    steps: list[int]
    train_seconds: list[float]
    val_losses: list[float]
    train_losses: list[float]

    def points(self) -> list[CurvePoint]:
        """Step, validation loss and training clock of each point."""
        return [
            CurvePoint(step=step, val_loss=loss, train_seconds=seconds)
            for step, loss, seconds in zip(
                self.steps, self.val_losses, self.train_seconds, strict=True
            )
        ]


def metrics_path(run: TrainRun) -> Path:
    """Where the metrics of a train run lie, whether or not the file exists.

    Raises:
        DamagedFileError: its log folder leads out of the run folder.
    """
    name = run.summary.log_folder or "logs/version_0"
    log_folder = run.folder / name
    # a summary's own words were checked when it was read; a link may still lead elsewhere
    if not Path(_real(log_folder)).is_relative_to(_real(run.folder)):
        raise DamagedFileError(f"log_folder {shown(name)} leads out of the run folder")
    return log_folder / "metrics.csv"


def read_loss_curve(run: TrainRun) -> LossCurve | None:
    """Read the evaluation points of a train run; None where it has no metrics or no row.

    Raises:
        Skip2BenchError: the file is damaged; see `parse_curve`.
    """
    try:
        return find_curve(run)
    except DamagedFileError as error:
        raise Skip2BenchError(
            f"the metrics of the run in {str(run.folder)!r} cannot be read ({error}); move the run "
            "away"
        ) from error


def find_curve(run: TrainRun) -> LossCurve | None:
    """As `read_loss_curve`, but an error is the reason alone.

    Raises:
        DamagedFileError: the file is damaged.
    """
    path = metrics_path(run)
    if not os.path.lexists(path):
        return None
    text = read_text(path)
    try:
        return parse_curve(text)
    except DamagedFileError as error:
        raise DamagedFileError(f"{path.name}: {error}") from error


def parse_curve(text: str) -> LossCurve | None:
    """The evaluation points in the text of a metrics file; columns that are not read may be any.

    Raises:
        DamagedFileError: a column is missing or stands twice, a row has other cells than the
            header, a cell is no finite number from 0, steps or training clock run backwards, or
            the last row is cut off, as in a run that was killed.
    """
    if not text:
        raise DamagedFileError("it is empty")
    if "\0" in text:
        raise DamagedFileError("it holds NUL bytes")
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise DamagedFileError(f"it is no CSV: {error}") from error
    header = rows.pop(0) if rows else []
    places = {name: _find_column(header, name) for name in _COLUMNS}
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            _refuse_row(number, row, header, is_last=number == len(rows))
    if rows and not text.endswith(("\n", "\r")):
        raise DamagedFileError("its last row is cut off")
    columns = {
        name: [_read_cell(row[place], name, number) for number, row in enumerate(rows, start=1)]
        for name, place in places.items()
    }
    _check_order("step", columns["step"], is_strict=True)
    _check_order("train_seconds", columns["train_seconds"], is_strict=False)
    if not rows:
        return None
    return LossCurve(
        steps=[int(step) for step in columns["step"]],
        train_seconds=columns["train_seconds"],
        val_losses=columns["val_loss"],
        train_losses=columns["train_loss"],
    )


def _real(path: Path) -> str:
    return os.path.realpath(path)


def _find_column(header: Sequence[str], name: str) -> int:
    if header.count(name) != 1:
        reason = "is missing" if name not in header else "stands twice"
        raise DamagedFileError(f"the column {name} {reason}")
    return header.index(name)


def _refuse_row(number: int, row: Sequence[str], header: Sequence[str], *, is_last: bool) -> None:
    if is_last and len(row) < len(header):
        raise DamagedFileError("its last row is cut off")
    raise DamagedFileError(f"row {number} has {len(row)} cells, the header {len(header)}")


def _read_cell(cell: str, name: str, number: int) -> float:
    place = f"row {number}: {name}"
    if not (_WHOLE if name == "step" else _NUMBER).fullmatch(cell):
        wanted = "a whole number" if name == "step" else "a number"
        raise DamagedFileError(f"{place} is {shown(cell)}, where {wanted} was expected")
    value = int(cell) if name == "step" else float(cell)
    kind = _COLUMNS[name]
    # "1e999" has become infinite, which the files of runs mean to be missing
    is_finite = value < math.inf
    fault = kind.find_fault(value) if is_finite else kind.says.replace("{found}", shown(value))
    if fault is not None:
        raise DamagedFileError(f"{place} {fault}")
    return value


def _check_order(name: str, values: Sequence[float], *, is_strict: bool) -> None:
    for number, (before, value) in enumerate(pairwise(values), start=2):
        if value < before or (is_strict and value == before):
            raise DamagedFileError(f"row {number}: {name} {value:g} comes after {before:g}")
