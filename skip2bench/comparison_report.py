"""A comparison's results as the report reads them back: all of what it iterates over, checked."""

from collections.abc import Mapping, Sequence
from typing import Any

from skip2bench.result_checks import check_schema_version
from skip2bench.result_files import DamagedFileError, read_json
from skip2bench.result_values import (
    check_figure,
    check_list,
    check_mapping,
    describe,
    is_count,
    is_number,
    shown,
)
from skip2bench.run_folders import Run

RESULTS_FILE = "comparison_results.json"
_TEXT, _WORDS, _NUMBER, _COUNT, _FLAG = (
    "text",
    "texts",
    "a number",
    "a whole number",
    "true or false",
)
_CONFIG = {"seeds": _COUNT, "match_params": _FLAG, "target_loss": _NUMBER}
_CONFIGURATION = {
    **dict.fromkeys(("name", "label", "method", "peer", "target"), _TEXT),
    **dict.fromkeys(("is_aa", "is_baseline", "learning_rate_at_edge"), _FLAG),
    **dict.fromkeys(("rank", "trainable_parameters", "target_reached"), _COUNT),
    **{"learning_rate": _NUMBER, "differences": _WORDS},
}
_GRID_ROW = {
    **dict.fromkeys(("learning_rate", "mean_final_val_loss", "std_final_val_loss"), _NUMBER),
    **dict.fromkeys(("runs", "ok"), _COUNT),
}
_CELL = {
    **dict.fromkeys(("configuration", "role", "status", "error"), _TEXT),
    **{"learning_rate": _NUMBER, "seed": _COUNT},
}
_WARNING = {
    "busy": {"kind": _TEXT, "cells": _WORDS},
    "resumed": {"kind": _TEXT, "cells": _WORDS},
    "aa": {"kind": _TEXT, "label": _TEXT, "figure": _TEXT},
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


def read_comparison(run: Run) -> dict[str, Any]:
    """Content of the results file of a comparison's folder.

    Raises:
        DamagedFileError: it is missing or cannot be trusted.
    """
    content = read_json(run.folder / RESULTS_FILE)
    try:
        return check_comparison(content)
    except DamagedFileError as error:
        raise DamagedFileError(f"{RESULTS_FILE}: {error}") from error


def check_comparison(content: Any) -> dict[str, Any]:
    """The content of a results file, if it can be trusted.

    Raises:
        DamagedFileError: it is another schema's, or something that the report reads is missing or
            not what its name says.
    """
    check_mapping("it", content)
    check_schema_version(content)
    _check_fields(content, "", {"learning_rates": _TEXT})
    _check_fields(_mapping(content, "config"), "config", _CONFIG)
    for number, warning in enumerate(_sequence(content, "warnings")):
        check_mapping(f"warnings[{number}]", warning)
        wanted = _WARNING.get(str(warning.get("kind")), {"kind": _TEXT})
        _check_fields(warning, f"warnings[{number}]", wanted)
    entries = _sequence(content, "configurations")
    if not entries:
        raise DamagedFileError("it has no configurations yet")
    for number, entry in enumerate(entries):
        _check_configuration(entry, f"configurations[{number}]")
    names = [entry["name"] for entry in entries]
    if len(set(names)) < len(names) or sum(entry["is_baseline"] for entry in entries) > 1:
        raise DamagedFileError("two configurations share a name, or are both the baseline")
    if "best_batch" in content:  # of this version on
        for number, entry in enumerate(_sequence(content, "best_batch")):
            place = f"best_batch[{number}]"
            _check_configuration(entry, place)
            _check_fields(entry, place, {"micro_batch_size": _COUNT})
    for name, cell in _mapping(content, "cells").items():
        _check_cell(name, cell)
    return dict(content)


def _check_configuration(entry: Any, place: str) -> None:
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
