"""How far a comparison is, told from its files alone: by anyone who sees its folder."""

import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from skip2bench.compare.engines.job import Call, Workers
from skip2bench.errors import Skip2BenchError
from skip2bench.io.locks import is_folder_locked, name_holder
from skip2bench.io.record import Count, Counts, Flag, Record, Seconds, Text
from skip2bench.results.comparison_records import ComparisonResults
from skip2bench.results.plain import DamagedFileError, read_optional
from skip2bench.results.reading import ACROSS_FILE, RESULTS_FILE
from skip2bench.results.registration import read_ends

_ALIVE_SECONDS = 30.0
"""A file that was rewritten so lately has a writer; clocks of file servers may be a little off."""


class RunningCell(Record):
    """A cell that a worker has begun, or what a job waits for."""

    host: Text | None
    cell: Text
    seconds: Seconds | None
    """For how long; None where nobody has said."""
    silent_seconds: Seconds | None
    """Since its worker said anything; None for a cell of a comparison without workers."""
    cores: Counts | None = None


class ComparisonStatus(Record):
    """How far a comparison is."""

    folder: Text
    engine: Text
    is_driven: Flag
    """False where nobody gives out cells now: the same command again goes on."""
    driver: Text | None
    statuses: dict[str, Count]
    """How many cells have ended in which way."""
    cells: Count
    """As many as are known or expected."""
    running: tuple[RunningCell, ...]
    left_seconds: Seconds | None


def read_status(folder: Path) -> tuple[ComparisonStatus, ...]:
    """Of the comparison in a folder; of each data set's, where it has several.

    Raises:
        Skip2BenchError: there is none.
    """
    if (folder / ACROSS_FILE).exists():
        own = [it for it in sorted(folder.iterdir()) if (it / "cells").is_dir()]
        return tuple(_read_one(it) for it in own)
    if not (folder / "cells").is_dir():
        raise Skip2BenchError(
            f"{str(folder)!r} holds no comparison; give the folder that compare prints, or its "
            "--out-dir"
        )
    return (_read_one(folder),)


def _read_one(folder: Path) -> ComparisonStatus:
    ends = read_ends(folder)
    call = _read_call(folder)
    try:
        results = read_optional(ComparisonResults, folder / RESULTS_FILE)
    except DamagedFileError:
        results = None
    known = len(results.cells) if results else 0
    ended = {name for name, end in ends.items() if end.outcome.status == "ok"}
    running = _list_workers(folder, call, ended) if call else _list_begun(folder)
    is_driven = _is_fresh(Workers(folder).call_file) if call else is_folder_locked(folder)
    return ComparisonStatus(
        folder=str(folder),
        engine=call.engine if call else "local",
        is_driven=is_driven and not (call and call.is_over),
        driver=f"{call.host}, process {call.process}" if call else name_holder(folder),
        statuses=dict(sorted(Counter(end.outcome.status for end in ends.values()).items())),
        cells=max(known, len(ends), (call and call.cells) or 0),
        running=running,
        left_seconds=call.left_seconds if call else None,
    )


def _read_call(folder: Path) -> Call | None:
    try:
        return read_optional(Call, Workers(folder).call_file)
    except DamagedFileError:
        return None


def _list_workers(folder: Path, call: Call, ended: Collection[str]) -> tuple[RunningCell, ...]:
    """What workers say they run; the last word of one that was lost is not the truth."""
    workers = Workers(folder)
    found: dict[str, RunningCell] = {}
    for path in sorted(workers.path.glob("*.job.json")):
        name = path.name.removesuffix(".job.json")
        state = workers.read_state(name)
        if state is None or state.cell is None or state.status in ("ended", "refused"):
            continue
        if state.cell in ended:
            continue
        silent = max(0.0, time.time() - workers.state_file(name).stat().st_mtime)
        if state.token != call.token and silent > _ALIVE_SECONDS:
            continue  # of an earlier call, and gone
        one = RunningCell(
            host=state.host,
            cell=state.cell,
            seconds=state.cell_seconds,
            silent_seconds=silent,
            cores=state.cores,
        )
        known = found.get(one.cell)
        if known is None or silent < (known.silent_seconds or 0.0):
            found[one.cell] = one
    return tuple(found.values())


def _list_begun(folder: Path) -> tuple[RunningCell, ...]:
    """Of a comparison whose cells run one after the other: the one that is on its way."""
    if not is_folder_locked(folder):
        return ()
    specs = {
        path.name.removesuffix(".spec.json"): path.stat().st_mtime
        for path in (folder / "cells").glob("*.spec.json")
    }
    begun = [(since, name) for name, since in specs.items() if _has_begun_anew(folder, name, since)]
    if not begun:
        return ()
    since, name = max(begun)
    seconds = max(0.0, time.time() - since)
    return (RunningCell(host=None, cell=name, seconds=seconds, silent_seconds=None),)


def _has_begun_anew(folder: Path, name: str, since: float) -> bool:
    """True for a cell of which no end is recorded since it was begun."""
    try:
        return (folder / "cells" / f"{name}.json").stat().st_mtime < since
    except OSError:
        return True


def _is_fresh(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < _ALIVE_SECONDS
    except OSError:
        return False
