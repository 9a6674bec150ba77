"""What `tune` prints: the ranking, the finalists, and what to train for which purpose."""

from rich.table import Table

from skip2bench.cli.screens import build_table
from skip2bench.io.console import stdout
from skip2bench.io.units import format_amount, format_seconds
from skip2bench.report.tune_columns import EXPLORED_SCREEN, FINALIST_SCREEN
from skip2bench.results.tune_records import TuneResult

_SHOWN = 15


def print_tune(result: TuneResult) -> None:
    """Print the sweep's ranking, the finalists' figures and the recommendation."""
    found = result.found
    shown = found.configurations[:_SHOWN]
    title = "Exploration: one seed, lowest validation losses"
    stdout.print(build_table(title, EXPLORED_SCREEN, shown, has_whole_labels=True))
    if len(found.configurations) > _SHOWN:
        stdout.print(f"{len(found.configurations) - _SHOWN} more in tune.csv", markup=False)
    if found.finalists:
        title = "Results: the finalists, each trained alone"
        stdout.print(build_table(title, FINALIST_SCREEN, found.finalists, has_whole_labels=True))
    stdout.print(
        f"{format_amount(result.configurations or 0, 'configuration')}, "
        f"{result.steps_of_all or 0:,} updates in {format_seconds(result.sweep_seconds or 0.0)}; "
        f"building the cache {format_seconds(result.cache_build_seconds or 0.0)}, validation "
        f"{format_seconds(result.validation_seconds or 0.0)}",
        markup=False,
        soft_wrap=True,
    )
    table = Table(title="Recommended", show_header=False, title_style="bold")
    table.add_column()
    table.add_column()
    for pick in found.picks:
        table.add_row(pick.purpose, pick.configuration)
    stdout.print(table)
    lines = [f"{pick.purpose}: {pick.command}" for pick in found.picks]
    if any(not pick.is_tested for pick in found.picks):
        lines.append("not tested: one seed of the sweep; --finalists 3 trains them again alone")
    stdout.print("\n".join([*lines, f"Run folder: {result.folder}"]), markup=False, soft_wrap=True)
