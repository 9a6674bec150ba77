"""What a worker is told, what it says, and where both stand.

A worker is a process somewhere that sees the comparison's folder; nothing else joins it to whoever
drives the comparison. The clocks of the two may differ: who wants to know whether a worker lives
looks at whether what it says changes.
"""

import os
import secrets
import socket
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from skip2bench.io.record import Count, Counts, Flag, Number, Record, Seconds, Text, Texts
from skip2bench.io.whole import utc_now, write_json
from skip2bench.machine.environment_record import Environment
from skip2bench.results.plain import DamagedFileError, read_json

BEAT_SECONDS = 1.0
"""How often a worker says what it does."""
SILENT_SECONDS = 60.0
"""A worker that has said nothing new for so long is worth a word."""
WorkerStatus = Literal["starting", "running", "ended", "refused"]


class JobTask(Record):
    """A cell to run; see `task.Task`."""

    name: Text
    key: Text
    spec: dict[str, Any]
    reads_cache: Flag
    """True where its cache_dir, if it has one, holds what it reads; else it fills it."""
    is_repeated: Flag
    """True where it runs again although it has ended well."""


class Job(Record):
    """`workers/NAME.job.json`: what a worker is to do. Without tasks it only looks at itself."""

    name: Text
    token: Text
    """Of the call that it belongs to."""
    tasks: tuple[JobTask, ...]
    directory: Text
    """In which paths begin that are not whole."""
    device: Text
    """As --device takes it."""
    data: Text
    reads: Texts
    """Files and folders that its worker must see."""
    machine: Environment | None
    """What the worker must be like; None where it is to say what it is."""
    cores: Count | None
    """How many of its own; None where it takes what it is given."""
    environment: dict[str, str]
    """Variables with which the call was made, of those that decide how libraries work."""
    stage: Text | None


class WorkerState(Record):
    """`workers/NAME.json`: what a worker does."""

    job: Text
    token: Text
    host: Text
    process: Count
    status: WorkerStatus
    beats: Count
    """Grows while it lives."""
    clock: Number
    """Its time of day when this was written, in seconds since 1970."""
    cores: Counts | None = None
    beside: Count | None = None
    """Other workers on the same machine."""
    cell: Text | None = None
    cell_seconds: Seconds | None = None
    """How long that one has run."""
    error: Text | None = None
    machine: Environment | None = None


class Call(Record):
    """`workers/call.json`: the call of `compare` that drives the comparison now."""

    token: Text
    host: Text
    process: Count
    engine: Text
    started_at: Text
    workers: Texts
    is_over: Flag = False
    cells: Count | None = None
    """As many as are expected."""
    left_seconds: Seconds | None = None


class Workers:
    """The folder in which a comparison and its workers meet."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the comparison's."""
        self.path = folder / "workers"

    @property
    def call_file(self) -> Path:
        """Who drives the comparison."""
        return self.path / "call.json"

    def job_file(self, name: str) -> Path:
        """What a worker is told."""
        return self.path / f"{name}.job.json"

    def state_file(self, name: str) -> Path:
        """What a worker does."""
        return self.path / f"{name}.json"

    def log_file(self, name: str) -> Path:
        """What a worker printed."""
        return self.path / f"{name}.log"

    def machine_file(self, name: str) -> Path:
        """What a worker found itself to be, while it looks."""
        return self.path / f"{name}.machine.json"

    def begin(self, engine: str) -> Call:
        """Take the comparison over: workers of an earlier call notice and stop."""
        self.path.mkdir(exist_ok=True)
        call = Call(
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            process=os.getpid(),
            engine=engine,
            started_at=utc_now(),
            workers=(),
        )
        write_json(self.call_file, call)
        return call

    def read_token(self) -> str | None:
        """Of the call that drives the comparison; None where that cannot be read now."""
        try:
            content = read_json(self.call_file)
        except (OSError, DamagedFileError):  # a file system may be away for a moment
            return None
        return str(content.get("token"))

    def read_state(self, name: str) -> WorkerState | None:
        """What a worker said last; None where it has said nothing that can be read."""
        try:
            return WorkerState.read(read_json(self.state_file(name)))
        except (OSError, DamagedFileError, ValidationError):
            return None
