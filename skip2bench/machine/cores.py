"""Cores of this machine's own for a process and its children, and how many others have theirs.

Times of two processes compare only where neither takes a core from the other. So each takes a share
of the machine's cores, whose lock it holds while it works, and stays on them.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from skip2bench.errors import Skip2BenchError

_WAIT_SECONDS = 90.0
"""For a process that is ending."""
_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, kw_only=True)
class OwnCores:
    """Cores that this process stays on."""

    cores: tuple[int, ...] | None
    """Their numbers; None where the system cannot hold a process on cores."""
    count_beside: Callable[[], int]
    """How many other shares of the machine are taken now."""


@contextmanager
def own_cores(count: int | None, folder: Path | None = None) -> Iterator[OwnCores]:
    """Within, this process and those it starts stay on cores that no other such process has.

    Args:
        count: How many; None takes all that the process may run on.
        folder: Of this machine's own, with a lock for each share.

    Raises:
        Skip2BenchError: there are not so many, or all shares are taken.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield OwnCores(cores=None, count_beside=lambda: 0)
        return
    before = os.sched_getaffinity(0)
    folder = folder or Path(tempfile.gettempdir()) / f"skip2bench-cores-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    shares = list_shares(_in_order(before), count)
    lock, share = _take(shares, folder)
    try:
        os.sched_setaffinity(0, share)
        yield OwnCores(cores=share, count_beside=lambda: _count_taken(folder, share))
    finally:
        os.sched_setaffinity(0, before)
        lock.release()


def list_shares(cores: list[int], count: int | None) -> list[tuple[int, ...]]:
    """Cores in shares of `count`, as many as there are whole ones.

    Raises:
        Skip2BenchError: there is not one.
    """
    size = len(cores) if count is None else count
    if size > len(cores):
        raise Skip2BenchError(
            f"{size} cores are asked for, and {len(cores)} are there; ask for less"
        )
    return [tuple(cores[i : i + size]) for i in range(0, len(cores) - size + 1, size)]


def _in_order(cores: set[int]) -> list[int]:
    """Cores so that threads of one physical core are neighbours: they share what computes."""

    def place(core: int) -> tuple[int, int, int]:
        topology = _CPUS / f"cpu{core}" / "topology"
        try:
            return (
                int((topology / "physical_package_id").read_text()),
                int((topology / "core_id").read_text()),
                core,
            )
        except (OSError, ValueError):
            return (0, core, core)

    return sorted(cores, key=place)


def _name_lock(share: tuple[int, ...]) -> str:
    return f"{share[0]}-{len(share)}.lock"


def _take(shares: list[tuple[int, ...]], folder: Path) -> tuple[FileLock, tuple[int, ...]]:
    """The first share that is free, and its lock."""
    until = time.monotonic() + _WAIT_SECONDS
    while True:
        for share in shares:
            lock = FileLock(folder / _name_lock(share))
            with suppress(Timeout):
                lock.acquire(timeout=0)
                return lock, share
        if time.monotonic() > until:
            raise Skip2BenchError(
                f"all {len(shares)} shares of {len(shares[0])} cores of this machine are taken by "
                "other runs; wait for them, or run fewer at once"
            )
        time.sleep(0.2)


def _count_taken(folder: Path, own: tuple[int, ...]) -> int:
    taken = 0
    for path in folder.glob("*.lock"):
        if path.name == _name_lock(own):
            continue
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
            lock.release()
        except Timeout:
            taken += 1
        except OSError:  # of another user
            continue
    return taken
