"""The one error type for what a user can mend, and how it is printed."""

import re

_LONGEST_WORD = 400
"""Characters of one unbroken run, such as a path; a longer one is cut in its middle."""
_LONGEST_LINE = 2000


class Skip2BenchError(Exception):
    """What is wrong, the value that is wrong, and the remedy, in one line.

    The command line prints it as `error: …` and exits with status 1; a bug keeps its traceback
    instead.
    """


class DivergedError(Skip2BenchError):
    """A loss that is not finite ended a run; it would do so again."""

    def __init__(self, text: str, step: int) -> None:
        """Keep the step after which it was found."""
        super().__init__(text)
        self.step = step


def error_line(error: object) -> str:
    """`error: …` in one line that is safe to print: what it quotes may come from anywhere.

    Very long values are cut in their middle, so that what is wrong and the remedy both remain.
    """
    text = " ".join(str(error).split())
    text = re.sub(rf"\S{{{_LONGEST_WORD + 1},}}", lambda run: _cut(run[0], _LONGEST_WORD), text)
    return f"error: {printable(_cut(text, _LONGEST_LINE))}"


def printable(text: str) -> str:
    """`text` with terminal escapes, other control characters and lone surrogates spelled out.

    A line end stays what it is.
    """
    return "".join(
        char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text
    )


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[: limit * 2 // 3]}…{text[-limit // 3 :]}"
