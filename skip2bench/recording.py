"""The life of a run folder around a measurement: what it starts with, and how it ended.

`bench` and `train` share it, so that a run that fails says so in the same words in both.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from skip2bench.console import note
from skip2bench.errors import Skip2BenchError
from skip2bench.results import SCHEMA_VERSION, utc_now, write_json, write_yaml


@contextmanager
def record_run(
    folder: Path,
    config: dict[str, Any],
    environment: dict[str, Any],
    summary: dict[str, Any],
    started: float,
) -> Iterator[dict[str, Any]]:
    """Write the run's files at once, and `summary.json` again with the status when the block ends.

    Args:
        folder: The run folder.
        config: Written as `config.yaml`; plain values.
        environment: Written as `environment.json`.
        summary: What is known at the start; the block adds its figures to what it is given, and may
            set a `status` other than "ok".
        started: `time.monotonic()` when the command began; `wall_seconds` counts from there, and
            `preparation_seconds` are those until now (checking input, loading and tokenizing data).

    Raises:
        Skip2BenchError: the block ran out of memory; any other error passes through.
    """
    preparation_seconds = time.monotonic() - started
    summary = {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "started_at": utc_now(),
        **summary,
        "preparation_seconds": preparation_seconds,
    }
    write_yaml(folder / "config.yaml", config)
    write_json(folder / "environment.json", environment)
    write_json(folder / "summary.json", summary)
    try:
        yield summary
        if summary["status"] == "running":
            summary["status"] = "ok"
    except KeyboardInterrupt:
        summary["status"] = "interrupted"
        note(f"interrupted; what was done is in {folder}")
        raise
    except BaseException as error:
        is_oom = is_out_of_memory(error)
        summary |= {"status": "oom" if is_oom else "failed", "error": _last_line(error)}
        if is_oom:
            raise Skip2BenchError(
                f"out of memory ({_last_line(error)}); use a smaller batch or shorter sequences"
            ) from error
        raise
    finally:
        summary |= {"finished_at": utc_now(), "wall_seconds": time.monotonic() - started}
        write_json(folder / "summary.json", summary)


def is_out_of_memory(error: BaseException) -> bool:
    """True for CUDA's error, Python's, and the RuntimeError that torch raises on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
