"""What every engine can do: start workers' processes, and tell how they ended."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from skip2bench.compare.engines.job import Workers
from skip2bench.compare.process import END_SECONDS
from skip2bench.machine.processes import interrupt

_MODULE = "skip2bench.compare.engines.worker"
_TAIL_BYTES = 4000
LOST = 255
"""Exit status of a worker of whose end nobody knows."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Room for one worker at a time."""

    name: str
    """Of the slot, in names of files."""
    host: str | None = None
    """Where it is; None where that is decided anew for each worker."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a worker's process ended."""

    exit_status: int
    line: str
    """The last one that it printed; else what the engine says of it."""


@dataclass(frozen=True, kw_only=True)
class CellNeeds:
    """What a cell asks of a machine."""

    cores: int | None
    """None takes an equal share of it for each of its GPUs, or all of it."""
    gpus: int
    memory_bytes: int | None
    resources: dict[str, float]


class Engine(Protocol):
    """Something that starts processes in its slots."""

    slots: Sequence[Slot]
    cores: int | None
    """What each worker takes for its own; None where it takes what it is given."""

    def start(self, folder: Path, jobs: Sequence[tuple[Slot, str]]) -> None:
        """Start a worker for each job, by its name, in a slot that is free."""

    def poll(self, slot: Slot) -> Ended | None:
        """How the worker in a slot ended; None while it runs or waits."""

    def end(self, slot: Slot) -> None:
        """End the worker in a slot at once, where it has one."""

    def is_alive(self, slot: Slot) -> bool:
        """False once a slot's machine is gone."""

    def close(self) -> None:
        """End all that is left, and let go of the cluster."""


def launch(
    folder: Path, name: str, variables: dict[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """Start a worker's process on this machine; it prints to its log."""
    with Workers(folder).log_file(name).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", _MODULE, str(folder), name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | (variables or {}),
            start_new_session=True,  # Ctrl-C reaches it once, through the comparison
        )


def launch_and_wait(folder: str, name: str) -> tuple[int, str]:
    """On a machine of a cluster: run a worker to its end; its exit status and its last line."""
    if not Path(folder).is_dir():
        import socket

        return 1, (
            f"worker {socket.gethostname()} does not see {folder!r}; the comparison's folder must "
            "be on a file system that all workers share: choose such an --out-dir"
        )
    process = launch(Path(folder), name)
    try:
        status = process.wait()
    except BaseException:
        end_process(process)
        raise
    return status, last_line(Path(folder), name)


def end_process(process: "subprocess.Popen[bytes]") -> None:
    """Interrupt a worker, so that its cell records its end; kill it where it takes too long."""
    with suppress(ProcessLookupError):
        interrupt(process.pid)
    try:
        process.wait(END_SECONDS + 5.0)  # its cell has END_SECONDS
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_line(folder: Path, name: str) -> str:
    """The last line that a worker printed; empty where there is none."""
    try:
        text = Workers(folder).log_file(name).read_bytes()[-_TAIL_BYTES:]
    except OSError:
        return ""
    lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else ""
