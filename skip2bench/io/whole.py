"""Files that are written whole or not at all, however the writing ends.

The content goes to a file beside the target, is forced to the disk and renamed into place: a reader
finds the old file or the new one, also after a crash or a power cut.
"""

import csv
import glob
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from skip2bench.errors import Skip2BenchError
from skip2bench.io.units import format_bytes


def to_json(content: object) -> str:
    """A record or plain content as JSON text with a line end; NaN and infinities become null."""
    return json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, content: object) -> None:
    """Write a record or plain content as JSON, whole or not at all; see `to_json`."""
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


def _as_cell(value: Any) -> Any:
    """`value`; of text, line ends as line feeds, and an apostrophe before a formula."""
    if not isinstance(value, str):
        return value
    # csv quotes a cell for the line end that it writes itself, not for a lone carriage return
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\n")) else text


def _finite(value: Any) -> Any:
    """Replace records by plain content and NaN and infinities by null, at any depth."""
    if hasattr(value, "to_plain"):
        value = value.to_plain()
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def hash_content(path: Path) -> str:
    """sha256 of a file's bytes, or of a folder's files and their names below it, in hexadecimal."""
    if not path.is_dir():
        return _hash_unchanged(path, *_stamp(path))
    digest = hashlib.sha256()
    for file in sorted(it for it in path.rglob("*") if it.is_file()):
        own = _hash_unchanged(file, *_stamp(file))
        digest.update(f"{file.relative_to(path).as_posix()}\0{own}\0".encode())
    return digest.hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    now = path.stat()
    return now.st_size, now.st_mtime_ns


@lru_cache(maxsize=4096)
def _hash_unchanged(path: Path, _size: int, _changed_ns: int) -> str:
    """The hash of a file, read again once its size or time of change is another."""
    return hash_file(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to that takes the place of `path` when the block ends well.

    Where it does not, what was written is removed and `path` stays as it was.

    Raises:
        OSError: the file cannot be written.
    """
    aside = path.with_name(f"{path.name}.part")
    try:
        yield aside
        sync(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file.

    Raises:
        OSError: it cannot be written; `path` is as it was then.
    """
    with replacing(path) as aside:
        aside.write_bytes(content)


@contextmanager
def making_folder(folder: Path, needed_bytes: int, *, what: str, flag: str) -> Iterator[Path]:
    """An empty folder to make a folder's content in, which takes its place at the end, or goes.

    Args:
        folder: That must not be there.
        needed_bytes: What the content takes at most, with all that it is made of.
        what: What is done, for an error: "fetching".
        flag: The flag that names the folder.

    Raises:
        Skip2BenchError: the disk has too little room.
        OSError: nothing can be written there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < needed_bytes:
        raise Skip2BenchError(
            f"{what} needs {format_bytes(needed_bytes)} on the disk of {str(folder.parent)!r}, "
            f"which has {format_bytes(free)} free; choose another {flag}"
        )
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.part"):
        _remove_what_was_killed(left)
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}.{os.getpid()}.", suffix=".part", dir=folder.parent
    ) as scratch:
        aside = Path(scratch) / folder.name
        aside.mkdir()
        yield aside
        os.rename(aside, folder)


def _remove_what_was_killed(left: Path) -> None:
    """Remove what a process left that was making the same folder, and is no more."""
    import psutil  # not before: most commands need none

    pid = left.name.split(".")[-3]
    if pid.isdigit() and not psutil.pid_exists(int(pid)):
        shutil.rmtree(left, ignore_errors=True)


def let_others_read(folder: Path) -> None:
    """Give the files of a folder the mode that new files have here; safetensors closes its own."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(mode)


def sync(path: Path) -> None:
    """Force a file's content, or a folder's names, to the disk; folders where the system can."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
