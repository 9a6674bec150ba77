"""Ctrl-C, SIGTERM and SIGHUP as a wish to stop, granted where nothing is lost by it.

A signal that ended a step half-way would leave weights and optimizer of two different steps. So the
first one is only written down, and the loop ends after the step it is in; a second one ends the
process at once.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

_END_SIGNALS = [signal.SIGTERM]
if hasattr(signal, "SIGHUP"):
    _END_SIGNALS.append(signal.SIGHUP)  # a terminal or a connection that was closed
_NOTICE = b"\nstopping where nothing is lost by it; once more to stop at once\n"


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
    """Within, SIGINT, SIGTERM and SIGHUP make the request that is given."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may set handlers
        return
    with _handled((signal.SIGINT, *_END_SIGNALS), request.make):
        yield request


@contextmanager
def noting_interrupts() -> Iterator[list[int]]:
    """Within, SIGINT raises KeyboardInterrupt as ever, and is noted in the list that is given."""
    noted: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield noted
        return
    with _handled([signal.SIGINT], interrupt):
        yield noted


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP end the work as Ctrl-C does: it is ended and recorded."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handled(_END_SIGNALS, interrupt):
        yield


@contextmanager
def _handled(
    numbers: Sequence[signal.Signals], handler: Callable[[int, object], None]
) -> Iterator[None]:
    """Within, these signals call the handler, but for a SIGHUP that nohup has turned off."""
    before = {
        number: signal.signal(number, handler)
        for number in numbers
        if number in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
