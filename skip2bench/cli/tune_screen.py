"""What `tune` prints: the ranking, the finalists, and what to train for which purpose."""

from pathlib import Path

from rich.table import Table

from skip2bench.cli.screens import build_table
from skip2bench.io.console import stdout
from skip2bench.io.units import format_amount, format_seconds
from skip2bench.report.tables.tune_columns import EXPLORED_SCREEN, FINALIST_SCREENS, SHOWN
from skip2bench.results.tune_records import FRONTIER_FILE, TuneResult


def print_tune(result: TuneResult) -> None:
    """Print the sweep's ranking, the finalists' figures and the recommendation."""
    found = result.found
    title = "Exploration: one seed, lowest validation losses"
    stdout.print(build_table(title, EXPLORED_SCREEN, found.configurations[:SHOWN]))
    if len(found.configurations) > SHOWN:
        stdout.print(f"{len(found.configurations) - SHOWN} more in tune.csv", markup=False)
    for title, columns in FINALIST_SCREENS.items() if found.finalists else ():
        heading = f"Results, the finalists alone: {title}"
        stdout.print(build_table(heading, columns, found.finalists))
    stdout.print(
        f"{format_amount(result.configurations or 0, 'configuration')}, "
        f"{result.steps_of_all or 0:,} updates in {format_seconds(result.sweep_seconds or 0.0)}; "
        f"building the cache {format_seconds(result.cache_build_seconds or 0.0)}, validation "
        f"{format_seconds(result.validation_seconds or 0.0)}",
        markup=False,
        soft_wrap=True,
    )
    if found.finalists:
        stdout.print(
            "medians over n seeds, of losses mean ± standard deviation; × is the paired ratio to "
            "the first one with its 95 % interval, ≈ where there is no difference once all rows "
            "are corrected for",
            markup=False,
        )
    _print_picks(result)


def _print_picks(result: TuneResult) -> None:
    """What to train, each command once, and where the files lie."""
    picks = result.found.picks
    purposes: dict[tuple[str, str], list[str]] = {}
    for pick in picks:
        purposes.setdefault((pick.configuration, pick.command), []).append(pick.purpose)
    table = Table(title="Recommended", title_justify="left", show_header=False, title_style="bold")
    table.add_column()
    table.add_column(overflow="fold")
    for (configuration, _), names in purposes.items():
        table.add_row(", ".join(names), configuration)
    stdout.print(table)
    lines = [f"{', '.join(names)}: {command}" for (_, command), names in purposes.items()]
    if any(not pick.is_tested for pick in picks):
        lines.append(
            "not tested: one seed of the sweep; without --finalists 0 they are trained again alone"
        )
    lines += [f"Run folder: {result.folder}", f"Chart: {Path(result.folder) / FRONTIER_FILE}"]
    stdout.print("\n".join(lines), markup=False, soft_wrap=True)
