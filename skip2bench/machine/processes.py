"""How processes of this program's own are started: with clean memory, and soon.

Loading torch and what stands on it takes seconds. On Linux a server process loads it once and does
nothing else; what is forked from it starts in a moment, with memory that nobody has worked in. A
context of CUDA does not survive a fork, and macOS' frameworks do not either: there, each process
starts anew and loads for itself.
"""

import _thread
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing import get_context
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

ProcessContext: TypeAlias = "ForkServerContext | SpawnContext"


def starts_loaded(device_type: str) -> bool:
    """True where a process finds its modules loaded: see `process_context`."""
    return sys.platform == "linux" and device_type == "cpu"


def process_context(device_type: str, modules: Sequence[str]) -> ProcessContext:
    """The multiprocessing context to start processes in.

    Args:
        device_type: cpu, cuda or mps: what they will work on.
        modules: Loaded before the first one starts; what the server has loaded once stays so.
    """
    if not starts_loaded(device_type):
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context


KILLED = -9
"""Exit status of a process that SIGKILL has ended, as the system does where memory runs out."""


def leave_terminal() -> None:
    """Let Ctrl-C in the terminal pass this process by, where the system has sessions."""
    if hasattr(os, "setsid"):
        os.setsid()


def interrupt(process_id: int) -> None:
    """Interrupt another process as Ctrl-C does; where that cannot be, end it.

    Raises:
        ProcessLookupError: it has ended.
    """
    os.kill(process_id, signal.SIGTERM if sys.platform == "win32" else signal.SIGINT)


def interrupt_oneself() -> None:
    """Interrupt this process's main thread, from another one."""
    if sys.platform == "win32":
        _thread.interrupt_main()
    else:
        os.kill(os.getpid(), signal.SIGINT)


def load_modules(context: ProcessContext) -> None:
    """Return when the context's modules are loaded, so that no process is timed with that."""
    if context.get_start_method() == "forkserver":
        first = context.Process()
        first.start()
        first.join()
