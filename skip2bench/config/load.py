"""Where a command's values come from: defaults < YAML file < flags.

A YAML file is either flat, with the field names of the configuration (what a run writes as
`config.yaml`), or LitGPT's or the guide's fork's (see `litgpt`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from skip2bench.config.blocks import blocks_text
from skip2bench.config.litgpt import find_defaults, is_litgpts, translate
from skip2bench.config.methods import find_method, list_names
from skip2bench.config.options import default_of, option_names
from skip2bench.config.train import TrainConfig, make_train_config
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note
from skip2bench.io.resources import find_resource
from skip2bench.io.text import read_yaml


def load_train_config(
    flags: dict[str, Any], path: Path | None = None
) -> tuple[TrainConfig, list[str]]:
    """Resolve the configuration of `train`.

    Args:
        flags: Values given on the command line or by the caller, by field name.
        path: A YAML file, or None. A relative path that does not exist is looked up among the
            shipped `config_hub` files too.

    Returns:
        The configuration, and the names of LitGPT keys in the file that have no effect here.

    Raises:
        Skip2BenchError: the file cannot be read, or a key or value in it is unknown.
    """
    values, ignored, given, said = _read_train_file(path, flags) if path else ({}, [], [], [])
    ignored += _list_without_effect([*given, *flags], values | flags)
    values = values | flags
    config = make_train_config(values)
    for text in said:
        note(text)
    return config, ignored


def read_matrix_file(path: Path, tried: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Values of a YAML file of a command that makes many runs, by field name.

    A file of LitGPT's holds for every run: what it would train is one of the matrix's methods, its
    learning rate the grid.

    Args:
        path: The file.
        tried: What of a file of LitGPT's does not hold, as the command tries values of its own, and
            why.

    Raises:
        Skip2BenchError: the file cannot be read, or asks for what cannot be had.
    """
    nested = _read_mapping(path)
    found = translate(nested)
    values = found.values
    if not is_litgpts(nested, of_matrix=True):
        if "method" not in nested:
            values.pop("method", None)
        return values
    method = values.pop("method", None)
    is_skip = find_method(method).is_skip
    values = find_defaults(find_method(method).weights == "all") | values
    if is_skip:
        values["skip_r"] = values.pop("lora_r")
    if "blocks" in values:
        values["blocks"] = [blocks_text(values["blocks"])]
    values["learning_rates"] = [values.pop("learning_rate")]
    for name in ("devices", "num_nodes"):
        if values.get(name) in (1, "auto"):
            del values[name]
    ignored = list(found.ignored)
    for name, why in {"out_dir": "it is one run's", **(tried or {})}.items():
        key = found.origin.get(_ORIGINS.get(name, name))
        if values.pop(name, None) is not None and key is not None:
            ignored.append(f"{key} ({why})")
    note(f"{path.name} is LitGPT's: its values hold for every run")
    if ignored:
        note(f"no effect here: {', '.join(ignored)}")
    return values


_ORIGINS = {"skip_r": "lora_r", "learning_rates": "learning_rate"}
"""What of a matrix follows from a key of LitGPT's under another name."""


def _read_train_file(
    path: Path, flags: dict[str, Any]
) -> tuple[dict[str, Any], list[str], list[str], list[str]]:
    """Values by field name, keys without effect, names that the file itself has, what to say."""
    nested = _read_mapping(path)
    found = translate(nested)
    flat = found.values
    given = [*flat]
    method = find_method(flags.get("method") or flat.get("method"))
    remarks = []
    if is_litgpts(nested):
        defaults = find_defaults(method.weights == "all")
        silent = {k: v for k, v in defaults.items() if k not in flat and k not in flags}
        flat |= silent
        said = f"{path.name} is LitGPT's: method {method.name}"
        if silent:
            taken = ", ".join(f"{name} {value}" for name, value in silent.items())
            said += f"; where it is silent, LitGPT's own: {taken}"
        remarks.append(said)
    # LitGPT has one rank: it is that of whichever adapter the run trains
    if "lora_r" in flat and not method.is_traditional and not method.has_lora:
        flat.setdefault("skip_r", flat["lora_r"])
        given = [name for name in given if name != "lora_r"]
    if isinstance(flat.get("cache_max_bytes"), int):
        flat["cache_max_bytes"] = str(flat["cache_max_bytes"])
    if "blocks" in flat:
        flat["blocks"] = blocks_text(flat["blocks"])
    is_a_runs = {item.name for item in fields(TrainConfig)} - set(option_names(TrainConfig, "call"))
    return flat, found.ignored, [] if is_a_runs <= nested.keys() else given, remarks


def _read_mapping(path: Path) -> dict[str, Any]:
    if not path.exists() and not path.is_absolute():
        shipped = find_resource("config_hub").parent / path
        path = shipped if shipped.is_file() else path
    loaded = read_yaml(path, "config file")
    if not isinstance(loaded, dict):
        raise Skip2BenchError(
            f"config file {str(path)!r} holds no mapping; write lines such as 'epochs: 3'"
        )
    return loaded


def _only(trait: str) -> str:
    """Which methods take an option, as a message says it."""
    names = list_names(trait)
    return f"only {names} {'take' if ' and ' in names else 'takes'} it"


def _list_without_effect(names: Sequence[str], values: dict[str, Any]) -> list[str]:
    """Options for what the run does not have, of those that were given: nobody should rely on them.

    One that says the same as its default asks for nothing.
    """
    method = find_method(values.get("method", TrainConfig.method))
    why = {
        "has_lora": f"{method.name} takes {method.rank_name or 'no rank'}",
        "is_skip": _only("is_skip"),
        "lora_is_configured": _only("lora_is_configured"),
        "is_top": _only("is_top"),
        "is_cached": f"{method.name} has no cache",
        "serves_rows": _only("serves_rows"),
        "walks_blocks_backward": f"no backward of {method.name} walks the blocks",
    }
    idle: dict[str, list[str]] = {taken_by: [] for taken_by in why}
    options = {item.name: item.metadata for item in fields(TrainConfig)}
    defaults = {item.name: default_of(item) for item in fields(TrainConfig)}
    for name in dict.fromkeys(names):
        taken_by = options[name].get("taken_by") if name in options else None
        if values.get(name) is None or (values[name] is False and defaults.get(name) is False):
            continue
        if taken_by and not getattr(method, taken_by):
            is_rank = options[name].get("recorded_as") == "rank"
            idle["has_lora" if is_rank else taken_by].append(name)
    return [f"{name} ({why[taken_by]})" for taken_by, names in idle.items() for name in names]
