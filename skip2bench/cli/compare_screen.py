"""The console's table of a comparison: a row a configuration, at its best learning rate."""

from typing import TYPE_CHECKING

from skip2bench.cli.screens import build_table
from skip2bench.compare.engines.job import SILENT_SECONDS
from skip2bench.io.console import stdout
from skip2bench.io.record import shown
from skip2bench.io.units import format_amount, format_duration
from skip2bench.report.tables.across import ACROSS_COLUMNS
from skip2bench.report.tables.cells import DISTURBED_SIGN, choose_columns
from skip2bench.report.tables.columns import BEST_BATCH_SCREEN, COMPARE_SCREENS
from skip2bench.report.tables.matching import COLUMNS as MATCHING_COLUMNS
from skip2bench.report.tables.matching import EQUAL_IN, build_matching
from skip2bench.report.tables.score_columns import SCORE_COLUMNS
from skip2bench.results.across import AcrossResult
from skip2bench.results.comparison_records import ComparisonResult, ComparisonWarning, DryRun
from skip2bench.results.disturbance import repeat_comparison
from skip2bench.results.figures import FEW_RUNS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from skip2bench.compare.engines.status import ComparisonStatus
    from skip2bench.compare.verify import Verification


def print_compare(results: ComparisonResult | DryRun) -> None:
    """Print the figures, what failed, what peers do otherwise, and what to beware of."""
    if isinstance(results, DryRun):
        _print_dry_run(results)
        return
    entries = results.configurations
    words = EQUAL_IN.get(str(results.matched))
    equal = f" {words['en']}" if words else ""
    for title, columns in COMPARE_SCREENS.items():
        shown = choose_columns(columns, entries)
        stdout.print(build_table(f"{title}{equal}", shown, entries))
    if matching := build_matching(results):
        title = f"What each was given{equal or ' at equal parameters'}"
        stdout.print(build_table(title, choose_columns(MATCHING_COLUMNS[1:], matching), matching))
    if results.best_batch:
        title = "Best-batch: each with its own largest micro-batch (above: one for all)"
        stdout.print(build_table(title, BEST_BATCH_SCREEN, results.best_batch))
    if scored := [entry for entry in entries if entry.score is not None]:
        stdout.print(build_table("Answers", SCORE_COLUMNS, scored))
    lines = [
        "medians over n seeds, of losses mean ± standard deviation, each at its best learning "
        "rate; × is the paired ratio to the baseline with its 95 % interval, ≈ where there is no "
        "difference once all rows are corrected for",
    ]
    if results.learning_rates == "fixed":
        lines.append("each at one learning rate: nothing says that it suits it")
    for entry in entries:
        lines += [f"{entry.label} differs: {text}" for text in entry.differences]
    lines += [f"warning: {_describe_warning(it)}" for it in results.warnings]
    if any(it.kind == "disturbed" for it in results.warnings):
        lines.append(f"repeat what was disturbed with: {repeat_comparison(results.folder)}")
    lines += [
        f"{cell.status}: {name}: {cell.error}"
        for name, cell in results.cells.items()
        if cell.status not in ("ok", "waiting")
    ]
    stdout.print("\n".join([*lines, f"results: {results.folder}"]), markup=False, soft_wrap=True)


def print_across(results: AcrossResult | DryRun) -> None:
    """Print what the configurations come to over several data sets."""
    if isinstance(results, DryRun):
        _print_dry_run(results)
        return
    entries = results.configurations
    columns = choose_columns(ACROSS_COLUMNS[1:], entries)
    stdout.print(build_table("Over all data sets", columns, entries))
    lines = [
        "gain: interquartile mean over all runs of the fall of the validation loss, as a share of "
        "the mean fall of the baseline on the same data; P(improves): chance that a run ends at a "
        "lower loss than one of the baseline; intervals by bootstrap within each data set",
        *(
            f"not in the sum: {it.name}, where the baseline has gained nothing"
            for it in results.data_sets
            if not it.is_summed_up
        ),
        *(
            f"report of {it.name}: skip2bench report --run {results.folder}/{it.folder}"
            for it in results.data_sets
        ),
        f"results: {results.folder}",
    ]
    stdout.print("\n".join(lines), markup=False, soft_wrap=True)


def print_status(found: "Sequence[ComparisonStatus]") -> None:
    """Print how far comparisons are: cells by how they ended, and what runs now."""
    for one in found:
        ended = ", ".join(f"{n} {status}" for status, n in one.statuses.items()) or "none has ended"
        driver = f"driven by {one.driver}" if one.is_driven else "nobody drives it now"
        left = one.left_seconds if one.is_driven else None
        about = "" if left is None else f", about {format_duration(left, 'en')} left"
        lines = [f"{one.folder}: of {one.cells} runs {ended}{about}", f"{one.engine}, {driver}"]
        for it in one.running:
            since = "" if it.seconds is None else f" for {format_duration(it.seconds, 'en')}"
            where = "" if it.host is None else f" on {it.host}"
            cores = f", cores {', '.join(map(str, it.cores))}" if it.cores else ""
            is_silent = it.silent_seconds is not None and it.silent_seconds > SILENT_SECONDS
            silent = format_duration(it.silent_seconds or 0.0, "en")
            lines.append(
                f"  {it.cell}{where}{cores}{since}"
                + (f"; it has said nothing for {silent}" if is_silent else "")
            )
        if not one.is_driven and sum(one.statuses.values()) < one.cells:
            lines.append("  call the same command again to go on")
        stdout.print("\n".join(lines), markup=False, soft_wrap=True)


def _print_dry_run(result: DryRun) -> None:
    names = "\n".join(result.cells)
    total = format_duration(result.estimated_seconds, "en")
    stdout.print(f"{names}\n{format_amount(len(result.cells), 'run')}, about {total}", markup=False)


def print_verify(result: "Verification") -> None:
    """Print a line for everything that differs, and how much was looked at."""
    lines = [
        f"{it.file}: {it.figure}: stored {shown(it.stored)}, recomputed {shown(it.recomputed)}"
        for it in result.differences
    ]
    lines += [f"not checked: {text}" for text in result.unchecked]
    verdict = "all are what the files say" if not result.differences else "see above"
    lines.append(
        f"{result.figures:,} values of {format_amount(result.cells, 'run')} compared: {verdict}"
    )
    stdout.print("\n".join(lines), markup=False, soft_wrap=True)


def _describe_warning(it: ComparisonWarning) -> str:
    if it.kind == "busy":
        return f"something else used the processor during {', '.join(it.cells)}"
    if it.kind == "disturbed":
        return f"{DISTURBED_SIGN} something else disturbed the times of {', '.join(it.cells)}"
    if it.kind == "resumed":
        return f"stopped and resumed, each step counted once: {', '.join(it.cells)}"
    if it.kind == "beside":
        n = format_amount(len(it.cells), "run")
        return (
            f"{n} had others beside them on the same machine, each on cores of its own: their "
            "times compare with one another, not with those of a machine alone"
        )
    if it.kind == "few_runs":
        return f"{it.label}: n = {it.n}; an interval needs at least {FEW_RUNS} runs"
    if it.kind == "edge":
        return (
            f"{it.label}: its best learning rate {it.learning_rate:g} is at the edge of the "
            "grid; a wider one, as --learning-rates auto makes it, may do better"
        )
    return f"{it.label}: {it.figure} differs from the baseline's, and both are the same run"
