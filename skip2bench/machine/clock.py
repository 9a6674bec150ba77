"""Seconds and FLOPs of a callable.

Clocks read after the device is synchronised. FLOPs are exact and free of noise; seconds are what
the machine gave.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from skip2bench.machine.processor_use import ProcessorMeter


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class _Unread(NamedTuple):
    """Time between two events that the device may not have come to."""

    name: str
    sign: int
    first: torch.cuda.Event
    last: torch.cuda.Event

    @property
    def has_passed(self) -> bool:
        return bool(self.last.query())  # type: ignore[no-untyped-call]


def _record_event(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


class Clock:
    """Seconds by named part; whatever runs outside `part` is not counted.

    A part begins and ends where the device is done with what it was given. On CUDA nobody waits for
    that: both are events on the current stream, read once they have passed. The seconds are those
    of the device then. It passes an event at once where it has nothing to do, so a part that keeps
    only the host busy counts as long as the device is idle for it, and no second counts twice.
    """

    def __init__(
        self,
        device: torch.device,
        now: Callable[[], float] = time.perf_counter,
        meter: ProcessorMeter | None = None,
    ) -> None:
        """Start all parts at zero; `now` is the clock of devices without events.

        The `meter` is told of every part, outside of its seconds.
        """
        self.meter = meter
        self._seconds: dict[str, float] = {}
        self._device, self._now = device, now
        self._unread: deque[_Unread] = deque()

    @property
    def seconds(self) -> dict[str, float]:
        """By part; waits for the end of the last one where the device has not come there."""
        for one in reversed(self._unread):  # after the last of a stream, none is waited for
            if not one.has_passed:
                one.last.synchronize()
        self._read_passed()
        return self._seconds

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`, the device's pending work included."""
        self._read_passed()
        outer = self.meter.enter(name) if self.meter else ""
        try:
            with self._span(name, 1):
                yield
        finally:
            if self.meter:
                self.meter.enter(outer)

    @contextmanager
    def excluded(self, name: str) -> Iterator[None]:
        """Within `part(name)`: leave the time spent inside out of it (progress, not work)."""
        with self._span(name, -1):
            yield

    def total(self, names: Iterable[str]) -> float:
        """Sum of the named parts, in seconds; waits as `seconds` does."""
        seconds = self.seconds
        return sum(seconds.get(name, 0.0) for name in names)

    @contextmanager
    def _span(self, name: str, sign: int) -> Iterator[None]:
        if self._device.type == "cuda":
            first = _record_event(self._device)
            try:
                yield
            finally:
                last = _record_event(self._device)
                self._unread.append(_Unread(name, sign, first, last))
            return
        is_work = sign > 0
        if is_work:
            synchronize(self._device)
        start = self._now()
        try:
            yield
        finally:
            if is_work:
                synchronize(self._device)
            self._add(name, sign * (self._now() - start))

    def _read_passed(self) -> None:
        """Add what the device has come past, without waiting; so few events exist at a time."""
        while self._unread and self._unread[0].has_passed:
            one = self._unread.popleft()
            self._add(one.name, one.sign * one.first.elapsed_time(one.last) / 1000)

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


@contextmanager
def stopwatch(
    device: torch.device, now: Callable[[], float] = time.perf_counter
) -> Iterator[Callable[[], float]]:
    """Gives a function that returns, afterwards, the seconds of what ran within by a `Clock`.

    The device's work is included, and nothing that it was given before.
    """
    synchronize(device)
    clock = Clock(device, now)
    with clock.part("call"):
        yield lambda: clock.seconds["call"]
    synchronize(device)  # also what was left on other streams, so that it disturbs no next


def time_call(
    call: Callable[[], object], device: torch.device, now: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one call, as by `stopwatch`."""
    with stopwatch(device, now) as seconds:
        call()
    return seconds()


def clock_name(device: torch.device) -> str:
    """What `Clock` reads."""
    return "cuda events" if device.type == "cuda" else "perf_counter"


@contextmanager
def counting_flops() -> Iterator[Callable[[], int]]:
    """Gives a function that returns, afterwards, what `count_flops` would of what runs within."""
    with FlopCounterMode(display=False) as counter:
        yield lambda: int(counter.get_total_flops())


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of `call` by torch's FlopCounterMode; a multiply-add is two."""
    with counting_flops() as flops:
        call()
    return flops()
