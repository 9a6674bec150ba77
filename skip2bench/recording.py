"""The life of a run folder around a measurement: what it starts with, and how it ended.

`bench` and `train` share it, so that a run that fails says so in the same words in both.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skip2bench.console import note, warn
from skip2bench.errors import DivergedError, Skip2BenchError
from skip2bench.out_of_memory import is_out_of_memory
from skip2bench.results import SCHEMA_VERSION, utc_now, write_json, write_yaml


@contextmanager
def record_run(
    folder: Path,
    config: dict[str, Any],
    environment: dict[str, Any],
    summary: dict[str, Any],
    started: float,
    *,
    earlier_seconds: float = 0.0,
    can_resume: bool = False,
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
        earlier_seconds: What earlier processes took for the same run; added to `wall_seconds`.
        can_resume: True where `train --resume` could go on with what a failed block leaves.

    Raises:
        Skip2BenchError: the block ran out of memory, or a file could not be read or written; any
            other error passes through.
    """
    preparation_seconds = time.monotonic() - started
    summary = {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "started_at": utc_now(),
        **summary,
        "preparation_seconds": preparation_seconds,
    }
    remedy = f"; go on with: skip2bench train --resume --out-dir {folder}" if can_resume else ""
    with _described(folder, ""):  # nothing can go on with a run that has not begun
        write_yaml(folder / "config.yaml", config)
        write_json(folder / "environment.json", environment)
        write_json(folder / "summary.json", summary)
    try:
        with _described(folder, remedy):
            yield summary
        if summary["status"] == "running":
            summary["status"] = "ok"
    except KeyboardInterrupt:
        summary["status"] = "interrupted"
        note(f"interrupted; what was done is in {folder}{remedy}")
        raise
    except BaseException as error:
        cause = error.__cause__
        is_oom = cause is not None and is_out_of_memory(cause)
        text = _last_line(cause if cause is not None and is_oom else error)
        summary |= {"status": "oom" if is_oom else "failed", "error": text}
        if isinstance(error, DivergedError):
            summary["diverged_at_step"] = error.step
        raise
    finally:
        wall_seconds = earlier_seconds + time.monotonic() - started
        summary |= {"finished_at": utc_now(), "wall_seconds": wall_seconds}
        _write_end(folder, summary, remedy)


@contextmanager
def _described(folder: Path, remedy: str) -> Iterator[None]:
    """Turn what a machine refuses, memory or a file, into an error that says what to do."""
    try:
        yield
    except Skip2BenchError:
        raise
    except OSError as error:
        if is_out_of_memory(error):
            raise _out_of_memory(error) from error
        raise Skip2BenchError(
            f"a file of the run in {str(folder)!r} could not be read or written ({error}); make "
            f"room or bring it back{remedy}"
        ) from error
    except BaseException as error:
        if not is_out_of_memory(error):
            raise
        raise _out_of_memory(error) from error


def _out_of_memory(error: BaseException) -> Skip2BenchError:
    return Skip2BenchError(
        f"out of memory ({_last_line(error)}); use a smaller batch or shorter sequences"
    )


def _write_end(folder: Path, summary: dict[str, Any], remedy: str) -> None:
    """Write the summary of a run that has ended.

    Raises:
        Skip2BenchError: the figures of a run that ended well cannot be written.
    """
    try:
        write_json(folder / "summary.json", summary)
    except OSError as error:
        text = f"cannot write {str(folder / 'summary.json')!r} ({error.strerror})"
        if summary["status"] != "ok":
            warn(f"{text}: it still says that the run is running")
            return
        raise Skip2BenchError(f"{text}; make room{remedy}") from error


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
