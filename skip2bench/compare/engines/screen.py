"""What a terminal shows while workers run: each one's cell, and the time left for all."""

import time
from collections.abc import Sequence

from rich.live import Live
from rich.table import Table
from rich.text import Text

from skip2bench.io.console import stderr
from skip2bench.io.units import format_duration

_SHOW_SECONDS = 1.0
_MOST_ROWS = 24


class CrewScreen:
    """A table that stays below what is printed; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._live = Live(console=stderr, transient=True, auto_refresh=False)
        self._shown = 0.0

    def __enter__(self) -> "CrewScreen":
        if stderr.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if stderr.is_terminal:
            self._live.stop()

    @property
    def is_due(self) -> bool:
        """True where something may be shown now."""
        return stderr.is_terminal and time.monotonic() - self._shown >= _SHOW_SECONDS

    def show(self, rows: Sequence[tuple[str, str, float | None]], headline: str) -> None:
        """Show the workers' hosts, cells and seconds."""
        self._shown = time.monotonic()
        self._live.update(build_crew_table(rows, headline), refresh=True)


def build_crew_table(rows: Sequence[tuple[str, str, float | None]], headline: str) -> Table:
    """A row a worker: host, cell, for how many seconds."""
    table = Table(title=headline, title_justify="left", box=None)
    for name in ("worker", "runs", "for"):
        table.add_column(name)
    for host, cell, seconds in rows[:_MOST_ROWS]:
        since = "" if seconds is None else format_duration(seconds, "en")
        table.add_row(Text(host), Text(cell), since)
    if len(rows) > _MOST_ROWS:
        table.add_row("", f"and {len(rows) - _MOST_ROWS} more", "")
    return table
