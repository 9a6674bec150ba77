"""What a value in a file of results must be, by its key: types, units, ranges.

A name ends in its unit, so one table of rules checks every figure at any depth. What passes here
can be shown and computed with; a figure that is missing is None, which passes everywhere.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from skip2bench.result_files import DamagedFileError, name_place, walk

_LARGEST = 1e30
"""Beyond this, and below its inverse, ratios and their intervals would leave what floats hold."""

_COUNTS = frozenset(
    (
        *("steps", "tokens", "samples", "rank", "seed", "n", "rounds", "iterations", "runs"),
        *("threads", "cpu_count", "step", "best_step", "seq_length"),
    )
)
_FROM_ONE = frozenset(
    (
        *("global_batch_size", "micro_batch_size", "batch_size", "train_samples"),
        *("total_parameters", "n", "cpu_count"),
    )
)
_COUNT_SUFFIXES = ("_parameters", "_samples", "_tokens", "_size")
_FOREIGN_UNITS = {
    "seconds": ("_minutes", "_hours", "_ms", "_milliseconds", "_microseconds"),
    "bytes": ("_kb", "_mb", "_gb", "_kib", "_mib", "_gib"),
    "ratios": ("_percent", "_pct"),
}


def check_mapping(place: str, value: Any) -> None:
    """Raise DamagedFileError unless `value` is a mapping."""
    if not isinstance(value, dict):
        raise DamagedFileError(f"{place} is {describe(value)}, where a mapping was expected")


def check_figure(key: str, value: Any, place: str) -> None:
    """Raise DamagedFileError unless a number fits the unit that its key ends in; None fits."""
    if value is None:
        return
    wanted, fits = _find_rule(key)
    if not fits(value):
        raise DamagedFileError(f"{place} is {describe(value)}, where {wanted} was expected")


def parse_time(text: Any) -> float:
    """Seconds since 1970 of an ISO 8601 time with its zone.

    Raises:
        DamagedFileError: `text` is no such time.
    """
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is not None:
            return time.astimezone(timezone.utc).timestamp()
    except (ValueError, TypeError, OverflowError):
        pass
    raise DamagedFileError(f"started_at is {describe(text)}, where a time with zone was expected")


def describe(value: Any) -> str:
    """A wrong value in an error: itself where it is short, else its kind."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "missing" if value is None else shown(value)


def shown(value: Any) -> str:
    """The beginning of `repr(value)`; what cannot be printed is escaped."""
    if isinstance(value, int) and abs(value) > 10**40:
        return "an enormous number"
    text = repr(value[:41] if isinstance(value, str) else value)
    return text if len(text) <= 42 else f"{text[:40]}…"


def is_number(value: Any) -> bool:
    """True for a number that can be computed with: neither a boolean nor beyond all measure."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == 0 or 1 / _LARGEST <= abs(value) <= _LARGEST


def is_count(value: Any) -> bool:
    """True for a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 10**18


def check_values(content: Mapping[str, Any], text_keys: frozenset[str]) -> None:
    """Check every value by its own key, at any depth.

    Raises:
        DamagedFileError: a value is not what its key says.
    """
    for keys, value in walk(content):
        key = next((key for key in reversed(keys) if isinstance(key, str)), "")
        if value is None or not keys:
            continue
        place, is_own = name_place(keys), keys[-1] == key
        if is_own:
            _check_unit(key, place)
        if is_own and key == "blocks":
            check_list(value, place, "a list of whole numbers", is_count)
        elif is_own and key == "differences":
            check_list(value, place, "a list of texts", lambda it: isinstance(it, str))
        elif is_own and key in text_keys:
            if not isinstance(value, str):
                raise DamagedFileError(f"{place} is {describe(value)}, where text was expected")
        elif (is_own and _is_figure(key)) or (
            isinstance(value, int | float) and not isinstance(value, bool)
        ):
            check_figure(key if is_own else "", value, place)


def check_list(value: Any, place: str, wanted: str, fits: Callable[[Any], bool]) -> None:
    """Raise DamagedFileError unless `value` is a list and all in it fits."""
    if not isinstance(value, list) or not all(map(fits, value)):
        raise DamagedFileError(f"{place} is not {wanted}")


def _is_from_one(value: Any) -> bool:
    return is_count(value) and value >= 1


def _within(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: is_number(value) and (value == 0 or low <= value <= high)


_SUFFIX_RULES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("_seconds", "a number of seconds", _within(1e-12, 1e10)),
    ("_bytes", "a whole number of bytes", is_count),
    ("_ratio", "a ratio", _within(0.0, 1e12)),
    ("_loss", "a loss", _within(0.0, 1e12)),
    ("_flops", "a number of operations", _within(0.0, _LARGEST)),
)


def _find_rule(key: str) -> tuple[str, Callable[[Any], bool]]:
    """What a number under `key` is, in words, and its check."""
    if key in _FROM_ONE:
        return "a whole number from 1", _is_from_one
    if key in _COUNTS or key.endswith(_COUNT_SUFFIXES):
        return "a whole number", is_count
    if key in ("ratio", "low", "high"):
        return "a ratio", _within(0.0, _LARGEST)
    if key in ("epochs", "learning_rate"):
        return "a number from 0", _within(0.0, _LARGEST)
    for suffix, wanted, fits in _SUFFIX_RULES:
        if key.endswith(suffix):
            return wanted, fits
    return "a number of a sensible size", is_number


def _is_figure(key: str) -> bool:
    """True where a key promises a number."""
    suffixes = (*_COUNT_SUFFIXES, *(suffix for suffix, _, _ in _SUFFIX_RULES))
    named = ("ratio", "low", "high", "learning_rate", "epochs", "forgetting")
    return key in _COUNTS or key in _FROM_ONE or key in named or key.endswith(suffixes)


def _check_unit(key: str, place: str) -> None:
    for unit, foreign in _FOREIGN_UNITS.items():
        if key.endswith(foreign):
            raise DamagedFileError(f"{place} is in another unit than the {unit} of result files")
