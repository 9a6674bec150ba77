"""Run folders and the files in them, as runs write them; `reading` reads them back.

Files hold SI base units with the unit in the name; a figure that does not exist is an empty cell or
null. Small files are written aside and renamed into place; logs are appended a row at a time. The
life of a folder around a measurement is the same for `bench` and `train`, so that a run that fails
says so in the same words in both.
"""

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any, Generic, TypeVar

from skip2bench.errors import DivergedError, Skip2BenchError
from skip2bench.io.console import note, warn
from skip2bench.io.locks import locked_folder
from skip2bench.io.record import Record
from skip2bench.io.whole import utc_now, write_json, write_yaml
from skip2bench.machine.environment_record import Environment
from skip2bench.machine.out_of_memory import is_out_of_memory
from skip2bench.results.run_records import RunStart

AnySummary = TypeVar("AnySummary", bound=RunStart)
ANSWERS_FILE = "answers.jsonl"
RESULTS = Path("results")
"""Where runs go that are given no folder."""

PHASES = ("forward", "train_forward", "backward", "optimizer", "cached_forward", "cached_backward")
INFERENCE_COLUMNS = ("round", "form", "method", "blocks", "phase", "iteration", "seconds")
MEASUREMENT_COLUMNS = ("round", "method", "blocks", "phase", "iteration", "seconds")
METRICS_COLUMNS = (
    *("step", "epoch", "train_loss", "val_loss", "val_ppl"),
    *("learning_rate", "tokens", "train_seconds", "peak_memory_bytes"),
)
STEPS_COLUMNS = (
    "step",
    "epoch",
    "loss",
    "learning_rate",
    "tokens",
    "supervised_tokens",
    "train_seconds",
)


@contextmanager
def open_run_folder(
    kind: str,
    model: str,
    label: str,
    out_dir: Path | None = None,
    *,
    force: bool = False,
    root: Path = RESULTS,
) -> Iterator[Path]:
    """Make the folder of a new run and keep other processes out of it.

    Args:
        kind: `bench` or `train`.
        model: In the name of the folder, as is `label`.
        label: See `model`.
        out_dir: The folder; None for a new `<root>/<kind>/<UTC time>-<model>-<label>`.
        force: Replace the run that `out_dir` holds.
        root: Folder of results.

    Raises:
        Skip2BenchError: `out_dir` holds a run already and `force` is off, another process works
            there, or it cannot be made.
    """
    folder = create_run_folder(kind, model, label, out_dir, root=root)
    with locked_folder(folder):
        if holds_run(folder):
            if not force:
                raise Skip2BenchError(
                    f"{str(folder)!r} holds a run already; choose another --out-dir, add --resume "
                    "to go on with it, or --force to replace it"
                )
            # the replaced run's own; a `final` folder that no run made is never touched
            for name in ("final", "state", ".cache"):
                shutil.rmtree(folder / name, ignore_errors=True)
            (folder / ANSWERS_FILE).unlink(missing_ok=True)
        yield folder


def holds_run(folder: Path) -> bool:
    """True where a run has written a summary or saved a state."""
    return (folder / "summary.json").exists() or any(folder.glob("state/step-*.safetensors"))


def create_run_folder(
    kind: str, model: str, label: str, out_dir: Path | None = None, *, root: Path = RESULTS
) -> Path:
    """Make `out_dir`, or a new `<root>/<kind>/<UTC time>-<model>-<label>`.

    Raises:
        Skip2BenchError: it cannot be made.
    """
    if out_dir is None:
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        base = root / kind / f"{stamp}-{model}-{label}"
        return _make_free(_numbered(base))
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_make(out_dir, error) from error
    return out_dir


def create_log_folder(folder: Path) -> Path:
    """Make the next free `logs/version_N` of a run folder; one with nothing in it is free."""
    for number in count():
        path = folder / "logs" / f"version_{number}"
        if path.is_dir() and not any(path.iterdir()):
            return path  # left by a run that ended before it began
        if not path.exists():
            break
    return _make_free(folder / "logs" / f"version_{number}" for number in count())


def _numbered(base: Path) -> Iterable[Path]:
    yield base
    for number in count(2):
        yield base.with_name(f"{base.name}-{number}")


def _make_free(candidates: Iterable[Path]) -> Path:
    """Make the first of the folders that nobody has, even where several processes try at once."""
    for path in candidates:
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise _cannot_make(path, error) from error
        return path
    raise AssertionError("there is no end of candidates")


def _cannot_make(folder: Path, error: OSError) -> Skip2BenchError:
    return Skip2BenchError(f"cannot make the run folder {str(folder)!r}: {error.strerror}")


@dataclass
class Recording(Generic[AnySummary]):
    """The summary of a run while it goes on."""

    summary: AnySummary

    def add(self, figures: Record) -> None:
        """Take up what the run has measured."""
        self.summary = self.summary.joined(figures)

    def set(self, **values: Any) -> None:
        """Set single values; their names and types are the summary's."""
        self.summary = self.summary.model_copy(update=values)


@contextmanager
def record_run(
    folder: Path,
    config: dict[str, Any],
    environment: Environment,
    summary: AnySummary,
    started: float,
    *,
    earlier_seconds: float = 0.0,
    go_on: str | None = None,
) -> Iterator["Recording[AnySummary]"]:
    """Write the run's files at once, and `summary.json` again with the status when the block ends.

    Args:
        folder: The run folder.
        config: Written as `config.yaml`; plain values.
        environment: Written as `environment.json`.
        summary: Of a run that begins; the block adds its figures to it, and may set a `status`
            other than "ok".
        started: `time.monotonic()` when the command began; `wall_seconds` counts from there, and
            `preparation_seconds` are those until now (checking input, loading and tokenizing data).
        earlier_seconds: What earlier processes took for the same run; added to `wall_seconds`.
        go_on: The command that could go on with what a failed block leaves; None where none can.

    Raises:
        Skip2BenchError: the block ran out of memory, or a file could not be read or written; any
            other error passes through.
    """
    recording = Recording(summary)
    recording.set(preparation_seconds=time.monotonic() - started)
    remedy = f"; go on with: {go_on}" if go_on else ""
    with _described(folder, ""):  # nothing can go on with a run that has not begun
        write_yaml(folder / "config.yaml", config)
        write_json(folder / "environment.json", environment)
        write_json(folder / "summary.json", recording.summary)
    try:
        with _described(folder, remedy):
            yield recording
        if recording.summary.status == "running":
            recording.set(status="ok")
    except KeyboardInterrupt:
        recording.set(status="interrupted")
        note(f"interrupted; what was done is in {folder}{remedy}")
        raise
    except BaseException as error:
        cause = error.__cause__
        is_oom = cause is not None and is_out_of_memory(cause)
        text = _last_line(cause if cause is not None and is_oom else error)
        recording.set(status="oom" if is_oom else "failed", error=text)
        if isinstance(error, DivergedError):
            recording.set(diverged_at_step=error.step)
        raise
    finally:
        wall_seconds = earlier_seconds + time.monotonic() - started
        recording.set(finished_at=utc_now(), wall_seconds=wall_seconds)
        _write_end(folder, recording.summary, remedy)


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


def _write_end(folder: Path, summary: RunStart, remedy: str) -> None:
    """Write the summary of a run that has ended.

    Raises:
        Skip2BenchError: the figures of a run that ended well cannot be written.
    """
    try:
        write_json(folder / "summary.json", summary)
    except OSError as error:
        text = f"cannot write {str(folder / 'summary.json')!r} ({error.strerror})"
        if summary.status != "ok":
            warn(f"{text}: it still says that the run is running")
            return
        raise Skip2BenchError(f"{text}; make room{remedy}") from error


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
