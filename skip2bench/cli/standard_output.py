"""Results on standard output, whose reader may go away and whose disk may be full."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from skip2bench.errors import Skip2BenchError
from skip2bench.io.whole import to_json

Result = TypeVar("Result")


def settle_encodings() -> None:
    """Let a file or pipe get UTF-8 whatever the terminal's encoding is, and that what it can show.

    A report that is redirected on a Japanese Windows is one then, and nothing is a traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        with suppress(AttributeError, ValueError, OSError):  # closed by the caller
            if stream is sys.stdout and not stream.isatty():
                stream.reconfigure(encoding="utf-8")
            else:
                stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")


def print_text(text: str) -> None:
    """Print text as it is."""
    if sys.stdout is None:  # its reader went away before
        return
    with _standard_output():
        sys.stdout.write(text)
        sys.stdout.flush()


@contextmanager
def _standard_output() -> Iterator[None]:
    """Writing to standard output, where its reader may go away and its disk be full."""
    try:
        yield
    except BrokenPipeError:
        sys.stdout = None  # the reader has seen enough, as `head` does
    except OSError as error:
        raise Skip2BenchError(
            f"cannot write to standard output ({error.strerror}); use --output or another file"
        ) from error


def print_result(result: Result, as_json: bool, print_for_person: Callable[[Result], None]) -> None:
    """Print a command's result, for a program or by `print_for_person`."""
    if as_json:
        print_text(to_json(result))
    else:
        with _standard_output():
            print_for_person(result)
            sys.stdout.flush()
