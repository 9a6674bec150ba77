"""Memory that runs out: how each part of the machine says so, how much was asked for, and when."""

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_WORDS = (
    *("can't allocate memory", "cannot allocate memory", "bad_alloc"),
    # what stands outside torch's own allocator: a context, the libraries' workspaces
    *("cuda error: out of memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed"),
)
_ASKED = re.compile(r"tried to allocate ([0-9]+(?:\.[0-9]+)?) ?(bytes|[KMGTP]iB)", re.IGNORECASE)
_UNITS = {"bytes": 1} | {
    f"{letter}ib": 1024**power for power, letter in enumerate("kmgtp", start=1)
}


class DoesNotFitError(MemoryError):
    """Memory ran out in a known phase of a measurement."""

    def __init__(self, phase: str, requested_bytes: int | None) -> None:
        """Keep the phase, and the bytes that were asked for in vain (None where nothing says)."""
        asked = "" if requested_bytes is None else f", {requested_bytes:,} bytes asked for"
        super().__init__(f"out of memory in {phase}{asked}")
        self.phase = phase
        self.requested_bytes = requested_bytes

    def describe(self) -> dict[str, Any]:
        """The figures of a configuration that does not fit, as results hold them."""
        return describe_misfit(self.phase, self.requested_bytes)


def describe_misfit(phase: str | None, requested_bytes: int | None) -> dict[str, Any]:
    """`status`, `requested_bytes` and `oom_phase` of what does not fit; None is not known."""
    return {"status": "oom", "requested_bytes": requested_bytes, "oom_phase": phase}


@contextmanager
def fitting(phase: str) -> Iterator[None]:
    """Within, memory that runs out is a `DoesNotFitError` of `phase`; it enters no clock.

    Raises:
        DoesNotFitError: memory ran out; every other error passes through.
    """
    try:
        yield
    except DoesNotFitError:
        raise
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise DoesNotFitError(phase, read_requested_bytes(error)) from error


def read_requested_bytes(error: BaseException) -> int | None:
    """Bytes of the allocation that failed, as torch's message says it (CUDA's: to three digits).

    None where it says nothing, as Python's and the system's errors do.
    """
    match = _ASKED.search(str(error))
    return None if match is None else round(float(match[1]) * _UNITS[match[2].lower()])


def is_out_of_memory(error: BaseException) -> bool:
    """True for CUDA's error, Python's, the system's, and the RuntimeErrors of torch's libraries."""
    if isinstance(error, MemoryError) or _is_torchs(error):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


def _is_torchs(error: BaseException) -> bool:
    torch = sys.modules.get("torch")  # whoever only reads results does not load it
    return torch is not None and isinstance(error, torch.OutOfMemoryError)
