"""How a command's process ends: one line on stderr and an exit status.

The command line and the cells of a comparison both end by it.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from skip2bench.errors import Skip2BenchError, error_line
from skip2bench.machine.out_of_memory import is_out_of_memory
from skip2bench.machine.signals import interrupted_by_sigterm, noting_interrupts

INTERRUPTED = 130
"""Exit status after Ctrl-C, SIGTERM or SIGHUP."""


def run_to_end(command: Callable[[], object]) -> None:
    """Call `command`; what it raises ends the process as a user should see it.

    A Skip2BenchError, and memory that ran out, become one line on stderr and exit status 1, an
    interrupt `interrupted` and 130. A bug keeps its traceback.
    """
    try:
        with noting_interrupts() as interrupts, interrupted_by_sigterm():
            command()
    except KeyboardInterrupt:
        end_interrupted()
    except Skip2BenchError as error:
        _fail(error)
    except Exception as error:
        if interrupts:  # libraries swallow an interrupt while they load, and fail by it later
            end_interrupted()
        if not is_out_of_memory(error):
            raise
        _fail(
            f"out of memory ({str(error) or 'no more to allocate'}); use a smaller model, fewer or "
            "shorter samples, or a machine with more of it"
        )


def end_interrupted() -> NoReturn:
    """End the process as one that was asked to stop."""
    _say("interrupted")
    sys.exit(INTERRUPTED)


def _fail(error: object) -> NoReturn:
    _say(error_line(error))
    sys.exit(1)


def _say(line: str) -> None:
    with suppress(OSError):  # nobody reads it; the exit status still says so
        print(line, file=sys.stderr)  # noqa: T201
