"""`comparison_results.json` and `comparison.csv`: what a comparison found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skip2bench.compare.matrix import Cell, Configuration
from skip2bench.compare.process import CellRun, Outcome
from skip2bench.config.compare import CompareConfig
from skip2bench.config.options import to_plain
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
    Matched,
    RateSearch,
)
from skip2bench.results.curves import CurvePoint
from skip2bench.results.disturbance import list_disturbed_figures
from skip2bench.results.figures import (
    FIGURES,
    CellResult,
    correct_for_rows,
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
    *("learning_rate", "seed", "status", "error", "other_cpu_cores", "host", "beside"),
)


@dataclass(frozen=True, kw_only=True)
class CellFacts:
    """What the matrix says of a cell."""

    name: str
    configuration: str
    role: str
    learning_rate: float
    seed: int
    is_peer: bool
    decides_rate: bool = False
    counts: bool = True


def read_result(
    cell: Cell, outcome: Outcome | None = None, cell_run: CellRun | None = None
) -> CellResult:
    """What a cell came to; it has no outcome where it has not run."""
    assert cell.config.learning_rate != "auto"  # the matrix gives every cell its rate
    facts = CellFacts(
        name=cell.name,
        configuration=cell.configuration,
        role=cell.role,
        learning_rate=cell.config.learning_rate,
        seed=cell.config.seed,
        is_peer=cell.peer is not None,
        decides_rate=cell.decides_rate,
        counts=cell.counts,
    )
    return make_result(facts, outcome, cell_run)


def make_result(
    facts: CellFacts, outcome: Outcome | None = None, cell_run: CellRun | None = None
) -> CellResult:
    """As `read_result`, of a cell that nothing else is known of."""
    summary: TrainSummary | None = None
    curve: list[CurvePoint] = []
    disturbed: Sequence[str] = ()
    scored: ScoredRun | None = None
    if outcome is not None and cell_run is not None:
        run = cell_run.run
        if not is_train(run):
            raise Skip2BenchError(
                f"{str(run.folder)!r} holds a {run.kind} run in place of a cell; move it away"
            )
        summary = run.summary
        disturbed = list_disturbed_figures(run, outcome.other_cpu_cores)
        # a cell that was killed may have left half a row, and has no figure to take from it
        found = cell_run.curve if outcome.status == "ok" else None
        curve = found.points() if found else []
        scored = _read_scores(run) if outcome.status == "ok" else None
        if not curve and outcome.status == "ok" and facts.is_peer:
            curve = [_end_of(summary)]
    # of a run that was stopped in between, its own sum: a process's end tells of the last one alone
    resumed = summary if summary and summary.resumed_at_steps else None
    wall_seconds = outcome.wall_seconds if outcome else None
    return CellResult(
        name=facts.name,
        configuration=facts.configuration,
        role=facts.role,
        learning_rate=facts.learning_rate,
        seed=facts.seed,
        status=outcome.status if outcome else "waiting",
        error=outcome.error if outcome else None,
        wall_seconds=resumed.wall_seconds if resumed else wall_seconds,
        other_cpu_cores=outcome.other_cpu_cores if outcome else None,
        summary=summary,
        curve=curve,
        decides_rate=facts.decides_rate,
        counts=facts.counts,
        disturbed=disturbed,
        scored=scored,
        host=outcome.host if outcome else None,
        beside=outcome.beside if outcome else None,
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
    matches: Mapping[str, Matched] | None = None,
) -> ComparisonResults:
    """Everything that the comparison found so far."""
    equal = [_describe(one) for one in configurations if one.best_of is None]
    best = {one.best_of: _describe(one) for one in configurations if one.best_of is not None}
    return assemble_results(to_plain(config), equal, best, results, environment, bench, matches)


def assemble_results(
    config: Mapping[str, Any],
    equal: Sequence[Described],
    best: Mapping[str, Described],
    results: Sequence[CellResult],
    environment: Environment,
    bench: Outcome | None,
    matches: Mapping[str, Matched] | None = None,
) -> ComparisonResults:
    """The results of a comparison from what is in its files.

    Args:
        config: As in `config.yaml`.
        equal: What is compared, each with the micro-batch of all.
        best: By name of those, the same with its own largest micro-batch, where it has another.
        results: Of every cell.
        environment: Of the comparison.
        bench: How the micro-benchmark ended; None without one.
        matches: What each was given to be equal to the baseline in something.
    """
    target_loss = config["target_loss"]
    names = [one.name for one in (*equal, *best.values())]
    own = {name: [r for r in results if r.configuration == name] for name in names}
    baseline = next(one for one in equal if one.method == config["baseline"])
    targets = find_targets(own[baseline.name], target_loss)

    def summarise(one: Described, against: Described) -> ComparedConfiguration:
        return ComparedConfiguration.of(
            one,
            summarise_configuration(own[one.name], own[against.name], target_loss),
            is_baseline=one is against,
            extra_parameters=(one.trainable_parameters or 0) - (against.trainable_parameters or 0),
            differences=_read_differences(own[one.name]),
            micro_batch_size=_read_micro_batch(own[one.name]),
            matched=(matches or {}).get(one.name),
        )

    entries = correct_for_rows([summarise(one, baseline) for one in equal])
    best_baseline = best.get(baseline.name, baseline)
    best_entries = correct_for_rows(
        [summarise(best.get(one.name, one), best_baseline) for one in (equal if best else ())]
    )
    has_grid = any(len(entry.grid) > 1 for entry in (*entries, *best_entries))
    statuses = [result.status for result in results] + ([bench.status] if bench else [])
    return ComparisonResults(
        schema_version=SCHEMA_VERSION,
        written_at=utc_now(),
        command=environment.command,
        config=dict(config),
        baseline=baseline.name,
        target="fixed" if target_loss is not None else "final loss of the baseline",
        learning_rates="grid" if has_grid else "fixed",
        rate_search=_describe_search(results),
        statuses={status: statuses.count(status) for status in sorted(set(statuses))},
        bench=None if bench is None else BenchOutcome(status=bench.status, error=bench.error),
        warnings=find_warnings(entries, results, environment.cpu_count or 1),
        configurations=entries,
        best_batch=best_entries,
        targets={str(seed): loss for seed, loss in targets.items()},
        cells={
            result.name: _describe_cell(result, targets.get(result.seed, target_loss))
            for result in results
        },
    )


def _describe_search(results: Sequence[CellResult]) -> RateSearch | None:
    deciding = [result for result in results if result.decides_rate]
    if not deciding:
        return None
    return RateSearch(seed=deciding[0].seed, is_reported=deciding[0].counts)


def write_results(folder: Path, content: ComparisonResults) -> None:
    """Write both files, each whole or not at all."""
    write_json(folder / RESULTS_FILE, content)
    known = {one.name: one for one in (*content.configurations, *content.best_batch)}
    rows = [_flatten(name, it, known.get(it.configuration)) for name, it in content.cells.items()]
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
        decides_rate=result.decides_rate or None,
        has_diverged=result.has_diverged or None,
        is_left_out=None if result.counts else True,
        host=result.host,
        beside=result.beside,
        figures=read_figures(result, target_loss) if result.status == "ok" else {},
    )


def _flatten(name: str, cell: ComparedCell, one: ComparedConfiguration | None) -> dict[str, Any]:
    """One row of the CSV file."""
    return {
        "cell": name,
        "configuration": cell.configuration,
        "label": one.label if one else None,
        "method": one.method if one else None,
        "blocks": " ".join(map(str, one.blocks or ())) if one else None,
        "rank": one.rank if one else None,
        "role": cell.role,
        "peer": one.peer if one else None,
        "learning_rate": cell.learning_rate,
        "seed": cell.seed,
        "status": cell.status,
        "error": cell.error,
        "other_cpu_cores": cell.other_cpu_cores,
        "host": cell.host,
        "beside": cell.beside,
        **cell.figures,
    }
