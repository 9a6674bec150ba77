"""Run folders and the files in them, as runs write them; `run_folders` reads them back.

Files hold SI base units with the unit in the name; a figure that does not exist is an empty cell or
null. Small files are written aside and renamed into place; logs are appended a row at a time.
"""

import csv
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any, Literal

import yaml

from skip2bench.errors import Skip2BenchError
from skip2bench.files import replacing, write_bytes
from skip2bench.folder_lock import locked_folder

SCHEMA_VERSION = 1
RESULTS = Path("results")
"""Where runs go that are given no folder."""
Status = Literal["running", "ok", "oom", "failed", "interrupted"]

PHASES = ("forward", "train_forward", "backward", "optimizer", "cached_forward", "cached_backward")
MEASUREMENT_COLUMNS = ("round", "method", "blocks", "phase", "iteration", "seconds")
METRICS_COLUMNS = (
    *("step", "epoch", "train_loss", "val_loss", "val_ppl"),
    *("learning_rate", "tokens", "train_seconds", "peak_memory_bytes"),
)
STEPS_COLUMNS = (
    "step",
    "epoch",
    "loss",
    "learning_rate",
    "tokens",
    "supervised_tokens",
    "train_seconds",
)


@contextmanager
def open_run_folder(
    kind: str,
    model: str,
    label: str,
    out_dir: Path | None = None,
    *,
    force: bool = False,
    root: Path = RESULTS,
) -> Iterator[Path]:
    """Make the folder of a new run and keep other processes out of it.

    Args:
        kind: `bench` or `train`.
        model: In the name of the folder, as is `label`.
        label: See `model`.
        out_dir: The folder; None for a new `<root>/<kind>/<UTC time>-<model>-<label>`.
        force: Replace the run that `out_dir` holds.
        root: Folder of results.

    Raises:
        Skip2BenchError: `out_dir` holds a run already and `force` is off, another process works
            there, or it cannot be made.
    """
    folder = create_run_folder(kind, model, label, out_dir, root=root)
    with locked_folder(folder):
        if holds_run(folder):
            if not force:
                raise Skip2BenchError(
                    f"{str(folder)!r} holds a run already; choose another --out-dir, add --resume "
                    "to go on with it, or --force to replace it"
                )
            # the replaced run's own; a `final` folder that no run made is never touched
            for name in ("final", "state", ".cache"):
                shutil.rmtree(folder / name, ignore_errors=True)
        yield folder


def holds_run(folder: Path) -> bool:
    """True where a run has written a summary or saved a state."""
    return (folder / "summary.json").exists() or any(folder.glob("state/step-*.safetensors"))


def create_run_folder(
    kind: str, model: str, label: str, out_dir: Path | None = None, *, root: Path = RESULTS
) -> Path:
    """Make `out_dir`, or a new `<root>/<kind>/<UTC time>-<model>-<label>`.

    Raises:
        Skip2BenchError: it cannot be made.
    """
    if out_dir is None:
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        base = root / kind / f"{stamp}-{model}-{label}"
        return _make_free(_numbered(base))
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_make(out_dir, error) from error
    return out_dir


def create_log_folder(folder: Path) -> Path:
    """Make the next free `logs/version_N` of a run folder; one with nothing in it is free."""
    for number in count():
        path = folder / "logs" / f"version_{number}"
        if path.is_dir() and not any(path.iterdir()):
            return path  # left by a run that ended before it began
        if not path.exists():
            break
    return _make_free(folder / "logs" / f"version_{number}" for number in count())


def to_json(content: dict[str, Any]) -> str:
    """`content` as JSON text with a line end; NaN and infinities become null."""
    return json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as JSON, whole or not at all; NaN and infinities become null."""
    write_bytes(path, to_json(content).encode())


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as YAML, whole or not at all."""
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    write_bytes(path, text.encode())


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write a whole CSV file, whole or not at all; None becomes an empty cell.

    Text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    with replacing(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _as_cell(value) for key, value in row.items()} for row in rows)


def utc_now() -> str:
    """The time now, in UTC, as ISO 8601 to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _numbered(base: Path) -> Iterable[Path]:
    yield base
    for number in count(2):
        yield base.with_name(f"{base.name}-{number}")


def _make_free(candidates: Iterable[Path]) -> Path:
    """Make the first of the folders that nobody has, even where several processes try at once."""
    for path in candidates:
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise _cannot_make(path, error) from error
        return path
    raise AssertionError("there is no end of candidates")


def _cannot_make(folder: Path, error: OSError) -> Skip2BenchError:
    return Skip2BenchError(f"cannot make the run folder {str(folder)!r}: {error.strerror}")


def _as_cell(value: Any) -> Any:
    """`value`; of text, line ends as line feeds, and an apostrophe before a formula."""
    if not isinstance(value, str):
        return value
    # csv quotes a cell for the line end that it writes itself, not for a lone carriage return
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\n")) else text


def _finite(value: Any) -> Any:
    """Replace what JSON has no word for (NaN, infinities) by null, at any depth."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
