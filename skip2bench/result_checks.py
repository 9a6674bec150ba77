"""Whether a summary and an environment can be trusted: schema, shape, and figures that agree.

What single values must be is `result_values`' business.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, get_args

from skip2bench.result_files import DamagedFileError
from skip2bench.result_values import (
    check_mapping,
    check_values,
    describe,
    is_number,
    parse_time,
    shown,
)
from skip2bench.results import SCHEMA_VERSION, Status

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
