"""Starts a cell of a comparison as a process of its own and says how it ended.

Each cell has clean memory and a log. What else used the processor meanwhile is measured: the time
that all cores were busy, less the cell's own.
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from skip2bench.compare import cell
from skip2bench.config.run import EMBEDDED_DATA
from skip2bench.io.whole import utc_now, write_json
from skip2bench.machine.processes import (
    KILLED,
    ProcessContext,
    interrupt,
    leave_terminal,
    process_context,
)
from skip2bench.machine.processor_use import ProcessorMeter
from skip2bench.results.curves import LossCurve, read_loss_curve
from skip2bench.results.reading import AnyRun, is_train, read_run
from skip2bench.results.run_records import Status

END_SECONDS = 60.0
"""What an interrupted cell gets to write its files."""
_STOP_SECONDS = 0.5
"""Between two looks whether a cell is to stop."""
_MODULES = ("skip2bench.train.run", "skip2bench.bench.run")
"""What cells load."""
_PYDOC = "skip2bench.data.pydoc_ready"
_MEMORY_WORDS = (
    *("bad_alloc", "can't allocate memory", "cannot allocate memory", "out of memory"),
    *("memoryerror", "memory allocation still failed"),  # Python's, and OpenBLAS's
)


@dataclass(frozen=True, kw_only=True)
class CellRun:
    """The run of a cell, each of its files read once."""

    run: AnyRun

    @cached_property
    def curve(self) -> LossCurve | None:
        """Its evaluation points; see `read_loss_curve`."""
        return read_loss_curve(self.run) if is_train(self.run) else None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a cell ended."""

    status: Status
    error: str | None
    started_at: str
    wall_seconds: float
    other_cpu_cores: float | None
    """Mean number of cores that others kept busy during the cell; None where nobody can say."""
    exit_status: int
    host: str | None = None
    """Of the worker that ran it; None where the comparison itself did."""
    cores: tuple[int, ...] | None = None
    """To which it was pinned; None where it had all."""
    beside: int | None = None
    """How many runs of others were given cores of the same machine, at the most."""


class CellInterruptedError(Exception):
    """The comparison was interrupted while a cell ran; `outcome` and `cell_run` are the cell's."""

    def __init__(self, outcome: Outcome, cell_run: CellRun | None) -> None:
        """Keep what the cell came to."""
        super().__init__(outcome.status)
        self.outcome, self.cell_run = outcome, cell_run


def cell_context(device_type: str, data: str) -> ProcessContext:
    """In what the processes of cells start.

    Args:
        device_type: What they work on.
        data: The configuration's; the embedded data is parsed once for all.
    """
    modules = (*_MODULES, _PYDOC) if data == EMBEDDED_DATA else _MODULES
    return process_context(device_type, modules)


def run_cell(
    spec: dict[str, Any],
    spec_file: Path,
    log_file: Path,
    context: ProcessContext,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[Outcome, CellRun | None]:
    """Run a cell to its end.

    Args:
        spec: What `cell` takes: kind, config, out_dir, arguments, max_memory_bytes; and `key`, for
            whoever finds it stopped.
        spec_file: Keeps the spec.
        log_file: Takes the cell's stdout and stderr.
        context: See `cell_context`.
        should_stop: Asked every moment; once it says so, the cell is interrupted.

    Returns:
        How it ended, and its run; None where it ended before it had one.

    Raises:
        CellInterruptedError: this process was interrupted or asked to stop; the cell has ended.
    """
    write_json(spec_file, spec)
    started_at, started = utc_now(), time.monotonic()
    meter = ProcessorMeter()
    meter.enter("cell")
    log_file.write_bytes(b"")
    process = context.Process(target=_run_described, args=(spec, log_file, dict(os.environ)))
    interrupted = False
    try:
        process.start()
        while process.is_alive():
            process.join(None if should_stop is None else _STOP_SECONDS)
            if should_stop is not None and should_stop():
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        interrupted = True
        _end(process)
    exit_status = KILLED if process.exitcode is None else process.exitcode
    wall_seconds = time.monotonic() - started
    use = meter.total(["cell"])
    cell_run = read_cell_run(Path(spec["out_dir"]))
    status, error = _judge(cell_run, log_file, exit_status)
    outcome = Outcome(
        status="interrupted" if interrupted else status,
        error=None if interrupted else error,
        started_at=started_at,
        wall_seconds=wall_seconds,
        other_cpu_cores=use.others_cores if use else None,
        exit_status=exit_status,
    )
    if interrupted:
        raise CellInterruptedError(outcome, cell_run)
    return outcome, cell_run


def read_cell_run(run_folder: Path) -> CellRun | None:
    """The run in a cell's folder; None where its process ended before it wrote a summary."""
    if not (run_folder / "summary.json").is_file():
        return None
    return CellRun(run=read_run(run_folder))


def _run_described(spec: dict[str, Any], log_file: Path, environment: Mapping[str, str]) -> None:
    """In the cell's process: write to the log alone, and run the cell."""
    leave_terminal()  # Ctrl-C reaches it once, through the comparison
    os.environ.update(environment)  # where it was forked it may be older
    log = os.open(log_file, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    cell.main(spec)


def _end(process: BaseProcess) -> None:
    """Interrupt a cell, so that it records its end; kill it where it takes too long."""
    if process.pid is None:  # it had not started
        return
    with suppress(KeyboardInterrupt, ProcessLookupError):
        interrupt(process.pid)
        process.join(END_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()


def _judge(cell_run: CellRun | None, log_file: Path, exit_status: int) -> tuple[Status, str | None]:
    """Status of a cell by its own summary, or by how its process ended."""
    if cell_run is not None:
        summary = cell_run.run.summary
        status, error = summary.status, summary.error
        if status == "ok" and exit_status == 0:
            return "ok", None
        if status in ("oom", "failed", "interrupted"):
            return status, error
    log = log_file.read_text(encoding="utf-8", errors="replace")
    last = _last_line(log) or f"exit status {exit_status}"
    if exit_status == KILLED:
        return "oom", "killed (signal 9), as the system does where memory runs out"
    if any(words in log[-4000:].lower() for words in _MEMORY_WORDS):
        return "oom", last
    return "failed", last


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else ""
