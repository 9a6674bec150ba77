"""What configurations of several runs share: keys of their own, and values of `train` for all."""

from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from skip2bench.config.load import read_matrix_file
from skip2bench.config.options import refuse_unknown
from skip2bench.config.train import TrainConfig
from skip2bench.errors import Skip2BenchError

TRAIN = "train"
"""Field with the values of `train`, by field name."""


def own_keys(config_class: type) -> frozenset[str]:
    """Fields of a configuration but for the values of `train`."""
    return frozenset(item.name for item in fields(config_class)) - {TRAIN}


def read_given(
    flags: dict[str, Any],
    path: Path | None,
    own: Collection[str],
    tried: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Values of a file, and flags over them, all on one level.

    Args:
        flags: By field name; those of `train` among them.
        path: A YAML file with the same keys, or None; one that a run has written has those of
            `train` in a mapping.
        own: Keys that are not `train`'s.
        tried: See `read_matrix_file`.

    Raises:
        Skip2BenchError: the file cannot be read, or a key is unknown.
    """
    given = (read_matrix_file(path, tried) if path else {}) | flags
    train = given.pop(TRAIN, None) or {}
    if not isinstance(train, dict):
        raise Skip2BenchError(f"train is {train!r}; write a mapping below it")
    given |= train
    refuse_unknown(given, {*own, *(item.name for item in fields(TrainConfig))})
    return given


def split_given(
    given: Mapping[str, Any], own: Collection[str], refused: Mapping[str, str], says: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values of the configuration's own, and those of `train`.

    Args:
        given: All of them.
        own: Keys of the configuration's own.
        refused: Keys of `train` that have no place here, and what to do instead.
        says: Of such a key, behind its name.

    Raises:
        Skip2BenchError: one of those is given.
    """
    train = {key: value for key, value in given.items() if key not in own}
    for key, remedy in refused.items():
        if key in train:
            raise Skip2BenchError(f"{key!r} {says}; {remedy}")
    return {key: value for key, value in given.items() if key in own}, train
