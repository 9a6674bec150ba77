"""How figures are written for people: the only place that rounds or converts units.

Files hold SI base units; the report and the console hand them here. Every function is pure and
returns text, and a figure always passes through the same one, so that it is never rounded two ways.
The other way, sizes in bytes are read as people type them.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Literal

from skip2bench.errors import Skip2BenchError

Language = Literal["ja", "en"]

BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_smallest_unit: ContextVar[int] = ContextVar("smallest_unit", default=0)
_DURATION_UNITS = {"ja": ("時間", "分", "秒"), "en": ("h", "min", "s")}


def format_significant(value: float) -> str:
    """Three significant digits or the whole part, no exponent: "1,234", "12.3", "-0.00123"."""
    if value == 0:
        return "0"
    rounded = abs(float(f"{value:.2e}"))  # 9.996 counts as 10.0, so it gets one decimal
    decimals = max(0, 2 - math.floor(math.log10(rounded)))
    return f"{value:,.{decimals}f}"


def format_milliseconds(seconds: float) -> str:
    """Seconds as a number of milliseconds without the unit, for a column headed (ms): "12.3"."""
    return format_significant(seconds * 1000)


def format_seconds(seconds: float) -> str:
    """A short time: "12.3 ms" below a second, "4.56 s" from there."""
    if float(f"{seconds:.2e}") < 1:
        return f"{format_milliseconds(seconds)} ms"
    return f"{format_significant(seconds)} s"


def format_duration(seconds: float, lang: Language) -> str:
    """A long time in the words of `lang`: "32.1 秒", "1 分 32 秒", "1 h 2 min 3 s"."""
    hour, minute, second = _DURATION_UNITS[lang]
    if float(f"{seconds:.2e}") < 60:
        return f"{format_significant(seconds)} {second}"
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{minutes} {minute} {whole_seconds} {second}"
    return f"{hours:,} {hour} {text}" if hours else text


@contextmanager
def sizes_from(unit: str) -> Iterator[None]:
    """Within, `format_bytes` takes no unit below this one."""
    token = _smallest_unit.set(BINARY_UNITS.index(unit))
    try:
        yield
    finally:
        _smallest_unit.reset(token)


def format_bytes(size_bytes: float) -> str:
    """A size in binary units: "512 B", "12.3 MiB", and two decimals from a GiB on: "1.25 GiB"."""
    size = float(size_bytes)
    for number, unit in enumerate(BINARY_UNITS):
        is_fit = abs(round(size, 1)) < 1024 and number >= _smallest_unit.get()
        if is_fit or unit == BINARY_UNITS[-1]:
            break
        size /= 1024
    decimals = {"B": 0, "KiB": 1, "MiB": 1}.get(unit, 2)
    return f"{size:,.{decimals}f} {unit}"


def format_count(count: int) -> str:
    """A whole number: "49,152", and from a million on "2.10M" or "6.74B"."""
    for limit, letter in ((10**9, "B"), (10**6, "M")):
        if abs(count) >= limit:
            return f"{count / limit:,.2f}{letter}"
    return f"{count:,}"


def format_amount(number: int, noun: str) -> str:
    """A number of things, in English: "1 run", "3,000 runs"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def format_tick(value: float) -> str:
    """A number of an axis, so that neighbours differ: "49,152", "1.605M", "12.5", "0.05".

    Args:
        value: What the axis marks: round for its range.
    """
    for limit, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if abs(value) >= limit:
            return f"{value / limit:.5g}{letter}"
    return f"{round(value):,}" if abs(value) >= 1000 else f"{value:.4g}"


def format_percent(ratio: float, *, signed: bool = False) -> str:
    """A ratio in percent: one decimal, below 1 % two significant digits ("25.3 %", "0.031 %").

    Args:
        ratio: The figure, 1 for 100 %.
        signed: Write a plus before what is above zero.
    """
    percent = ratio * 100
    decimals = 1
    if 0.0001 <= abs(percent) < 1:
        decimals = max(1, 1 - math.floor(math.log10(float(f"{abs(percent):.1e}"))))
    text = f"{percent:,.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        return "0.0 %"
    return f"{'+' if signed and percent > 0 else ''}{text} %"


def format_loss(loss: float) -> str:
    """A loss with four decimals: "2.3456"."""
    return f"{loss:.4f}"


def format_time(timestamp: str) -> str:
    """A point in time, given as ISO 8601 with its zone, to the minute: "2026-11-23 10:00 UTC".

    Raises:
        ValueError: `timestamp` is no ISO 8601.
    """
    return f"{datetime.fromisoformat(timestamp).astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"


MAX_BYTES = 1 << 60
_BYTE_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4} | {
    f"{letter}i": 1024**power for power, letter in enumerate("kmgt", start=1)
}


def parse_bytes(name: str, text: str) -> int:
    """A number of bytes: 500000000, 500MB, 2GiB, 1.5 G.

    Raises:
        Skip2BenchError: it is none, or beyond 1 EiB.
    """
    # [0-9], as \d would take the digits of every script
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if not match or match[2] == "i":
        raise Skip2BenchError(f"{name} is {text!r}; give bytes, or such as 500MB or 2GiB")
    size = float(match[1]) * _BYTE_UNITS[match[2]]  # infinite where it has very many digits
    if size > MAX_BYTES:
        raise Skip2BenchError(f"{name} is {text!r}; give at most {MAX_BYTES >> 40}TiB")
    return int(size)


_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}


def parse_duration(name: str, text: str) -> float:
    """Seconds: 90s, 5min, 1.5h.

    Raises:
        Skip2BenchError: it is none, or 0, or beyond a year.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(s|sec|m|min|h)", text.strip().lower())
    if not match:
        raise Skip2BenchError(f"{name} is {text!r}; give a number, or a time such as 90s or 5min")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if not 0 < seconds <= 366 * 86_400:
        raise Skip2BenchError(f"{name} is {text!r}; give a time above 0 and below a year")
    return seconds
