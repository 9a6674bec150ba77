"""One process at a time in a folder; whoever comes second is told who is there.

The lock is the operating system's and ends with the process that holds it, however that ends. The
holder's process id and machine stand beside it for people to read.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from skip2bench.errors import Skip2BenchError

LOCK_FILE = ".lock"


class ProcessLock:
    """A lock that one process holds, with that process's id and machine beside it."""

    def __init__(self, path: Path) -> None:
        """Nothing is made yet; the folder of `path` exists when the lock is acquired."""
        self._lock = FileLock(path)
        self._holder_file = path.with_name(f"{path.name}.pid")

    def acquire(self, timeout_seconds: float = -1.0) -> None:
        """Take the lock; a negative timeout waits for as long as it takes.

        Raises:
            filelock.Timeout: another process has it.
            OSError: it cannot be written.
        """
        self._lock.acquire(timeout=timeout_seconds)
        with contextlib.suppress(OSError):  # for people only: the lock holds all the same
            text = f"{os.getpid()} {socket.gethostname()}\n"
            self._holder_file.write_text(text, encoding="utf-8")

    def release(self) -> None:
        """Let the next process in."""
        with contextlib.suppress(OSError):  # the folder may be gone
            self._holder_file.unlink(missing_ok=True)
        self._lock.release()

    @property
    def holder(self) -> str:
        """Who has it, in words: "process 1234", "process 1234 on node7" for another machine's.

        "another process" where that is unknown.
        """
        try:
            number, _, host = self._holder_file.read_text(encoding="utf-8").strip().partition(" ")
            name = f"process {int(number)}"
        except (OSError, ValueError):
            return "another process"
        return name if host in ("", socket.gethostname()) else f"{name} on {host}"


@contextmanager
def locked_folder(folder: Path, timeout_seconds: float = 0.0) -> Iterator[None]:
    """Within, no other process works in `folder`, which exists.

    Args:
        folder: What to lock.
        timeout_seconds: How long to wait for a process that is ending.

    Raises:
        Skip2BenchError: another process works there, or the folder cannot be written.
    """
    lock = ProcessLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout_seconds)
    except Timeout as error:
        raise Skip2BenchError(
            f"{lock.holder} is working in {str(folder)!r}; wait for it, or choose another --out-dir"
        ) from error
    except OSError as error:
        raise Skip2BenchError(
            f"cannot write to {str(folder)!r} ({error.strerror}); choose another --out-dir"
        ) from error
    try:
        yield
    finally:
        lock.release()


def is_folder_locked(folder: Path) -> bool:
    """True where a process works in `folder`; nothing is made there to find out."""
    if not (folder / LOCK_FILE).exists():
        return False
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def name_holder(folder: Path) -> str | None:
    """Who works in `folder`, in words; None where nobody does."""
    return ProcessLock(folder / LOCK_FILE).holder if is_folder_locked(folder) else None
