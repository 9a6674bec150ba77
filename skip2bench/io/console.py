"""What a person sees while a command runs, on stderr: notes, warnings and progress.

Progress is a bar on a terminal, else a line now and then.
"""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from skip2bench.errors import printable

stderr = Console(stderr=True, highlight=False, soft_wrap=True)
# Where nobody says how wide the page is (a pipe, a log, what a caller has closed), wide enough for
# every table.
_is_terminal = sys.stdout is not None and sys.stdout.isatty()
stdout = Console(highlight=False, width=None if _is_terminal else 120)


def note(text: str) -> None:
    """Print one line to stderr."""
    stderr.print(printable(text), markup=False)


def warn(text: str) -> None:
    """Print one warning line to stderr."""
    stderr.print(f"warning: {printable(text)}", markup=False, style="yellow")


class Bar:
    """Progress of one long task, with a rate and the time left.

    On a terminal a rich bar; elsewhere one line every `every_seconds`. Both cost microseconds an
    update and are called outside every clock.
    """

    def __init__(
        self, title: str, total: int, unit: str, every_seconds: float = 10.0, done: int = 0
    ) -> None:
        """Prepare a bar that ends at `total` units, of which `done` were done before."""
        self._title, self._total, self._unit, self._every = title, total, unit, every_seconds
        self._done = self._before = done
        self._detail, self._printed_done = "", -1
        self._started = self._printed = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=stderr,
            transient=True,
            disable=not stderr.is_terminal,
        )
        self._task = self._progress.add_task(title, total=total, completed=done, detail="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()
        if kind is None and 0 < self._done != self._printed_done and not stderr.is_terminal:
            self._print_line()

    def advance(self, amount: int = 1, detail: str | None = None) -> None:
        """Count `amount` more units; `detail` replaces the text beside the bar."""
        self._done += amount
        self._detail = self._detail if detail is None else detail
        self._progress.update(self._task, advance=amount, detail=self._detail)
        now = time.monotonic()
        if not stderr.is_terminal and now - self._printed >= self._every:
            self._printed = now
            self._print_line()

    def _print_line(self) -> None:
        self._printed_done = self._done
        elapsed = time.monotonic() - self._started
        here = self._done - self._before
        left = elapsed / here * (self._total - self._done) if here else 0.0
        note(
            f"{self._title}: {self._done:,}/{self._total:,} {self._unit} {self._detail} "
            f"{elapsed:.0f} s elapsed, {left:.0f} s left"
        )
        sys.stderr.flush()


class Waiting:
    """A line with a moving mark and the time so far, while a process of its own works."""

    def __init__(self, title: str) -> None:
        """Prepare the line; nothing is shown where stderr is no terminal."""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=stderr,
            transient=True,
            disable=not stderr.is_terminal,
        )
        self._progress.add_task(title, total=None)

    def __enter__(self) -> "Waiting":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
