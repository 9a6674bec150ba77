"""`comparison_results.json` and `comparison.csv`: what a comparison found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skip2bench.compare.matrix import Cell, Configuration, find_baseline
from skip2bench.compare.process import CellRun, Outcome
from skip2bench.config.compare import CompareConfig
from skip2bench.config.matrix import to_plain
from skip2bench.errors import Skip2BenchError
from skip2bench.io.whole import utc_now, write_csv, write_json
from skip2bench.machine.environment_record import Environment
from skip2bench.results.answers import ScoredRun, read_answers
from skip2bench.results.comparison_records import (
    BenchOutcome,
    ComparedCell,
    ComparedConfiguration,
    ComparisonResults,
    Described,
)
from skip2bench.results.curves import CurvePoint
from skip2bench.results.figures import (
    FIGURES,
    CellResult,
    find_targets,
    find_warnings,
    read_figures,
    summarise_configuration,
)
from skip2bench.results.plain import DamagedFileError
from skip2bench.results.reading import RESULTS_FILE, TrainRun, is_train
from skip2bench.results.run_records import SCHEMA_VERSION, TrainSummary

CSV_FILE = "comparison.csv"
_CELL_COLUMNS = (
    *("cell", "configuration", "label", "method", "blocks", "rank", "role", "peer"),
    *("learning_rate", "seed", "status", "error", "other_cpu_cores"),
)


def read_result(
    cell: Cell, outcome: Outcome | None = None, cell_run: CellRun | None = None
) -> CellResult:
    """What a cell came to; it has no outcome where it has not run."""
    summary: TrainSummary | None = None
    curve: list[CurvePoint] = []
    scored: ScoredRun | None = None
    if outcome is not None and cell_run is not None:
        run = cell_run.run
        if not is_train(run):
            raise Skip2BenchError(
                f"{str(run.folder)!r} holds a {run.kind} run in place of a cell; move it away"
            )
        summary = run.summary
        # a cell that was killed may have left half a row, and has no figure to take from it
        found = cell_run.curve if outcome.status == "ok" else None
        curve = found.points() if found else []
        scored = _read_scores(run) if outcome.status == "ok" else None
        if not curve and outcome.status == "ok" and cell.peer:
            curve = [_end_of(summary)]
    # of a run that was stopped in between, its own sum: a process's end tells of the last one alone
    assert cell.config.learning_rate != "auto"  # the matrix gives every cell its rate
    resumed = summary if summary and summary.resumed_at_steps else None
    wall_seconds = outcome.wall_seconds if outcome else None
    return CellResult(
        name=cell.name,
        configuration=cell.configuration,
        role=cell.role,
        learning_rate=cell.config.learning_rate,
        seed=cell.config.seed,
        status=outcome.status if outcome else "waiting",
        error=outcome.error if outcome else None,
        wall_seconds=resumed.wall_seconds if resumed else wall_seconds,
        other_cpu_cores=outcome.other_cpu_cores if outcome else None,
        summary=summary,
        curve=curve,
        scored=scored,
    )


def _read_scores(run: TrainRun) -> ScoredRun | None:
    """Of a cell's answers.

    Raises:
        Skip2BenchError: their file is damaged.
    """
    try:
        return ScoredRun.of(run.summary, read_answers(run))
    except DamagedFileError as error:
        raise Skip2BenchError(
            f"the answers in {str(run.folder)!r} cannot be read ({error}); move the cell away and "
            "call 'skip2bench compare' again"
        ) from error


def _end_of(summary: TrainSummary) -> CurvePoint:
    """The one evaluation point of a peer, which is validated at its end alone."""
    assert None not in (summary.steps, summary.final_val_loss, summary.train_seconds)
    return CurvePoint(
        step=summary.steps or 0,
        val_loss=summary.final_val_loss or 0.0,
        train_seconds=summary.train_seconds or 0.0,
    )


def build_results(
    config: CompareConfig,
    configurations: Sequence[Configuration],
    results: Sequence[CellResult],
    environment: Environment,
    bench: Outcome | None,
) -> ComparisonResults:
    """Everything that the comparison found so far."""
    own = {one.name: [r for r in results if r.configuration == one.name] for one in configurations}
    baseline = find_baseline(config, configurations)
    targets = find_targets(own[baseline.name], config.target_loss)

    def summarise(one: Configuration, against: Configuration) -> ComparedConfiguration:
        return ComparedConfiguration.of(
            _describe(one),
            summarise_configuration(own[one.name], own[against.name], config.target_loss),
            is_baseline=one is against,
            extra_parameters=one.trainable_parameters - against.trainable_parameters,
            differences=_read_differences(own[one.name]),
            micro_batch_size=_read_micro_batch(own[one.name]),
        )

    equal = [one for one in configurations if one.best_of is None]
    best = {one.best_of: one for one in configurations if one.best_of is not None}
    entries = [summarise(one, baseline) for one in equal]
    best_baseline = best.get(baseline.name, baseline)
    best_entries = [
        summarise(best.get(one.name, one), best_baseline) for one in (equal if best else ())
    ]
    has_grid = any(len(one.learning_rates) > 1 for one in configurations)
    statuses = [result.status for result in results] + ([bench.status] if bench else [])
    return ComparisonResults(
        schema_version=SCHEMA_VERSION,
        written_at=utc_now(),
        command=environment.command,
        config=to_plain(config),
        baseline=baseline.name,
        target="fixed" if config.target_loss is not None else "final loss of the baseline",
        learning_rates="grid" if has_grid else "fixed",
        statuses={status: statuses.count(status) for status in sorted(set(statuses))},
        bench=None if bench is None else BenchOutcome(status=bench.status, error=bench.error),
        warnings=find_warnings(entries, results, environment.cpu_count or 1),
        configurations=tuple(entries),
        best_batch=tuple(best_entries),
        targets={str(seed): loss for seed, loss in targets.items()},
        cells={result.name: _describe_cell(result, targets.get(result.seed)) for result in results},
    )


def write_results(
    folder: Path,
    content: ComparisonResults,
    configurations: Sequence[Configuration],
    results: Sequence[CellResult],
) -> None:
    """Write both files, each whole or not at all."""
    write_json(folder / RESULTS_FILE, content)
    known = {one.name: one for one in configurations}
    rows = [
        _flatten(result, known.get(result.configuration), content.cells[result.name].figures)
        for result in results
    ]
    write_csv(folder / CSV_FILE, (*_CELL_COLUMNS, *FIGURES), rows)


def _describe(one: Configuration) -> Described:
    settings = one.settings
    return Described(
        name=one.name,
        label=one.label,
        method=settings.method.name,
        blocks=settings.blocks,
        rank=settings.rank,
        target=settings.skip.target if settings.skip else None,
        peer=one.peer,
        is_aa=one.is_aa,
        trainable_parameters=one.trainable_parameters,
    )


def _read_differences(results: Sequence[CellResult]) -> tuple[str, ...]:
    """What a peer does otherwise, as its runs have recorded it."""
    found: dict[str, None] = {}
    for result in results:
        found |= dict.fromkeys((result.summary and result.summary.differences) or ())
    return tuple(found)


def _read_micro_batch(results: Sequence[CellResult]) -> int | None:
    """Samples in a forward pass, as the runs have recorded it."""
    found = [it.summary.micro_batch_size for it in results if it.summary]
    return next((size for size in found if size is not None), None)


def _describe_cell(result: CellResult, target_loss: float | None) -> ComparedCell:
    return ComparedCell(
        configuration=result.configuration,
        role=result.role,
        learning_rate=result.learning_rate,
        seed=result.seed,
        status=result.status,
        error=result.error,
        other_cpu_cores=result.other_cpu_cores,
        figures=read_figures(result, target_loss) if result.status == "ok" else {},
    )


def _flatten(
    result: CellResult, one: Configuration | None, figures: dict[str, float]
) -> dict[str, Any]:
    """One row of the CSV file."""
    settings = one.settings if one else None
    return {
        "cell": result.name,
        "configuration": result.configuration,
        "label": one.label if one else None,
        "method": settings.method.name if settings else None,
        "blocks": " ".join(map(str, settings.blocks or ())) if settings else None,
        "rank": settings.rank if settings else None,
        "role": result.role,
        "peer": one.peer if one else None,
        "learning_rate": result.learning_rate,
        "seed": result.seed,
        "status": result.status,
        "error": result.error,
        "other_cpu_cores": result.other_cpu_cores,
        **figures,
    }
