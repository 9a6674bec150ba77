"""What a process and others used the processor for while each of its parts ran.

A part of seconds is looked at where it begins and ends. Where parts of milliseconds alternate, one
look a second is shared out among them by their wall time: a look costs far less than a thousandth
of what lies between two.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import psutil

from skip2bench.machine.hardware import busy_seconds, has_quota, own_seconds

LOOK_SECONDS = 1.0
"""The least between two looks, but for the first ones."""
_FIRST_LOOK_SECONDS = 0.25
"""Between the first two; it doubles until it is LOOK_SECONDS. A run of seconds is helped too."""
_SHORTEST_LOOK_SECONDS = 0.2
"""Below it nobody is told: ticks of 10 ms say little of a moment."""
_LOOK_SHARE = 1e-3
"""The most of a run's time that looks may take."""
_SHORTEST_SECONDS = 0.5
"""Below it the system's ticks of 10 ms say nothing on who was busy."""
_UNCOUNTED_RATIO, _TICKS_SECONDS = 0.1, 0.1
"""By how much the cores may seem less busy than this process alone, by rounding."""


class Look(NamedTuple):
    """The system's counters at one moment; None is what it does not say."""

    busy_seconds: float | None
    own_seconds: float | None


def look() -> Look:
    """Read the counters now.

    Where a container may use a share of its cores only, what all of them do is the host's business.
    """
    try:
        own = own_seconds()
        return Look(None if has_quota() else busy_seconds(), own)
    except (psutil.Error, OSError, NotImplementedError, AttributeError):
        return Look(None, None)


@dataclass(frozen=True, kw_only=True)
class Use:
    """How the processor was used during some parts."""

    wall_seconds: float
    cpu_seconds: float | None
    """Of this process and its children, over all cores."""
    others_cores: float | None
    """Mean number of cores that others kept busy; None where that cannot be known."""


class ProcessorMeter:
    """Who used the processor, by named part; one part runs at a time."""

    def __init__(
        self,
        read: Callable[[], Look] = look,
        now: Callable[[], float] = time.monotonic,
        on_look: Callable[[float | None], None] = lambda _others_cores: None,
    ) -> None:
        """Begin, in no part; `on_look` is told how many cores others kept busy since the last."""
        self._read, self._now, self._on_look = read, now, on_look
        self._name = ""
        self._since = self._next = now()
        self._interval = _FIRST_LOOK_SECONDS
        self._waiting: dict[str, float] = {}
        self._used: dict[str, list[float]] = {}
        self._is_known, self._is_busy_known = True, True
        self._last = read()

    def enter(self, name: str) -> str:
        """From now on a part runs, "" for none; returns the one before."""
        before, self._name = self._name, name
        now = self._now()
        self._waiting[before] = self._waiting.get(before, 0.0) + now - self._since
        self._since = now
        if now >= self._next:
            self._look()
        return before

    def total(self, names: Iterable[str]) -> Use | None:
        """Of some parts together until now; None where none of them ran."""
        self.enter(self._name)
        self._look()
        sums = [self._used[name] for name in dict.fromkeys(names) if name in self._used]
        wall, own, others = (
            (sum(values) for values in zip(*sums, strict=True)) if sums else [0.0] * 3
        )
        if not wall:
            return None
        # counters that do not even count this process are another machine's, or none at all
        is_counted = others >= -max(_UNCOUNTED_RATIO * own, _TICKS_SECONDS)
        can_say = self._is_busy_known and is_counted and wall >= _SHORTEST_SECONDS
        return Use(
            wall_seconds=wall,
            cpu_seconds=own if self._is_known else None,
            others_cores=max(0.0, others / wall) if can_say else None,
        )

    def to_plain(self) -> dict[str, list[float]]:
        """What was found until now, as JSON can hold it."""
        self.enter(self._name)
        self._look()
        return {name: list(values) for name, values in self._used.items()}

    def restore(self, plain: Mapping[str, Sequence[float]]) -> None:
        """Begin anew with what `to_plain` gave in an earlier process."""
        self.to_plain()
        self._used = {name: list(values) for name, values in plain.items()}

    def _look(self) -> None:
        """Read the counters, and share out what came since the last look."""
        started = self._now()
        last, self._last = self._last, self._read()
        own = _less(self._last.own_seconds, last.own_seconds)
        busy = _less(self._last.busy_seconds, last.busy_seconds)
        self._is_known &= own is not None
        self._is_busy_known &= own is not None and busy is not None
        whole = sum(self._waiting.values())
        for name, wall in self._waiting.items():
            share = wall / whole if whole else 0.0
            used = self._used.setdefault(name, [0.0, 0.0, 0.0])
            used[0] += wall
            used[1] += share * (own or 0.0)
            used[2] += share * ((busy or 0.0) - (own or 0.0))
        self._waiting.clear()
        if whole >= _SHORTEST_LOOK_SECONDS:
            known = own is not None and busy is not None
            self._on_look(((busy or 0.0) - (own or 0.0)) / whole if known else None)
        ended = self._now()
        self._next = ended + max(self._interval, (ended - started) / _LOOK_SHARE)
        self._interval = min(LOOK_SECONDS, 2 * self._interval)


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other
