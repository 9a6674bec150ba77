"""`generate`: prompts of flags or standard input; answers as they come, or side by side."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.live import Live
from rich.table import Table
from rich.text import Text

from skip2bench.cli.standard_output import print_text
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note, stdout
from skip2bench.io.units import format_amount
from skip2bench.io.whole import to_json

if TYPE_CHECKING:
    from skip2bench.export.generate import Asked
    from skip2bench.export.record import Exchange, Reply
    from skip2bench.models.generation import Answer


def read_prompts(given: Sequence[str]) -> list[str]:
    """Prompts of the flags, or all of standard input as one.

    Raises:
        Skip2BenchError: there is none.
    """
    if given:
        prompts = list(given)
    else:
        if sys.stdin is not None and sys.stdin.isatty():
            note("type the prompt; Ctrl-D ends it")
        prompts = [_read_standard_input().strip("\n")]
    if any(not prompt.strip() for prompt in prompts):
        raise Skip2BenchError("the prompt is empty; give --prompt, or text on standard input")
    return prompts


def _read_standard_input() -> str:
    """Standard input as UTF-8, whatever the locale is."""
    if sys.stdin is None:
        return ""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        return sys.stdin.read()
    try:
        return str(stream.read(), "utf-8")
    except UnicodeDecodeError as error:
        raise Skip2BenchError(f"standard input is no UTF-8 text ({error.reason})") from error


def answer_all(
    asked: "Asked", prompts: Sequence[str], own_input: str, *, compare: bool, as_json: bool
) -> None:
    """Ask all prompts and print the answers."""
    exchanges = [
        _answer(asked, prompt, own_input, compare=compare, is_shown=not as_json)
        for prompt in prompts
    ]
    if as_json:
        print_text(to_json(exchanges))


def _answer(
    asked: "Asked", prompt: str, own_input: str, *, compare: bool, is_shown: bool
) -> "Exchange":
    from skip2bench.export.record import Exchange

    if not compare:
        answer = asked.prepare(prompt, own_input)
        for piece in answer:
            if is_shown:
                print_text(piece)
            if sys.stdout is None:
                break  # nobody reads on
        if is_shown:
            print_text("\n")
            _note_speed(asked.source.label, answer)
        return Exchange(
            prompt=prompt, input=own_input or None, base=None, adapted=_describe(answer)
        )
    table = _SideBySide(prompt, asked.source.label, is_shown=is_shown)
    with table.shown():
        with asked.base(prompt, own_input) as base:
            table.fill(0, base)
        answer = asked.prepare(prompt, own_input)
        table.fill(1, answer)
    if is_shown:
        _note_speed("base", base)
        _note_speed(asked.source.label, answer)
    return Exchange(
        prompt=prompt,
        input=own_input or None,
        base=_describe(base),
        adapted=_describe(answer),
    )


class _SideBySide:
    """Two answers in one table, which grows with them on a terminal."""

    def __init__(self, prompt: str, label: str, *, is_shown: bool) -> None:
        self._prompt, self._label, self._is_shown = prompt, label, is_shown
        self._texts = ["", ""]
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within, what is filled in appears; elsewhere than on a terminal, at the end."""
        if not self._is_shown:
            yield
        elif stdout.is_terminal:
            with Live(
                console=stdout, auto_refresh=False, vertical_overflow="visible"
            ) as self._live:
                yield
        else:
            yield
            stdout.print(self._table())

    def fill(self, column: int, answer: "Answer") -> None:
        """Run an answer to its end."""
        for piece in answer:
            self._texts[column] += piece
            if self._live is not None:
                self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        table = Table(
            title=Text(self._prompt), title_style="bold", title_justify="left", expand=True
        )
        for column in ("base", self._label):
            table.add_column(column, ratio=1, overflow="fold")
        table.add_row(*map(Text, self._texts))
        return table


def _describe(answer: "Answer") -> "Reply":
    from skip2bench.export.record import Reply

    return Reply(text=answer.text, tokens=len(answer.ids), seconds=answer.seconds)


def _note_speed(label: str, answer: "Answer") -> None:
    rate = len(answer.ids) / answer.seconds if answer.seconds else 0.0
    amount, prompt = (format_amount(n, "token") for n in (len(answer.ids), len(answer.prompt_ids)))
    note(f"{label}: {amount} at {rate:.1f} tokens/s, after a prompt of {prompt}")
