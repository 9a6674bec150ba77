"""A measurement in a process of its own, whose memory nothing else has touched."""

from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from skip2bench.machine.out_of_memory import describe_misfit
from skip2bench.machine.processes import KILLED, process_context

Request = TypeVar("Request")


def measure_in_own_process(
    measure: Callable[[Request], dict[str, Any]], request: Request, device_type: str
) -> dict[str, Any]:
    """What `measure` finds; `status` alone, or with what is known, where its process died.

    Args:
        measure: A function of a module, called in the process.
        request: What it is given; both must be picklable.
        device_type: What it works on.
    """
    context = process_context(device_type, (measure.__module__,))
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_and_send, args=(measure, request, sender))
    process.start()
    sender.close()  # so that a child that dies leaves the pipe at its end
    try:
        figures: dict[str, Any] = receiver.recv()
    except EOFError:
        figures = {}
    except BaseException:
        process.terminate()
        raise
    process.join()
    if figures:
        return figures
    # SIGKILL is what the system ends a process with that takes too much memory
    return describe_misfit(None, None) if process.exitcode == KILLED else {"status": "failed"}


def _measure_and_send(
    measure: Callable[[Request], dict[str, Any]], request: Request, sender: Connection
) -> None:
    sender.send(measure(request))
