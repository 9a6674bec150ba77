"""Run folders read back: which there are below a folder, and what is in them.

A run that cannot be trusted is named with its reason and never half read; what a value must be is
the records' business, how damaged files are met `plain`'.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeGuard, TypeVar

from pydantic import ConfigDict, ValidationError

from skip2bench.errors import Skip2BenchError
from skip2bench.io.record import AnyRecord, describe, explain, one_of, parse_time
from skip2bench.machine.environment_record import Environment
from skip2bench.results.bench_records import BenchSummary
from skip2bench.results.comparison_records import ComparisonResults
from skip2bench.results.plain import DamagedFileError, read_json, read_yaml
from skip2bench.results.run_records import CompareSummary, TrainSummary, Versioned
from skip2bench.results.tune_records import (
    EXPLORATION,
    FINALISTS,
    TUNE_FILE,
    TuneResults,
    TuneSummary,
)

SUMMARY_FILE = "summary.json"
RESULTS_FILE = "comparison_results.json"
ACROSS_FILE = "across.json"
"""In the folder above comparisons on several data sets."""
LEVELS = 2
"""How deep run folders lie below the results: `<kind>/<run>`."""
_SUMMARIES: dict[str, type["Summary"]] = {
    "bench": BenchSummary,
    "train": TrainSummary,
    "compare": CompareSummary,
    "tune": TuneSummary,
}

Summary = BenchSummary | TrainSummary | CompareSummary | TuneSummary
AnySummary = TypeVar("AnySummary", bound=Summary, covariant=True)
Content = TypeVar("Content")


@dataclass(frozen=True, kw_only=True)
class Run(Generic[AnySummary]):
    """A run folder that was read back."""

    folder: Path
    summary: AnySummary
    environment: Environment
    config: dict[str, Any]

    @property
    def kind(self) -> str:
        """`bench`, `train`, `compare` or `tune`."""
        return self.summary.kind

    @property
    def label(self) -> str:
        """What it calls itself, else its kind."""
        label = None if isinstance(self.summary, BenchSummary) else self.summary.label
        return label or self.kind

    @property
    def started(self) -> float:
        """When it started, in seconds since 1970; a run that does not say so is the oldest."""
        started = parse_time(self.summary.started_at)
        return float("-inf") if started is None else started


BenchRun = Run[BenchSummary]
TrainRun = Run[TrainSummary]
CompareRun = Run[CompareSummary]
TuneRun = Run[TuneSummary]
AnyRun = Run[Summary]


def is_bench(run: AnyRun) -> TypeGuard[BenchRun]:
    """True for a benchmark."""
    return isinstance(run.summary, BenchSummary)


def is_train(run: AnyRun) -> TypeGuard[TrainRun]:
    """True for a training run, a peer's too."""
    return isinstance(run.summary, TrainSummary)


def is_comparison(run: AnyRun) -> TypeGuard[CompareRun]:
    """True for a comparison."""
    return isinstance(run.summary, CompareSummary)


def is_tune(run: AnyRun) -> TypeGuard[TuneRun]:
    """True for a sweep over many configurations."""
    return isinstance(run.summary, TuneSummary)


def read_runs(root: Path) -> tuple[list[AnyRun], dict[Path, str]]:
    """Read every run folder at or below `root` (three levels), oldest first.

    So is the micro-benchmark of a comparison; `reference` folders are left out, and so is the
    comparison that a sweep makes of its finalists, whose figures the sweep's own file has. A run
    that links lead to as well is read once, where it really lies.

    Returns:
        The runs, and by folder why others cannot be read.

    Raises:
        Skip2BenchError: `root` is no folder, or cannot be listed.
    """
    if not root.is_dir():
        raise Skip2BenchError(
            f"results folder {str(root)!r} does not exist; run 'skip2bench bench' first"
        )
    runs: list[AnyRun] = []
    unreadable: dict[Path, str] = {}
    for folder in _without_links(root, _find_folders(root, unreadable)):
        try:
            runs.append(find_run(folder))
        except DamagedFileError as error:
            unreadable[folder] = str(error)
    if root in unreadable and not runs:
        raise Skip2BenchError(
            f"the results in {str(root)!r} cannot be read ({unreadable[root]}); mend that, or "
            "choose another folder with --results"
        )
    runs.sort(key=lambda run: (run.started, str(run.folder)))
    return runs, unreadable


def read_run(folder: Path) -> AnyRun:
    """Read the three files of one run folder; a missing environment or config reads as empty.

    Raises:
        Skip2BenchError: a file cannot be read, or holds what cannot be trusted.
    """
    try:
        return find_run(folder)
    except DamagedFileError as error:
        raise Skip2BenchError(
            f"the run in {str(folder)!r} cannot be read ({error}); move it away"
        ) from error


def find_run(folder: Path) -> AnyRun:
    """As `read_run`, but an error is the reason alone.

    Raises:
        DamagedFileError: a file cannot be read, or holds what cannot be trusted.
    """
    environment, config = folder / "environment.json", folder / "config.yaml"
    return Run(
        folder=folder,
        summary=_read_checked(folder / SUMMARY_FILE, read_json, check_summary),
        environment=_read_checked(environment, read_json, check_environment)
        if os.path.lexists(environment)
        else Environment(),
        config=_read_checked(config, read_yaml, _check_config) if os.path.lexists(config) else {},
    )


def read_comparison(run: CompareRun) -> ComparisonResults:
    """Content of the results file of a comparison's folder.

    Raises:
        DamagedFileError: it is missing or cannot be trusted.
    """
    return _read_checked(run.folder / RESULTS_FILE, read_json, check_comparison)


def read_tune(run: TuneRun) -> TuneResults:
    """Content of the results file of a sweep's folder.

    Raises:
        DamagedFileError: it is missing or cannot be trusted.
    """
    return _read_checked(run.folder / TUNE_FILE, read_json, check_tune)


def check_summary(content: Any) -> Summary:
    """The content of `summary.json`, if it can be trusted.

    Raises:
        DamagedFileError: it is another schema's, or a value is not what its name says.
    """
    kind = _check(_Head, content).kind
    return _check(_SUMMARIES[kind], content)


def check_environment(content: Any) -> Environment:
    """The content of `environment.json`, if it can be trusted.

    Raises:
        DamagedFileError: a value is not what its name says.
    """
    return _check(Environment, content)


def check_comparison(content: Any) -> ComparisonResults:
    """The content of `comparison_results.json`, if it can be trusted.

    Raises:
        DamagedFileError: it is another schema's, or something that the report reads is missing or
            not what its name says.
    """
    return _check(ComparisonResults, content)


def check_tune(content: Any) -> TuneResults:
    """The content of `tune.json`, if it can be trusted.

    Raises:
        DamagedFileError: it is another schema's, or something that the report reads is missing or
            not what its name says.
    """
    return _check(TuneResults, content)


class _Head(Versioned):
    """What tells which kind of run a summary is of."""

    model_config = ConfigDict(extra="ignore")

    kind: Annotated[str, one_of(tuple(_SUMMARIES))]


def _check(record: type[AnyRecord], content: Any) -> AnyRecord:
    try:
        return record.read(content)
    except ValidationError as error:
        raise DamagedFileError(explain(error)) from error


def _read_checked(
    path: Path, read: Callable[[Path], Any], check: Callable[[Any], Content]
) -> Content:
    content = read(path)
    try:
        return check(content)
    except DamagedFileError as error:
        raise DamagedFileError(f"{path.name}: {error}") from error


def _check_config(config: Any) -> dict[str, Any]:
    if not isinstance(config, dict):
        raise DamagedFileError(f"it is {describe(config)}, where a mapping was expected")
    return dict(config)


def _find_folders(root: Path, unreadable: dict[Path, str]) -> Iterator[Path]:
    """Folders that hold a summary; those that cannot be listed are put into `unreadable`."""
    level = [root]
    for depth in range(LEVELS + 1):
        below: list[Path] = []
        for folder in level:
            yield from _with_summary([folder])
            if depth < LEVELS:
                below += _list_folders(folder, unreadable)
            elif os.path.lexists(folder / ACROSS_FILE):
                inner = _list_folders(folder, unreadable)
                yield from _with_summary([*inner, *(one / "bench" for one in inner)])
            else:
                yield from _with_summary([folder / "bench"])
        level = below


def _with_summary(folders: Iterable[Path]) -> Iterator[Path]:
    return (folder for folder in folders if os.path.lexists(folder / SUMMARY_FILE))


def _list_folders(folder: Path, unreadable: dict[Path, str]) -> list[Path]:
    is_run = os.path.lexists(folder / SUMMARY_FILE)
    kept_out = ("reference", EXPLORATION, FINALISTS) if is_run else ("reference",)
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name for entry in entries if entry.name not in kept_out and _is_dir(entry)
            ]
    except OSError as error:
        unreadable[folder] = f"the folder cannot be listed: {error.strerror}"
        return []
    return [folder / name for name in sorted(names)]


def _is_dir(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _without_links(root: Path, folders: Iterator[Path]) -> list[Path]:
    """The folders, each once; where links lead to one as well, its own path is kept."""
    real_root = os.path.realpath(root)
    kept: dict[str, Path] = {}
    for folder in folders:
        real = os.path.realpath(folder)
        is_own = real == os.path.normpath(os.path.join(real_root, folder.relative_to(root)))
        if real not in kept or is_own:
            kept[real] = folder
    return sorted(kept.values())
