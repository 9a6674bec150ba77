"""Whether a summary and an environment hold what their names say: types, units, ranges.

A name ends in its unit, so one table of rules checks every figure at any depth. What passes here
can be shown and computed with; a figure that is missing is None, which passes everywhere.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, get_args

from skip2bench.result_files import DamagedFileError, name_place, walk
from skip2bench.results import SCHEMA_VERSION, Status

KINDS = ("bench", "train", "compare")
_LARGEST = 1e30
"""Beyond this, and below its inverse, ratios and their intervals would leave what floats hold."""

_TEXT = frozenset(
    (
        *("kind", "status", "label", "method", "target", "model", "data", "device", "precision"),
        *("error", "peer", "log_folder", "started_at", "finished_at", "cache_tier", "cache_dtype"),
    )
)
_ENVIRONMENT_TEXT = frozenset(
    (
        *("processor", "platform", "python", "torch", "litgpt", "lightning", "skip2bench"),
        *("command", "commit", "name", "driver", "sha256", "started_at"),
    )
)
_COUNTS = frozenset(
    (
        *(
            "steps",
            "tokens",
            "samples",
            "rank",
            "seed",
            "n",
            "rounds",
            "iterations",
            "runs",
            "threads",
        ),
        *("cpu_count", "step", "best_step", "seq_length"),
    )
)
_FROM_ONE = frozenset(
    (
        *(
            "global_batch_size",
            "micro_batch_size",
            "batch_size",
            "train_samples",
            "total_parameters",
        ),
        *("n", "cpu_count"),
    )
)
_COUNT_SUFFIXES = ("_parameters", "_samples", "_tokens", "_size")
_FOREIGN_UNITS = {
    "seconds": ("_minutes", "_hours", "_ms", "_milliseconds", "_microseconds"),
    "bytes": ("_kb", "_mb", "_gb", "_kib", "_mib", "_gib"),
    "ratios": ("_percent", "_pct"),
}


def check_summary(summary: Any) -> dict[str, Any]:
    """The content of `summary.json`, if it can be trusted.

    Raises:
        DamagedFileError: it is another schema's, or a value is not what its name says.
    """
    if not isinstance(summary, dict):
        raise DamagedFileError(f"it is {describe(summary)}, where a mapping was expected")
    check_schema_version(summary)
    _check_word(summary, "kind", KINDS)
    _check_word(summary, "status", get_args(Status))
    _check_values(summary, _TEXT)
    if summary.get("started_at") is not None:
        parse_time(summary["started_at"])
    if summary.get("log_folder") is not None:
        _check_is_inside(summary["log_folder"])
    if summary["kind"] == "bench":
        _check_configurations(summary)
    _check_agreement(summary)
    return summary


def check_environment(environment: Any) -> dict[str, Any]:
    """The content of `environment.json`, if it can be trusted.

    Raises:
        DamagedFileError: a value is not what its name says.
    """
    check_mapping("it", environment)
    for name in ("gpu", "data", "checkpoint"):
        if environment.get(name) is not None:
            check_mapping(name, environment[name])
    load = environment.get("load_average")
    if load is not None and not (isinstance(load, list) and load and all(map(is_number, load))):
        raise DamagedFileError(f"load_average is {describe(load)}, where numbers were expected")
    _check_values(environment, _ENVIRONMENT_TEXT)
    return dict(environment)


def check_schema_version(content: Mapping[str, Any]) -> None:
    """Raise DamagedFileError unless `content` is of the schema that this version reads."""
    version = content.get("schema_version")
    if version is None:
        raise DamagedFileError("it has no schema_version, so it is not skip2bench's")
    if not isinstance(version, int) or isinstance(version, bool):
        raise DamagedFileError(
            f"schema_version is {describe(version)}, where a whole number was expected"
        )
    if version > SCHEMA_VERSION:
        raise DamagedFileError(
            f"it was written by a newer skip2bench (schema_version {shown(version)}, this one "
            f"reads {SCHEMA_VERSION})"
        )
    if version < SCHEMA_VERSION:
        raise DamagedFileError(
            f"it was written by an older skip2bench (schema_version {shown(version)}, this one "
            f"reads {SCHEMA_VERSION})"
        )


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
        return "a number from 0", _within(0.0, 1e12)
    for suffix, wanted, fits in _SUFFIX_RULES:
        if key.endswith(suffix):
            return wanted, fits
    return "a number of a sensible size", is_number


def _is_figure(key: str) -> bool:
    """True where a key promises a number."""
    suffixes = (*_COUNT_SUFFIXES, *(suffix for suffix, _, _ in _SUFFIX_RULES))
    named = ("ratio", "low", "high", "learning_rate", "epochs", "forgetting")
    return key in _COUNTS or key in _FROM_ONE or key in named or key.endswith(suffixes)


def _check_values(content: Mapping[str, Any], text_keys: frozenset[str]) -> None:
    """Every value by its own key, at any depth."""
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


def _check_unit(key: str, place: str) -> None:
    for unit, foreign in _FOREIGN_UNITS.items():
        if key.endswith(foreign):
            raise DamagedFileError(f"{place} is in another unit than the {unit} of result files")


def check_list(value: Any, place: str, wanted: str, fits: Callable[[Any], bool]) -> None:
    """Raise DamagedFileError unless `value` is a list and all in it fits."""
    if not isinstance(value, list) or not all(map(fits, value)):
        raise DamagedFileError(f"{place} is not {wanted}")


def _check_word(summary: Mapping[str, Any], key: str, known: tuple[str, ...]) -> None:
    if summary.get(key) not in known:
        found = "missing" if summary.get(key) is None else describe(summary[key])
        raise DamagedFileError(f"{key} is {found}, none of {', '.join(known)}")


def _check_is_inside(log_folder: str) -> None:
    """A log folder is read, so it may be named only below its run."""
    for path in (PurePosixPath(log_folder), PureWindowsPath(log_folder)):
        if path.anchor or ".." in path.parts or "\0" in log_folder:
            raise DamagedFileError(f"log_folder {shown(log_folder)} leads out of the run folder")


def _check_configurations(summary: Mapping[str, Any]) -> None:
    """Of a benchmark: the mappings that the tables read."""
    configurations = summary.get("configurations") or []
    if not isinstance(configurations, list):
        raise DamagedFileError(
            f"configurations is {describe(configurations)}, where a list was expected"
        )
    for number, configuration in enumerate(configurations):
        place = f"configurations[{number}]"
        check_mapping(place, configuration)
        for name in ("phases", "ratios", "flops", "memory"):
            if configuration.get(name) is not None:
                check_mapping(f"{place}.{name}", configuration[name])
        for name in ("phases", "ratios"):
            for key, value in (configuration.get(name) or {}).items():
                if value is not None:
                    check_mapping(f"{place}.{name}.{key}", value)
        _check_parts(configuration, "trainable_parameters", "total_parameters", f"{place}.")


def _check_agreement(summary: Mapping[str, Any]) -> None:
    """Figures that contradict each other, or a run that claims to have ended well."""
    _check_parts(summary, "trainable_parameters", "total_parameters")
    _check_parts(summary, "cache_build_seconds", "train_seconds")
    if summary["kind"] == "train" and summary["status"] == "ok":
        for name in ("steps", "train_seconds"):
            if summary.get(name) == 0:
                raise DamagedFileError(f"{name} is 0, yet the run says that it ended well")


def _check_parts(
    content: Mapping[str, Any], part_name: str, whole_name: str, place: str = ""
) -> None:
    part, whole = content.get(part_name), content.get(whole_name)
    # the sum of clocks may fall short of one by the rounding of floats
    if part is not None and whole is not None and part > whole * (1 + 1e-9):
        raise DamagedFileError(
            f"{place}{part_name} is {shown(part)}, more than the {whole_name} of {shown(whole)}"
        )
