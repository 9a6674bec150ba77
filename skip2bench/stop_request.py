"""Ctrl-C and SIGTERM as a wish to stop, granted where nothing is lost by it.

A signal that ended a step half-way would leave weights and optimizer of two different steps. So the
first one is only written down, and the loop ends after the step it is in; a second one ends the
process at once.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = b"\nstopping after this step, which is saved; once more to stop at once\n"


class StopRequest:
    """Whether somebody has asked this process to stop."""

    def __init__(self) -> None:
        self.is_made = False

    def make(self, _number: int = 0, _frame: object = None) -> None:
        """Ask; as a signal's handler, the second time raises KeyboardInterrupt."""
        if self.is_made:
            raise KeyboardInterrupt
        self.is_made = True
        with contextlib.suppress(OSError):  # nobody listens
            os.write(2, _NOTICE)  # not print: the signal may have come in the middle of one

    def check(self) -> None:
        """Raise KeyboardInterrupt where it was made."""
        if self.is_made:
            raise KeyboardInterrupt

    def check_apart(self) -> None:
        """The same, where the processes of a run work each for itself (see `ranks`)."""
        self.check()


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within, SIGINT and SIGTERM make the request that is given."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, request.make) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Within, SIGTERM ends the work as Ctrl-C does: what is running is ended and recorded."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
