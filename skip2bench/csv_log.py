"""A CSV file that grows by a row at a time, and survives whatever ends the process.

Every row is in the file before anything else happens, or not at all; a run that goes on cuts its
logs back to the step it goes on from, so that each step stands in them once.
"""

import csv
import errno
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skip2bench.files import write_bytes


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
