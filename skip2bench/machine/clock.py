"""Seconds and FLOPs of a callable.

Clocks read after the device is synchronised. FLOPs are exact and free of noise; seconds are what
the machine gave.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Clock:
    """Seconds by named part; whatever runs outside `part` is not counted."""

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        """Start all parts at zero; `now` is replaced in tests."""
        self.seconds: dict[str, float] = {}
        self._device = device
        self._now = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`, the device's pending work included."""
        synchronize(self._device)
        start = self._now()
        try:
            yield
        finally:
            synchronize(self._device)
            self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    @contextmanager
    def excluded(self, name: str) -> Iterator[None]:
        """Within `part(name)`: leave the time spent inside out of it (progress, not work)."""
        start = self._now()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) - (self._now() - start)

    def total(self, names: Iterable[str]) -> float:
        """Sum of the named parts, in seconds."""
        return sum(self.seconds.get(name, 0.0) for name in names)


def time_call(
    call: Callable[[], object], device: torch.device, now: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one call, the device's work included.

    On CUDA they are those between two events on the current stream, which the host's waiting for
    the device does not lengthen; `now` is the clock of every other device.
    """
    synchronize(device)
    if device.type == "cuda":
        stream = torch.cuda.current_stream(device)
        first, last = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        first.record(stream)
        call()
        last.record(stream)
        synchronize(device)  # also what the call left on other streams, so that it disturbs no next
        return float(first.elapsed_time(last)) / 1000
    start = now()
    call()
    synchronize(device)
    return now() - start


def clock_name(device: torch.device) -> str:
    """The clock that `time_call` reads."""
    return "cuda events" if device.type == "cuda" else "perf_counter"


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of `call` by torch's FlopCounterMode; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
