"""Whether files of results can be trusted: schema, shape, units, and figures that agree.

A name ends in its unit, so one table of rules checks every figure at any depth. What passes here
can be shown and computed with; a figure that is missing is None, which passes everywhere.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, get_args

from skip2bench.results.plain import DamagedFileError, name_place, walk
from skip2bench.results.run_folder import SCHEMA_VERSION, Status

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


KINDS = ("bench", "train", "compare")
_TEXT = frozenset(
    (
        *("kind", "status", "label", "method", "target", "model", "data", "device", "precision"),
        *("error", "peer", "log_folder", "started_at", "finished_at", "cache_tier", "cache_dtype"),
        *("clock", "oom_phase"),
    )
)
_ENVIRONMENT_TEXT = frozenset(
    (
        *("processor", "platform", "python", "torch", "litgpt", "lightning", "skip2bench"),
        *("command", "commit", "name", "driver", "sha256", "started_at"),
        *("compute_capability", "float32_matmul_precision"),
    )
)


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
    check_values(summary, _TEXT)
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
    check_values(environment, _ENVIRONMENT_TEXT)
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


def _check_word(
    content: Mapping[str, Any], key: str, known: tuple[str, ...], place: str = ""
) -> None:
    if content.get(key) not in known:
        found = "missing" if content.get(key) is None else describe(content[key])
        raise DamagedFileError(f"{place}{key} is {found}, none of {', '.join(known)}")


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
        _check_configuration(configuration, place)


def _check_configuration(configuration: Mapping[str, Any], place: str) -> None:
    if configuration.get("status") is not None:  # results from before have none
        _check_word(configuration, "status", get_args(Status), f"{place}.")
    for name in ("phases", "ratios", "flops", "memory"):
        if configuration.get(name) is not None:
            check_mapping(f"{place}.{name}", configuration[name])
    _check_mappings(configuration, ("phases", "ratios"), place)
    _check_mappings(configuration.get("memory") or {}, ("phases",), f"{place}.memory")
    _check_parts(configuration, "trainable_parameters", "total_parameters", f"{place}.")


def _check_mappings(content: Mapping[str, Any], names: tuple[str, ...], place: str) -> None:
    """Check that the values of `content` under `names` are mappings of mappings, or missing."""
    for name in names:
        if content.get(name) is None:
            continue
        check_mapping(f"{place}.{name}", content[name])
        for key, value in content[name].items():
            if value is not None:
                check_mapping(f"{place}.{name}.{key}", value)


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


_COMPARISON_TEXT, _WORDS, _NUMBER, _COUNT, _FLAG = (
    "text",
    "texts",
    "a number",
    "a whole number",
    "true or false",
)
_CONFIG = {"seeds": _COUNT, "match_params": _FLAG, "target_loss": _NUMBER}
_CONFIGURATION = {
    **dict.fromkeys(("name", "label", "method", "peer", "target"), _COMPARISON_TEXT),
    **dict.fromkeys(("is_aa", "is_baseline", "learning_rate_at_edge"), _FLAG),
    **dict.fromkeys(("rank", "trainable_parameters", "target_reached"), _COUNT),
    **{"learning_rate": _NUMBER, "differences": _WORDS},
}
_GRID_ROW = {
    **dict.fromkeys(("learning_rate", "mean_final_val_loss", "std_final_val_loss"), _NUMBER),
    **dict.fromkeys(("runs", "ok"), _COUNT),
}
_CELL = {
    **dict.fromkeys(("configuration", "role", "status", "error"), _COMPARISON_TEXT),
    **{"learning_rate": _NUMBER, "seed": _COUNT},
}
_WARNING = {
    "busy": {"kind": _COMPARISON_TEXT, "cells": _WORDS},
    "resumed": {"kind": _COMPARISON_TEXT, "cells": _WORDS},
    "aa": {"kind": _COMPARISON_TEXT, "label": _COMPARISON_TEXT, "figure": _COMPARISON_TEXT},
}
_NEVER_NONE = frozenset(
    (
        *(
            "name",
            "label",
            "runs",
            "ok",
            "target_reached",
            "configuration",
            "role",
            "status",
            "kind",
        ),
        *(
            "differences",
            "cells",
            "figure",
            "is_aa",
            "is_baseline",
            "learning_rate_at_edge",
            "seed",
        ),
    )
)
_ANY_SIGN = frozenset(("loss_change_per_step", "forgetting"))


def check_comparison(content: Any) -> dict[str, Any]:
    """The content of a results file, if it can be trusted.

    Raises:
        DamagedFileError: it is another schema's, or something that the report reads is missing or
            not what its name says.
    """
    check_mapping("it", content)
    check_schema_version(content)
    _check_fields(content, "", {"learning_rates": _COMPARISON_TEXT})
    _check_fields(_mapping(content, "config"), "config", _CONFIG)
    for number, warning in enumerate(_sequence(content, "warnings")):
        check_mapping(f"warnings[{number}]", warning)
        wanted = _WARNING.get(str(warning.get("kind")), {"kind": _COMPARISON_TEXT})
        _check_fields(warning, f"warnings[{number}]", wanted)
    entries = _sequence(content, "configurations")
    if not entries:
        raise DamagedFileError("it has no configurations yet")
    for number, entry in enumerate(entries):
        _check_comparison_configuration(entry, f"configurations[{number}]")
    names = [entry["name"] for entry in entries]
    if len(set(names)) < len(names) or sum(entry["is_baseline"] for entry in entries) > 1:
        raise DamagedFileError("two configurations share a name, or are both the baseline")
    if "best_batch" in content:  # of this version on
        for number, entry in enumerate(_sequence(content, "best_batch")):
            place = f"best_batch[{number}]"
            _check_comparison_configuration(entry, place)
            _check_fields(entry, place, {"micro_batch_size": _COUNT})
    for name, cell in _mapping(content, "cells").items():
        _check_cell(name, cell)
    return dict(content)


def _check_comparison_configuration(entry: Any, place: str) -> None:
    check_mapping(place, entry)
    _check_fields(entry, place, _CONFIGURATION)
    if "blocks" not in entry:
        raise DamagedFileError(f"{place}.blocks is missing")
    for name in ("blocks", "seeds"):
        if name == "seeds" or entry[name] is not None:
            check_list(entry.get(name), f"{place}.{name}", "a list of whole numbers", is_count)
    for number, row in enumerate(_sequence(entry, "grid", place)):
        check_mapping(f"{place}.grid[{number}]", row)
        _check_fields(row, f"{place}.grid[{number}]", _GRID_ROW)
        if row["ok"] and row["mean_final_val_loss"] is None:
            raise DamagedFileError(f"{place}.grid[{number}].mean_final_val_loss is missing")
    _check_statistics(_mapping(entry, "figures", place), f"{place}.figures")
    _check_ratios(entry, place)


def _check_statistics(figures: Mapping[str, Any], place: str) -> None:
    """Means over runs with their spread."""
    for name, figure in figures.items():
        check_mapping(f"{place}.{name}", figure)
        for key in ("mean", "std", "n"):
            value = figure.get(key)
            may_be_negative = key == "mean" and name in _ANY_SIGN
            if not is_number(value) or (value < 0 and not may_be_negative):
                _refuse(f"{place}.{name}.{key}", value, "a number of a sensible size")
    missing = [name for name in ("train_seconds", "final_val_loss") if name not in figures]
    if figures and missing:
        raise DamagedFileError(f"{place}.{missing[0]} is missing")


def _check_ratios(entry: Mapping[str, Any], place: str) -> None:
    ratios = _mapping(entry, "against_baseline", place)
    if ratios and not entry["figures"]:
        raise DamagedFileError(f"{place} has ratios, but no figures")
    for name, ratio in ratios.items():
        own = f"{place}.against_baseline.{name}"
        check_mapping(own, ratio)
        _check_fields(ratio, own, {"is_difference": _FLAG, "low": _NUMBER, "high": _NUMBER})
        for key in ("ratio", "low", "high"):
            check_figure(key, ratio.get(key), f"{own}.{key}")
        if not ratio.get("ratio") or name not in entry["figures"]:
            raise DamagedFileError(f"{own} is no ratio of a figure")
        if (ratio["low"] is None) != (ratio["high"] is None):
            raise DamagedFileError(f"{own} has half an interval")


def _check_cell(name: str, cell: Any) -> None:
    # the report reads the folder of this name
    if name in ("", ".", "..") or any(letter in name for letter in "/\\\0"):
        raise DamagedFileError(f"the cell {shown(name)} is not named as a folder can be")
    place = f"cells.{shown(name)}"
    check_mapping(place, cell)
    _check_fields(cell, place, _CELL)
    for key, figure in _mapping(cell, "figures", place).items():
        if not is_number(figure) or (figure < 0 and key not in _ANY_SIGN):
            _refuse(f"{place}.figures.{key}", figure, "a number")


def _check_fields(content: Mapping[str, Any], place: str, fields: Mapping[str, str]) -> None:
    """Every field is there, and of its type or None."""
    for key, wanted in fields.items():
        own = f"{place}.{key}".removeprefix(".")
        value = content.get(key)
        if key not in content or (value is None and key in _NEVER_NONE):
            raise DamagedFileError(f"{own} is missing")
        if value is not None and not _fits(value, wanted):
            _refuse(own, value, wanted)
        if value is not None and wanted == _NUMBER:
            check_figure(key, value, own)


def _fits(value: Any, wanted: str) -> bool:
    if wanted == _WORDS:
        return isinstance(value, list) and all(isinstance(it, str) for it in value)
    if wanted == _NUMBER:
        return is_number(value)
    if wanted == _COUNT:
        return is_count(value)
    return isinstance(value, bool if wanted == _FLAG else str)


def _mapping(content: Mapping[str, Any], key: str, place: str = "") -> Mapping[str, Any]:
    value = content.get(key)
    check_mapping(f"{place}.{key}".removeprefix("."), value)
    return value  # type: ignore[return-value]


def _sequence(content: Mapping[str, Any], key: str, place: str = "") -> Sequence[Any]:
    value = content.get(key)
    if not isinstance(value, list):
        _refuse(f"{place}.{key}".removeprefix("."), value, "a list")
    return value  # type: ignore[return-value]


def _refuse(place: str, value: Any, wanted: str) -> None:
    raise DamagedFileError(f"{place} is {describe(value)}, where {wanted} was expected")
