"""Recomputes what a comparison says from the files of its runs, and names what differs.

What was compared, by which names, is taken from the stored results; every figure is made anew, by
the code that made it first. The micro-benchmark's figures are not: they are in its own folder.
"""

import csv
import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from skip2bench.compare.folder import BENCH
from skip2bench.compare.process import CellRun, Outcome
from skip2bench.compare.results import (
    CSV_FILE,
    CellFacts,
    assemble_results,
    make_result,
    write_results,
)
from skip2bench.config.commands import ReportConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.record import Count, Record, Text, Texts, name_place, walk
from skip2bench.io.whole import to_json
from skip2bench.machine.environment_record import DataRecord
from skip2bench.report.run import render_report
from skip2bench.results.across import read_across, read_data_set, summarise_across
from skip2bench.results.comparison_records import ComparedCell, ComparisonResults, Described
from skip2bench.results.curves import metrics_path
from skip2bench.results.figures import CellResult
from skip2bench.results.plain import DamagedFileError, read_json
from skip2bench.results.reading import (
    ACROSS_FILE,
    RESULTS_FILE,
    SUMMARY_FILE,
    CompareRun,
    TrainRun,
    find_run,
    is_comparison,
    is_train,
    read_comparison,
    read_run,
)
from skip2bench.results.registration import (
    REGISTRATION_FILE,
    CellEnd,
    find_deviations,
    read_ends,
    read_registration,
)

_OF_THE_CALL = ("written_at", "command")
"""What another call writes otherwise."""
_SAME_RATIO = 1e-9
"""Floats that differ by less are one figure, computed on two machines."""


class Difference(Record):
    """A figure that is not what the raw files say."""

    file: Text
    figure: Text
    stored: Any
    recomputed: Any


class Verification(Record):
    """What `verify` prints."""

    folder: Text
    cells: Count
    """Runs whose files were read."""
    figures: Count
    """Values that were compared."""
    differences: tuple[Difference, ...]
    unchecked: Texts
    """What could not be recomputed, and why."""


def run_verify(folder: Path, report: Path | None = None) -> Verification:
    """Verify a comparison, what it registered, and its reports; on several data sets, all of them.

    Args:
        folder: Of the comparison, or above those on several data sets.
        report: A report of it; those that lie in the folder are looked at in any case.

    Raises:
        Skip2BenchError: it is no comparison, or its results cannot be read.
    """
    if (folder / ACROSS_FILE).exists():
        return _verify_across(folder, report)
    if not (folder / SUMMARY_FILE).exists():
        raise Skip2BenchError(f"{str(folder)!r} holds no comparison; give the folder of one")
    run = read_run(folder)
    if not is_comparison(run):
        raise Skip2BenchError(f"{str(folder)!r} holds a {run.kind} run; give a comparison's folder")
    try:
        stored, plain = read_comparison(run), read_json(folder / RESULTS_FILE)
    except DamagedFileError as error:
        raise Skip2BenchError(
            f"the results in {str(folder)!r} cannot be read ({error}); the same 'skip2bench "
            "compare' writes them anew"
        ) from error
    found = _Found(run=run, stored=stored, ends=read_ends(folder))
    content = found.recompute()
    found.compare_values(RESULTS_FILE, plain, json.loads(to_json(content)))
    found.compare_tables(content)
    found.check_registration()
    reports = [*sorted(folder.glob("report*.md")), *sorted(folder.glob("report*.html"))]
    if report is not None and report.resolve() not in [path.resolve() for path in reports]:
        reports.append(report)
    for path in reports:
        found.check_report(path)
    return Verification(
        folder=str(folder),
        cells=found.n_cells,
        figures=found.n_figures,
        differences=tuple(found.differences),
        unchecked=tuple(found.unchecked),
    )


def _verify_across(folder: Path, report: Path | None) -> Verification:
    """Verify the comparison on each data set, and what they come to together."""
    if report is not None:
        raise Skip2BenchError(
            f"{str(report)!r} is a report of one data set; give the folder of its comparison, "
            f"below {str(folder)!r}"
        )
    try:
        stored, plain = read_across(folder), read_json(folder / ACROSS_FILE)
        assert stored is not None
        found = [
            read_data_set(folder / it.folder, DataRecord(name=it.name, samples=it.samples))
            for it in stored.data_sets
        ]
    except DamagedFileError as error:
        raise Skip2BenchError(
            f"the results in {str(folder)!r} cannot be read ({error}); the same 'skip2bench "
            "compare' writes them anew"
        ) from error
    parts = {it.folder: run_verify(folder / it.folder) for it in stored.data_sets}
    data_sets, configurations = summarise_across(found)
    content = stored.model_copy(update={"data_sets": data_sets, "configurations": configurations})
    own, others = (
        {keys: value for keys, value in walk(it) if not isinstance(value, dict | list)}
        for it in (plain, json.loads(to_json(content)))
    )
    differences = [
        Difference(
            file=ACROSS_FILE,
            figure=name_place(keys),
            stored=own.get(keys),
            recomputed=others.get(keys),
        )
        for keys in {**own, **others}
        if not _is_same(own.get(keys), others.get(keys))
    ]
    asked_for = len(stored.config.get("data_sets") or ())
    if len(found) < asked_for:
        differences.append(
            Difference(
                file=ACROSS_FILE, figure="data sets", stored=len(found), recomputed=asked_for
            )
        )
    return Verification(
        folder=str(folder),
        cells=sum(it.cells for it in parts.values()),
        figures=len({**own, **others}) + sum(it.figures for it in parts.values()),
        differences=(
            *differences,
            *(
                it.model_copy(update={"file": f"{name}/{it.file}"})
                for name, part in parts.items()
                for it in part.differences
            ),
        ),
        unchecked=tuple(
            f"{name}: {text}" for name, part in parts.items() for text in part.unchecked
        ),
    )


class _Found:
    """A comparison, and what was found to differ in it so far."""

    def __init__(
        self, run: CompareRun, stored: ComparisonResults, ends: Mapping[str, CellEnd]
    ) -> None:
        self.run, self.stored, self.ends = run, stored, ends
        self.differences: list[Difference] = []
        self.unchecked: list[str] = []
        self.n_cells = self.n_figures = 0
        plain = json.loads(to_json(stored))
        self.known_keys = {key for keys, _ in walk(plain) for key in keys[-1:]}
        """Every name in the stored results."""

    def note(self, text: str) -> None:
        """Keep what could not be checked, once."""
        if text not in self.unchecked:
            self.unchecked.append(text)

    def expect(self, file: str, figure: str, stored: Any, recomputed: Any) -> None:
        self.n_figures += 1
        if not _is_same(stored, recomputed):
            difference = {"stored": stored, "recomputed": recomputed}
            self.differences.append(Difference(file=file, figure=figure, **difference))

    def recompute(self) -> ComparisonResults:
        """The results, made of the cells that are there."""
        stored = self.stored
        there = {path.name for path in (self.run.folder / "cells").glob("*") if path.is_dir()}
        for name in sorted((there | set(self.ends)) - {BENCH} - set(stored.cells)):
            self.expect(f"cells/{name}", "run", "not in the results", "there")
        results = [self._read_cell(name, cell) for name, cell in stored.cells.items()]
        without = [name for name, it in stored.cells.items() if name not in self.ends]
        if any(stored.cells[name].status != "waiting" for name in without):
            self.note("wall_seconds and other_cpu_cores: no cells/NAME.json")
        known = set(Described.model_fields)
        equal, best = (
            [Described.of(_only(one, known)) for one in entries]
            for entries in (stored.configurations, stored.best_batch)
        )
        own_best = {
            one.name: other for one, other in zip(equal, best, strict=False) if one != other
        }
        end = self.ends.get(BENCH)
        bench = _make_outcome(stored.bench.status, stored.bench.error) if stored.bench else None
        config = {"baseline": None, **self.run.config}
        if not any(one.method == config["baseline"] for one in equal):
            raise Skip2BenchError(
                f"the baseline {config['baseline']!r} of config.yaml is not among the results in "
                f"{str(self.run.folder)!r}; bring the file back"
            )
        return assemble_results(
            config,
            equal,
            own_best,
            results,
            self.run.environment,
            _of_end(end) if end and bench else bench,
            {one.name: one.matched for one in stored.configurations if one.matched is not None},
        )

    def _read_cell(self, name: str, cell: ComparedCell) -> CellResult:
        place = f"cells/{name}"
        facts = CellFacts(
            name=name,
            configuration=cell.configuration,
            role=cell.role,
            learning_rate=cell.learning_rate or 0.0,
            seed=cell.seed,
            is_peer=any(
                it.peer is not None and it.name == cell.configuration
                for it in (*self.stored.configurations, *self.stored.best_batch)
            ),
            decides_rate=bool(cell.decides_rate),
            counts=not cell.is_left_out,
        )
        end, run = self.ends.get(name), None
        try:
            run = find_run(self.run.folder / place)
        except DamagedFileError as error:
            if cell.status == "ok" or (self.run.folder / place / "summary.json").exists():
                self.expect(place, "run", cell.status, str(error))
                return make_result(facts)
        if run is not None and is_train(run):
            self.n_cells += 1
            self._check_identity(place, cell, run)
        if end is not None:
            outcome = _of_end(end)
        elif run is None and cell.status == "waiting":
            return make_result(facts)
        else:
            status = run.summary.status if run else cell.status
            wall_seconds = cell.figures.get("wall_seconds", 0.0)
            outcome = _make_outcome(status, cell.error, wall_seconds, cell.other_cpu_cores)
        if run is not None and is_train(run) and outcome.status == "ok" and not run.summary.peer:
            self._check_rows(place, run)
        try:
            return make_result(facts, outcome, CellRun(run=run) if run else None)
        except Skip2BenchError as error:
            self.expect(place, "metrics.csv", cell.status, str(error).partition("; ")[0])
            return make_result(facts)

    def _check_identity(self, place: str, cell: ComparedCell, run: TrainRun) -> None:
        """The run is that of the configuration under whose name it counts."""
        summary, file = run.summary, f"{place}/summary.json"
        pairs: dict[str, tuple[Any, Any]] = {
            name: (getattr(cell, name), getattr(summary, name))
            for name in ("seed", "learning_rate")
        }
        for one in (*self.stored.configurations, *self.stored.best_batch):
            if one.name == cell.configuration:
                names = ("method", "blocks", "rank", "trainable_parameters")
                pairs |= {name: (getattr(one, name), getattr(summary, name)) for name in names}
        for name, (stored, found) in pairs.items():
            if found is not None:
                self.expect(file, name, stored, found)

    def _check_rows(self, place: str, run: TrainRun) -> None:
        """The summary says what the rows of metrics.csv and steps.csv say."""
        try:
            metrics, steps = (
                _read_rows(path)
                for path in (metrics_path(run), metrics_path(run).with_name("steps.csv"))
            )
        except (DamagedFileError, OSError, ValueError, LookupError) as error:
            self.expect(place, "metrics.csv, steps.csv", "there", f"cannot be read ({error})")
            return
        for figure, stored, found in _follow_rows(run, metrics, steps):
            self.expect(f"{place}/summary.json", figure, stored, found)
        for figure, stored, found in _follow_steps(metrics, steps):
            self.expect(f"{place}/{run.summary.log_folder}/metrics.csv", figure, stored, found)

    def compare_values(
        self, file: str, stored: Any, found: Any, place: tuple[Any, ...] = ()
    ) -> None:
        """Compare everything below two values; what is empty may be missing."""
        if isinstance(stored, dict) and isinstance(found, dict):
            for key in {**stored, **found}:
                if not place and key in _OF_THE_CALL:
                    continue
                if key not in stored and key not in self.known_keys and found[key]:
                    self.note(f"{key}: {file} is from before there was one")
                else:
                    self.compare_values(file, stored.get(key), found.get(key), (*place, key))
        elif isinstance(stored, list) and isinstance(found, list) and len(stored) == len(found):
            for number, pair in enumerate(zip(stored, found, strict=True)):
                self.compare_values(file, *pair, (*place, number))
        elif stored or found:  # nothing, in whatever form, is the same as nothing
            self.expect(file, name_place(place), stored, found)

    def compare_tables(self, content: ComparisonResults) -> None:
        """Compare the CSV file with the one that would be written."""
        with tempfile.TemporaryDirectory() as scratch:
            write_results(Path(scratch), content)
            found = _read_table(Path(scratch) / CSV_FILE)
        try:
            stored = _read_table(self.run.folder / CSV_FILE)
        except (OSError, ValueError, LookupError, csv.Error) as error:
            self.expect(CSV_FILE, "file", f"cannot be read ({error})", "a row a run")
            return
        for name in {**stored, **found}:
            own, other = stored.get(name), found.get(name)
            if own is None or other is None:
                rows = ["no row" if row is None else "a row" for row in (own, other)]
                self.expect(CSV_FILE, name, *rows)
                continue
            for column in {**own, **other}:
                self.expect(
                    CSV_FILE, f"{name}: {column}", own.get(column) or "", other.get(column) or ""
                )

    def check_registration(self) -> None:
        """The hash of what was registered, and whether the results follow it."""
        try:
            registration = read_registration(self.run.folder)
        except DamagedFileError as error:
            self.expect(REGISTRATION_FILE, "file", f"cannot be read ({error})", "a plan")
            return
        if registration is None:
            return
        for it in find_deviations(registration, self.stored, self.ends):
            names = ", ".join(it.names) or "the plan"
            self.expect(REGISTRATION_FILE, it.kind, "as registered", names)

    def check_report(self, path: Path) -> None:
        """Write the report anew, and compare it line by line; charts are left out."""
        try:
            stored = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Skip2BenchError(f"the report {str(path)!r} cannot be read ({error})") from error
        folder = self.run.folder
        # where a report was made of a whole folder of results, runs have other names in it
        roots = [folder, *(it for it in (folder.parent, folder.parent.parent) if it != folder)]
        best: list[tuple[int, str, str]] | None = None
        for root in roots:
            with suppress(Skip2BenchError):
                lines = _compare_lines(stored, _render(path, stored, root, folder))
                best = lines if best is None else min(best, lines, key=len)
            if best == []:
                break
        if best is None:
            self.expect(path.name, "report", "there", "cannot be made of these files")
        self.n_figures += 1
        for number, own, other in best or []:
            self.expect(path.name, f"line {number}", own, other)


def _only(one: Record, names: set[str]) -> Record:
    """A record with some of its fields."""
    return Record(**{name: getattr(one, name) for name in names})


def _of_end(end: CellEnd) -> Outcome:
    own = end.outcome
    made = _make_outcome(own.status, own.error, own.wall_seconds or 0.0, own.other_cpu_cores)
    return replace(made, host=own.host, beside=own.beside)


def _make_outcome(
    status: str,
    error: str | None,
    wall_seconds: float = 0.0,
    other_cpu_cores: float | None = None,
) -> Outcome:
    """Of a process whose end nobody wrote down."""
    return Outcome(
        status=status,  # type: ignore[arg-type]
        error=error,
        started_at="",
        wall_seconds=wall_seconds,
        other_cpu_cores=other_cpu_cores,
        exit_status=0,
    )


def _is_same(stored: Any, found: Any) -> bool:
    """True for the same value, a list as a tuple, and a number as the text of a table's cell."""
    if isinstance(stored, list | tuple) and isinstance(found, list | tuple):
        return list(stored) == list(found)
    if stored == found:
        return True
    try:
        return math.isclose(float(stored), float(found), rel_tol=_SAME_RATIO, abs_tol=1e-15)
    except (TypeError, ValueError):
        return False


Rows = list[dict[str, float]]


def _read_rows(path: Path) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def _read_table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["cell"]: row for row in csv.DictReader(file)}


def _follow_rows(run: TrainRun, metrics: Rows, steps: Rows) -> Iterator[tuple[str, Any, Any]]:
    """Figures of a summary that its rows have as well: name, stored, recomputed."""
    summary = run.summary
    losses = [row["val_loss"] for row in metrics]
    best = losses.index(min(losses))
    yield "steps", summary.steps, len(steps)
    yield "initial_val_loss", summary.initial_val_loss, losses[0]
    yield "final_val_loss", summary.final_val_loss, losses[-1]
    yield "best_val_loss", summary.best_val_loss, losses[best]
    if summary.best_step is not None:
        yield "best_step", summary.best_step, metrics[best]["step"]
    if steps:
        yield "tokens", summary.tokens, steps[-1]["tokens"]
        yield "train_seconds", summary.train_seconds, steps[-1]["train_seconds"]


def _follow_steps(metrics: Rows, steps: Rows) -> Iterator[tuple[str, Any, Any]]:
    """What evaluation points say of the steps before them: name, stored, recomputed."""
    before = 0
    for row in metrics:
        step = int(row["step"])
        place = f"step {step}: "
        yield f"{place}val_ppl", row["val_ppl"], math.exp(min(row["val_loss"], 700.0))
        own = steps[before:step]
        if own:
            losses = [it["loss"] for it in own]
            yield f"{place}train_loss", row["train_loss"], sum(losses) / len(losses)
            for name in ("tokens", "train_seconds"):
                yield f"{place}{name}", row[name], own[-1][name]
        before = step


def _render(path: Path, stored: str, root: Path, folder: Path) -> str:
    """The report as `path` is: its language and its form."""
    with tempfile.TemporaryDirectory() as scratch:
        return render_report(
            ReportConfig(
                results=root,
                run=(folder,),
                lang="ja" if "評価レポート" in stored[:4000] else "en",
                format="html" if path.suffix == ".html" else "md",
                output=path,
                plots_dir=Path(scratch),
            )
        )


def _compare_lines(stored: str, found: str) -> list[tuple[int, str, str]]:
    """Number, stored and recomputed text of the lines that differ; pictures are left out."""
    pictures = re.compile(r"<figure>.*?</figure>|^!\[[^\n]*$", flags=re.DOTALL | re.MULTILINE)
    own, other = (
        pictures.sub(lambda match: "\n" * match[0].count("\n"), text) for text in (stored, found)
    )
    lines, others = own.splitlines(), other.splitlines()
    if len(lines) != len(others):
        lines += ["(no line)"] * (len(others) - len(lines))
        others += ["(no line)"] * (len(lines) - len(others))
    return [
        (number, line, against)
        for number, (line, against) in enumerate(zip(lines, others, strict=True), start=1)
        if line != against
    ]
