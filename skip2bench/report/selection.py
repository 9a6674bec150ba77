"""Which runs a report compares, and why it leaves the others out.

Runs compare that agree in everything but configuration, seed and learning rate. A comparison's
folder is such a set by itself, of whose cells the report shows curves and training set-up; single
train runs form one together. The newest set is reported, and beside it, compared with nothing, the
newest sweep of `tune`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from skip2bench.errors import Skip2BenchError
from skip2bench.io.record import explain
from skip2bench.report.groups import combine_runs, identify, name_runs
from skip2bench.results.across import AcrossResults, read_across
from skip2bench.results.answers import AnswerRecord, read_answers
from skip2bench.results.comparison_records import ComparedConfiguration, ComparisonResults
from skip2bench.results.conditions import read_conditions, read_options
from skip2bench.results.curves import LossCurve, find_curve
from skip2bench.results.figures import correct_for_rows
from skip2bench.results.harness import HarnessResults, read_harness
from skip2bench.results.plain import DamagedFileError
from skip2bench.results.reading import (
    RESULTS_FILE,
    AnyRun,
    BenchRun,
    CompareRun,
    TrainRun,
    TuneRun,
    find_run,
    is_bench,
    is_comparison,
    is_train,
    is_tune,
    read_comparison,
    read_tune,
)
from skip2bench.results.tune_records import TuneResults

Reason = Literal["status", "superseded", "differs", "another", "other_data", "unreadable"]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A run that the report does not compare, and why."""

    folder: str
    label: str
    reason: Reason
    status: str
    error: str | None = None
    differences: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """By condition: this run's value, and the value of the runs that are compared."""


@dataclass(frozen=True, kw_only=True)
class ShownCells:
    """Cells at the best learning rate of their configuration, by the name of the cell."""

    runs: dict[str, TrainRun] = field(default_factory=dict)
    curves: dict[str, LossCurve] = field(default_factory=dict)
    answers: dict[str, list[AnswerRecord]] = field(default_factory=dict)
    """To held-out records, of those that were asked."""
    damaged: dict[Path, str] = field(default_factory=dict)
    """By folder, why a cell's files cannot be read; its figures are in the results file."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is compared: a comparison or train runs, and the benchmark that belongs to them."""

    bench: BenchRun | None
    train: list[TrainRun]
    comparison: CompareRun | None
    left_out: list[LeftOut]
    results: ComparisonResults | None = None
    """Content of the comparison's results file, or the train runs in the same form."""
    shown: ShownCells = field(default_factory=ShownCells)
    """What the report shows of the comparison's cells, or of the train runs."""
    tune: TuneRun | None = None
    sweep: TuneResults | None = None
    """Content of the sweep's results file."""
    harness: HarnessResults | None = None
    """What lm-evaluation-harness found of the comparison's models."""
    across: AcrossResults | None = None
    """What the comparison is a part of, where it was made on several data sets."""

    @property
    def compared(self) -> list[AnyRun]:
        """Every run that is compared; of a comparison, its folder."""
        others: list[AnyRun] = [run for run in (self.bench, self.comparison) if run]
        return [*others, *self.train]

    @property
    def runs(self) -> list[AnyRun]:
        """Every run that the report shows."""
        return [*self.compared, *([self.tune] if self.tune else [])]


def choose_runs(
    runs: Sequence[AnyRun],
    root: Path,
    chosen: Sequence[Path],
    unreadable: Mapping[Path, str] | None = None,
) -> list[AnyRun]:
    """Only the runs that were asked for; all of them where none was.

    Args:
        runs: Every run.
        root: Folder of the results, which `chosen` may be relative to.
        chosen: Run folders, or folders above them.
        unreadable: By folder, why runs could not be read.

    Raises:
        Skip2BenchError: a chosen folder holds no run, or none that can be read.
    """
    if not chosen:
        return list(runs)
    kept: dict[Path, AnyRun] = {}
    for path in chosen:
        wanted = {Path(os.path.realpath(place)) for place in (path, root / path)}
        found = [run for run in runs if wanted & _place(run.folder)]
        damaged = [folder for folder in unreadable or {} if wanted & _place(folder)]
        if damaged and not found:
            raise Skip2BenchError(
                f"the run in {str(damaged[0])!r} cannot be read ({(unreadable or {})[damaged[0]]});"
                " choose another with --run"
            )
        if not found:
            raise Skip2BenchError(
                f"{str(path)!r} holds no run below {str(root)!r}; give the folder of a run"
            )
        kept |= {run.folder: run for run in found}
    return [run for run in runs if run.folder in kept]


def _name_place(folder: Path, root: Path) -> str:
    """A run's folder below the results; as it was given, where it lies elsewhere."""
    return (folder.relative_to(root) if folder.is_relative_to(root) else folder).as_posix()


def _place(folder: Path) -> set[Path]:
    """The folder of a run and all above it."""
    real = Path(os.path.realpath(folder))  # which, unlike resolve(), lets links go in circles
    return {real, *real.parents}


def select_runs(
    runs: Sequence[AnyRun], root: Path, unreadable: Mapping[Path, str] | None = None
) -> Selection:
    """Choose what a report compares: the newest set of runs, and the newest benchmark with it.

    Args:
        runs: Runs, oldest first.
        root: Folder of the results; runs that are left out are named relative to it.
        unreadable: By folder, why runs could not be read.
    """
    single = [run for run in runs if run.folder.parent.name != "cells"]
    train, shown, left_out = _select_train([run for run in single if is_train(run)], root)
    comparisons = [run for run in single if is_comparison(run)]
    comparison, results, others = _select_comparison(comparisons, train[-1:], root)
    harness, damaged = _find_harness(comparison, root)
    left_out += damaged
    across, others = _find_across(comparison, others, root)
    left_out += others
    if comparison and results:
        left_out += [_leave_out(run, root, "another") for run in train]
        train, shown = [], read_cells(comparison.folder, results)
        left_out += [_name_unreadable(*cell, root) for cell in shown.damaged.items()]
    elif train:
        results = _combine(shown, root)
    benches = [run for run in single if is_bench(run)]
    bench = _select_bench(benches, comparison)
    left_out += [
        _leave_out(run, root, "superseded" if _is_finished(run) else "status")
        for run in benches
        if run is not bench
    ]
    tune, sweep, others = _select_tune([run for run in single if is_tune(run)], root)
    left_out += others
    left_out += [
        _name_unreadable(folder, error, root) for folder, error in (unreadable or {}).items()
    ]
    left_out.sort(key=lambda item: item.folder)
    if results:  # the baseline first
        entries = sorted(results.configurations, key=lambda entry: not entry.is_baseline)
        results = results.model_copy(update={"configurations": tuple(entries)})
    return Selection(
        bench=bench,
        train=train,
        comparison=comparison,
        left_out=left_out,
        results=results,
        shown=shown,
        tune=tune,
        sweep=sweep,
        harness=harness,
        across=across,
    )


def _combine(shown: ShownCells, root: Path) -> ComparisonResults:
    """The train runs in a comparison's form.

    Raises:
        Skip2BenchError: their ratios are beyond all measure, though no figure is.
    """
    try:
        return ComparisonResults.read(
            combine_runs(shown.runs, shown.curves, shown.answers).to_plain()
        )
    except ValidationError as error:
        raise Skip2BenchError(
            f"the train runs below {str(root)!r} cannot be compared ({explain(error)}); choose "
            "some with --run"
        ) from error


def _select_comparison(
    comparisons: Sequence[CompareRun], newest_train: Sequence[TrainRun], root: Path
) -> tuple[CompareRun | None, ComparisonResults | None, list[LeftOut]]:
    """The newest comparison with results that can be read, unless a train run is newer."""
    chosen: CompareRun | None = None
    results: ComparisonResults | None = None
    left_out: list[LeftOut] = []
    for run in reversed(comparisons):
        if not os.path.lexists(run.folder / RESULTS_FILE):
            left_out.append(_leave_out(run, root, "status"))
        elif chosen or any(train.started > run.started for train in newest_train):
            left_out.append(_leave_out(run, root, "another"))
        else:
            try:
                chosen, results = run, _corrected(read_comparison(run))
            except DamagedFileError as error:
                chosen = None
                remedy = "'skip2bench compare' with its --out-dir writes it anew"
                left_out.append(_name_unreadable(run.folder, f"{error}; {remedy}", root))
    return chosen, results, left_out


def _find_harness(
    comparison: CompareRun | None, root: Path
) -> tuple[HarnessResults | None, list[LeftOut]]:
    try:
        return (read_harness(comparison.folder) if comparison else None), []
    except DamagedFileError as error:
        assert comparison is not None
        return None, [_name_unreadable(comparison.folder, str(error), root)]


def _find_across(
    comparison: CompareRun | None, others: Sequence[LeftOut], root: Path
) -> tuple[AcrossResults | None, list[LeftOut]]:
    """The sum over several data sets that a comparison is in; of those left out, why once more."""
    left_out = [*others]
    if comparison is None:
        return None, left_out
    above = comparison.folder.parent
    try:
        across = read_across(above)
    except DamagedFileError as error:
        return None, [*left_out, _name_unreadable(above, str(error), root)]
    if across is None or comparison.folder.name not in {it.folder for it in across.data_sets}:
        return None, left_out
    beside = {_name_place(above / it.folder, root) for it in across.data_sets}
    return across, [
        replace(it, reason="other_data") if it.reason == "another" and it.folder in beside else it
        for it in left_out
    ]


def _select_tune(
    sweeps: Sequence[TuneRun], root: Path
) -> tuple[TuneRun | None, TuneResults | None, list[LeftOut]]:
    """The newest finished sweep with results that can be read."""
    chosen: TuneRun | None = None
    results: TuneResults | None = None
    left_out: list[LeftOut] = []
    for run in reversed(sweeps):
        if not _is_finished(run):
            left_out.append(_leave_out(run, root, "status"))
        elif chosen:
            left_out.append(_leave_out(run, root, "another"))
        else:
            try:
                results = read_tune(run)
            except DamagedFileError as error:
                left_out.append(_name_unreadable(run.folder, str(error), root))
            else:
                chosen = run
    return chosen, results, left_out


def _select_train(
    runs: Sequence[TrainRun], root: Path
) -> tuple[list[TrainRun], ShownCells, list[LeftOut]]:
    """Finished runs that agree with the newest one, oldest first; of repetitions the newest."""
    left_out = [_leave_out(run, root, "status") for run in runs if not _is_finished(run)]
    kept: dict[tuple[Any, ...], TrainRun] = {}
    curves: dict[Path, LossCurve] = {}
    answers: dict[Path, list[AnswerRecord]] = {}
    conditions: dict[str, Any] = {}
    for run in reversed([run for run in runs if _is_finished(run)]):
        differences = _find_differences(read_conditions(run), conditions) if conditions else {}
        details = (*read_options(run, "repetition", "tuned").values(), run.summary.cache_kept)
        key = (*identify(run), *map(str, details))
        if differences:
            left_out.append(_leave_out(run, root, "differs", differences))
            continue
        if key in kept:
            left_out.append(_leave_out(run, root, "superseded"))
            continue
        try:
            curve, answers[run.folder] = find_curve(run), read_answers(run)
        except DamagedFileError as error:
            left_out.append(_name_unreadable(run.folder, str(error), root))
            continue
        conditions = conditions or read_conditions(run)
        kept[key] = run
        if curve:
            curves[run.folder] = curve
    train = list(reversed(kept.values()))
    named = name_runs(train)
    shown = ShownCells(
        runs=named,
        curves={name: curves[run.folder] for name, run in named.items() if run.folder in curves},
        answers={name: found for name, run in named.items() if (found := answers[run.folder])},
    )
    return train, shown, left_out


def _select_bench(benches: Sequence[BenchRun], comparison: CompareRun | None) -> BenchRun | None:
    """A comparison's own benchmark, else the newest that has finished."""
    finished = [run for run in benches if _is_finished(run)]
    own = [run for run in finished if comparison and run.folder.parent == comparison.folder]
    return next(reversed(own or finished), None)


def _is_finished(run: AnyRun) -> bool:
    return run.summary.status == "ok"


def _find_differences(
    own: Mapping[str, Any], others: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    return {name: (own[name], others[name]) for name in own if own[name] != others[name]}


def _leave_out(
    run: AnyRun,
    root: Path,
    reason: Reason,
    differences: dict[str, tuple[Any, Any]] | None = None,
) -> LeftOut:
    return LeftOut(
        folder=_name_place(run.folder, root),
        label=run.label,
        reason=reason,
        status=run.summary.status,
        error=run.summary.error,
        differences=differences or {},
    )


def _name_unreadable(folder: Path, error: str, root: Path) -> LeftOut:
    return LeftOut(
        folder=_name_place(folder, root),
        label="-",
        reason="unreadable",
        status="-",
        error=error,
    )


def read_cells(folder: Path, results: ComparisonResults) -> ShownCells:
    """Read what the report shows of a comparison's cells; cells without a run folder are skipped.

    Args:
        folder: The comparison's folder.
        results: Content of its results file, checked.
    """
    found = ShownCells()
    for entry in results.configurations:
        for name in list_shown(results, entry):
            cell = folder / "cells" / name
            if not cell.is_dir():
                continue
            try:
                run = find_run(cell)
                if not is_train(run):
                    raise DamagedFileError(f"it is a {run.kind} run, where a train run belongs")
                curve, answers = find_curve(run), read_answers(run)
            except DamagedFileError as error:
                found.damaged[cell] = str(error)
                continue
            found.runs[name] = run
            if curve:
                found.curves[name] = curve
            if answers:
                found.answers[name] = answers
    return found


def _corrected(results: ComparisonResults) -> ComparisonResults:
    """The results with what follows from all rows, which older versions have not written."""
    return results.model_copy(
        update={
            "configurations": correct_for_rows(results.configurations),
            "best_batch": correct_for_rows(results.best_batch),
        }
    )


def list_shown(results: ComparisonResults, entry: ComparedConfiguration) -> Iterator[str]:
    """Names of a configuration's cells whose curves are shown; none of a control run."""
    if not entry.is_aa:
        yield from (name for name, _ in results.cells_of(entry))
