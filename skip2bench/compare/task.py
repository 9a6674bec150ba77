"""A cell, or the micro-benchmark, as a process that is started: here, or on a worker.

What it comes to is in the comparison's folder when `run_task` returns, also where it raises.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skip2bench.compare.folder import CompareFolder
from skip2bench.compare.process import CellInterruptedError, CellRun, Outcome, run_cell
from skip2bench.config.commands import BenchConfig
from skip2bench.config.options import to_plain
from skip2bench.io.console import note
from skip2bench.machine.processes import ProcessContext


@dataclass(frozen=True, kw_only=True)
class Task:
    """A cell, or the micro-benchmark, as a process to start."""

    name: str
    key: str
    spec: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker runs its cells."""

    host: str
    cores: tuple[int, ...] | None
    """To which they are pinned."""
    count_beside: Callable[[], int]
    """How many others have cores of the same machine now."""


def run_task(
    folder: CompareFolder,
    task: Task,
    context: ProcessContext,
    place: Place | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[Outcome, CellRun | None]:
    """Run a task to its end, from where it was stopped if it was, and record how it ended.

    Args:
        folder: Of the comparison.
        task: What to run.
        context: See `cell_context`.
        place: Of the worker; None where the comparison itself runs it.
        should_stop: Asked now and then; once it says so, the task is interrupted.

    Raises:
        CellInterruptedError: it was interrupted; that is recorded.
        Skip2BenchError: another process works on it and does not end.
    """
    spec = task.spec | {"key": task.key}
    with folder.cell_released(task.name):
        if folder.can_continue(task.name, task.key):
            note(f"{task.name}: goes on where it was stopped")
            spec["config"] = spec["config"] | {"resume": True}
        else:
            folder.clear(task.name)
    beside = place.count_beside() if place else 0

    def placed(outcome: Outcome) -> Outcome:
        if place is None:
            return outcome
        most = max(beside, place.count_beside())
        return replace(outcome, host=place.host, cores=place.cores, beside=most)

    try:
        outcome, cell_run = run_cell(
            spec, folder.spec_file(task.name), folder.log_file(task.name), context, should_stop
        )
    except CellInterruptedError as interruption:
        folder.write_outcome(task.name, task.key, placed(interruption.outcome))
        raise
    outcome = placed(outcome)
    folder.write_outcome(task.name, task.key, outcome)
    return outcome, cell_run


def describe_process(
    kind: str, config: dict[str, Any], run_folder: Path, max_memory_bytes: int | None
) -> dict[str, Any]:
    """What `cell` is told; `arguments` is the command that repeats the run."""
    if kind == "bench":
        arguments = ["bench", *_bench_flags(config)]
    else:
        arguments = ["train", "--config", str(run_folder / "config.yaml")]
    return {
        "kind": kind,
        "config": config,
        "out_dir": str(run_folder),
        "arguments": arguments,
        "max_memory_bytes": max_memory_bytes,
    }


def _bench_flags(config: dict[str, Any]) -> list[str]:
    defaults = to_plain(BenchConfig())
    flags = []
    for name, value in config.items():
        if value == defaults[name]:
            continue
        flag = f"--{name.replace('_', '-')}"
        if name == "blocks":
            flags += [part for blocks in value for part in (flag, blocks)]
        else:
            flags += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return flags
