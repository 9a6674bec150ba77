"""The folder of a comparison: which cells are done in it, and for which configuration.

A cell counts as done only if it ended well under the same key (its resolved configuration, the
data's content, the weights, versions and hardware) and still has what it wrote: summary, curves,
steps, adapter. So a comparison that was stopped, killed or enlarged goes on where it was, and never
with figures of something else.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from skip2bench.compare.process import END_SECONDS, CellRun, Outcome
from skip2bench.config.compare import CompareConfig
from skip2bench.config.options import default_of, list_options, to_plain
from skip2bench.data.files import list_inputs
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import warn
from skip2bench.io.locks import locked_folder
from skip2bench.io.whole import hash_content, write_json
from skip2bench.machine.environment_record import Environment
from skip2bench.results.plain import DamagedFileError
from skip2bench.results.reading import TrainRun, find_run, is_train, read_run
from skip2bench.results.run_folder import create_run_folder

if TYPE_CHECKING:  # a worker reads and writes the folder without torch
    from skip2bench.compare.matrix import Cell

_KEYED_ENVIRONMENT = ("skip2bench", "torch", "litgpt", "python", "processor", "threads", "gpu")
_ROOT = Path("results")
BENCH = "bench"
"""Name of the micro-benchmark among the cells."""


class CompareFolder:
    """Cells below one folder."""

    def __init__(self, path: Path) -> None:
        """`path` exists."""
        self.path = path
        self.cache = path / "cache"
        self._cells = path / "cells"
        self._cells.mkdir(exist_ok=True)
        self._damaged: set[str] = set()
        self._whole: dict[str, tuple[tuple[int, int], CellRun]] = {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within, no other comparison works in the folder.

        Raises:
            Skip2BenchError: one does.
        """
        with locked_folder(self.path):
            yield

    def run_folder(self, name: str) -> Path:
        """Run folder of a cell, or of the micro-benchmark."""
        return self.path / BENCH if name == BENCH else self._cells / name

    def log_file(self, name: str) -> Path:
        """What a cell printed."""
        return self._cells / f"{name}.log"

    def spec_file(self, name: str) -> Path:
        """What a cell's process is told."""
        return self._cells / f"{name}.spec.json"

    def read_outcome(self, name: str, key: str) -> Outcome | None:
        """How a cell ended under this key; None where it has not."""
        stored_key, outcome = self._read(name)
        return outcome if stored_key == key else None

    def has_ended_well(self, name: str, key: str) -> bool:
        """True where a cell has run to its end under this key."""
        outcome = self.read_outcome(name, key)
        return outcome is not None and outcome.status == "ok"

    def end_stamp(self, name: str) -> tuple[int, int] | None:
        """What changes when a cell's end is recorded; None where no end is."""
        try:
            end = (self._cells / f"{name}.json").stat()
        except OSError:
            return None
        return end.st_ino, end.st_mtime_ns

    def holds_another(self, name: str, key: str) -> bool:
        """True where a cell of this name ended well under another key."""
        stored_key, outcome = self._read(name)
        return outcome is not None and outcome.status == "ok" and stored_key != key

    def _read(self, name: str) -> tuple[str | None, Outcome | None]:
        try:
            file = self._cells / f"{name}.json"
            stored = json.loads(file.read_text(encoding="utf-8"))
            outcome = Outcome(**stored["outcome"])
            if outcome.status == "ok" and not self._is_whole(name, file.stat()):
                return None, None
            return stored["key"], outcome
        except (OSError, ValueError, KeyError, TypeError, Skip2BenchError):
            return None, None  # not there, half of it, or another version's: the cell runs again

    def _is_whole(self, name: str, end: os.stat_result) -> bool:
        """True where a cell that ended well has all that it wrote; said once where it has not.

        Its run is read once for each time that it has ended: `end` is of the record of that.
        """
        stamp = (end.st_ino, end.st_mtime_ns)
        if name in self._whole and self._whole[name][0] == stamp:
            return True
        try:
            self._whole[name] = (stamp, read_whole(self.run_folder(name)))
        except DamagedFileError as damage:
            if name not in self._damaged:
                self._damaged.add(name)
                warn(f"{name} runs again: {damage}")
            return False
        return True

    def finished_run(self, name: str) -> CellRun | None:
        """The run of a cell that `read_outcome` has found to have ended well."""
        return self._whole[name][1] if name in self._whole else None

    def write_outcome(self, name: str, key: str, outcome: Outcome) -> None:
        """Record how a cell ended."""
        write_json(self._cells / f"{name}.json", {"key": key, "outcome": asdict(outcome)})

    @contextmanager
    def cell_released(self, name: str) -> Iterator[None]:
        """Wait until no process works in the folder of a cell, and keep it so within.

        The cell of a comparison that was killed notices it and ends a moment later.

        Raises:
            Skip2BenchError: its process does not end.
        """
        folder = self.run_folder(name)
        if not folder.is_dir():
            yield
            return
        with locked_folder(folder, timeout_seconds=END_SECONDS):
            yield

    def can_continue(self, name: str, key: str) -> bool:
        """True where a run under this key was stopped and has saved its state."""
        try:
            spec = json.loads(self.spec_file(name).read_text(encoding="utf-8"))
            stored_key, outcome = self._read(name)
            was_stopped = outcome is None or (stored_key, outcome.status) == (key, "interrupted")
            is_same = (spec["kind"], spec["key"]) == ("train", key)
        except (OSError, ValueError, LookupError, TypeError):
            return False  # never begun, half of it, or another version's
        return was_stopped and is_same and self._has_state(name)

    def _has_state(self, name: str) -> bool:
        from skip2bench.train.state import StateFolder  # brings torch

        try:
            return bool(StateFolder(self.run_folder(name)).files())
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def clear(self, name: str) -> None:
        """Remove what an earlier attempt at a cell left."""
        (self._cells / f"{name}.json").unlink(missing_ok=True)
        shutil.rmtree(self.run_folder(name), ignore_errors=True)


def find_folder(config: CompareConfig, model: str) -> Path:
    """The folder to work in: `out_dir`, the newest of the same configuration, or a new one.

    Raises:
        Skip2BenchError: `out_dir` holds something else, or a comparison that is not to be resumed.
    """
    if config.out_dir is not None:
        if not (config.out_dir / "summary.json").exists():
            return create_run_folder("compare", model, config.flow, config.out_dir)
        if read_run(config.out_dir).kind != "compare":
            raise Skip2BenchError(
                f"{str(config.out_dir)!r} holds a run that is no comparison; "
                "choose another --out-dir"
            )
        if not config.resume:
            raise Skip2BenchError(
                f"{str(config.out_dir)!r} holds a comparison already; choose another --out-dir, or "
                "leave --no-resume out to go on with it"
            )
        return config.out_dir
    found = find_newest(config, model) if config.resume else None
    return found or create_run_folder("compare", model, config.flow)


def find_newest(config: CompareConfig, model: str) -> Path | None:
    """The newest folder below the results that holds the same configuration."""
    wanted = to_plain(config)
    for folder in sorted((_ROOT / "compare").glob(f"*-{model}-{config.flow}*"), reverse=True):
        try:
            stored = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if stored == json.loads(json.dumps(wanted)):
            return folder
    return None


def make_key(content: dict[str, Any], environment: Environment) -> str:
    """Hash of all that decides a result: what is run, and on which weights, versions, hardware."""
    named = environment.model_dump(include={"checkpoint", *_KEYED_ENVIRONMENT})
    return hashlib.sha256(
        json.dumps(content | named, sort_keys=True, default=str).encode()
    ).hexdigest()


def describe_cell(cell: "Cell", data_sha256: str) -> dict[str, Any]:
    """What a cell's key covers; where it keeps things makes no difference.

    Args:
        cell: The cell.
        data_sha256: Of the tokens and labels that the matrix shares; what files and folders a
            configuration reads otherwise is covered by their content.
    """
    places = {item.name: default_of(item) for item in list_options(cell.config, "place")}
    return {
        "config": to_plain(cell.config) | places,
        "role": cell.role,
        "peer": cell.peer,
        "max_memory_bytes": cell.max_memory_bytes,
        "data": data_sha256,
        "files": {name: hash_content(Path(it)) for name, it in list_inputs(cell.config).items()},
    }


def read_whole(folder: Path) -> CellRun:
    """The run of a cell that ended well.

    A benchmark's or a peer's run is checked as far as its summary.

    Raises:
        DamagedFileError: something is missing or damaged; its text says what, in a few words.
    """
    cell_run = CellRun(run=find_run(folder))
    damage = _find_damage(cell_run)
    if damage is not None:
        raise DamagedFileError(damage)
    return cell_run


def _find_damage(cell_run: CellRun) -> str | None:
    run = cell_run.run
    if run.summary.status != "ok":
        return f"its status is {run.summary.status!r}"
    if not is_train(run) or run.summary.peer:
        return None
    try:
        if cell_run.curve is None:
            return "metrics.csv is missing, or has no row"
    except Skip2BenchError as error:
        return str(error).partition("; ")[0]
    return _find_lost_steps(run) or _find_lost_adapter(run)


def _find_lost_steps(run: TrainRun) -> str | None:
    path = run.folder / str(run.summary.log_folder) / "steps.csv"
    try:
        rows = path.read_bytes().count(b"\n") - 1
    except OSError:
        return "steps.csv is missing"
    steps = run.summary.steps
    return None if rows == steps else f"steps.csv has {rows} rows, for {steps} steps"


def _find_lost_adapter(run: TrainRun) -> str | None:
    wanted = run.summary.adapter_bytes
    sizes = [path.stat().st_size for path in (run.folder / "final").glob("*") if path.is_file()]
    if wanted is None or wanted in sizes:
        return None
    return f"no file in final has the adapter's {wanted:,} bytes"
