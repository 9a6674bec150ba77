"""Files that are written whole or not at all, however the writing ends.

The content goes to a file beside the target, is forced to the disk and renamed into place: a reader
finds the old file or the new one, also after a crash or a power cut.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def sync(path: Path) -> None:
    """Force a file's content, or a folder's names, to the disk; folders where the system can."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
