"""The table that `doctor` prints: machine, versions, and the run that was asked about."""

from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from skip2bench.console import stdout

_STYLES = {"ok": "green", "below the guide": "yellow", "unknown": "dim"}


def print_doctor(result: dict[str, Any]) -> None:
    """Print a row for everything that was looked at, and what the words mean."""
    table = Table(title="skip2bench doctor", title_justify="left", title_style="bold")
    table.add_column("What", max_width=24)
    for title in ("Found", "Wanted"):
        table.add_column(title, overflow="fold")
    table.add_column("Verdict", no_wrap=True)
    for _, rows in groupby(result["rows"], key=lambda row: row["section"]):
        for row in rows:
            verdict = row["verdict"]
            cells = (Text(row[name]) for name in ("what", "found", "wanted"))
            table.add_row(*cells, Text(verdict, style=_STYLES.get(verdict, "bold red")))
        table.add_section()
    stdout.print(table)
    stdout.print(
        "Wanted of the machine: the guide, section 8.1. What a run takes is the least: what lives "
        "for a moment between two operations comes on top.",
        markup=False,
        soft_wrap=True,
    )
