"""Where a command's values come from: defaults < YAML file < flags.

A YAML file is either flat, with the field names of the configuration (what a run writes as
`config.yaml`), or LitGPT's, with `train:`, `eval:`, `data:` and `optimizer:` blocks and the guide's
`skip2lora_*` keys.
"""

import difflib
from collections.abc import Collection, Iterable
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from skip2bench.config import EMBEDDED_DEFAULTS, LORA_TARGETS, TrainConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.resources import find_resource

Config = TypeVar("Config")

_RENAMED = {
    "eval.interval": "eval_interval",
    "logger_name": "logger",
    "skip2lora_block_indices": "blocks",
    "skip2lora_output_layer": "target",
    "optimizer.lr": "learning_rate",
}
_LITGPT_BLOCKS = ("train", "eval", "optimizer", "data")
# `lm_head` is the guide's word for "the adapters end where lm_head begins".
_TARGETS = {"lm_head": "hidden"}
# Keys of LitGPT that change nothing here: logging, generation of samples, worker processes.
_WITHOUT_EFFECT = frozenset(
    (
        *("train.log_interval", "train.min_lr"),
        *("eval.max_new_tokens", "eval.max_iters", "eval.evaluate_example"),
        *("eval.initial_validation", "eval.final_validation"),
        *("data.num_workers", "data.download_dir", "data.ignore_index", "data.seed"),
        *("num_nodes", "access_token", "log"),
    )
)


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
    values, ignored = (_read_train_file(path, flags.get("method"))) if path else ({}, [])
    ignored += _flags_without_effect(flags, values | flags)
    values |= flags
    if values.get("target") in _TARGETS:
        values["target"] = _TARGETS[values["target"]]
    if values.get("checkpoint_dir") is None:
        values = EMBEDDED_DEFAULTS | values
    return TrainConfig(**coerce(TrainConfig, values)), ignored


def coerce(config_class: type[Config], values: dict[str, Any]) -> dict[str, Any]:
    """Check `values` against the fields of `config_class` and bring them to the fields' types.

    A null on a field that takes none means its default.

    Raises:
        Skip2BenchError: an unknown key (the nearest known one is named) or a value of the wrong
            type.
    """
    hints = get_type_hints(config_class)
    listed = {item.name: item for item in fields(config_class)}  # type: ignore[arg-type]
    refuse_unknown(values, listed.keys())
    result = {}
    for key, value in values.items():
        if value is None and not _takes_none(hints[key]):
            continue
        if get_origin(hints[key]) is tuple and isinstance(value, str | int | float):
            # what may be repeated has commas of its own: blocks
            is_one = not isinstance(value, str) or listed[key].metadata.get("repeatable")
            value = [value] if is_one else [part.strip() for part in str(value).split(",")]
        result[key] = _coerce_value(key, value, hints[key])
    return result


def refuse_unknown(values: Iterable[str], known: Collection[str]) -> None:
    """Raise a Skip2BenchError for the first key that is not known; it names the nearest one."""
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            remedy = (
                f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"
            )
            raise Skip2BenchError(f"unknown key {key!r}; {remedy}")


def read_flat_file(path: Path) -> dict[str, Any]:
    """Values of a YAML file by field name, LitGPT's nested blocks among them.

    Raises:
        Skip2BenchError: the file cannot be read, or a key of LitGPT's in it is not supported.
    """
    return _flatten(_read_mapping(path))[0]


def _read_train_file(path: Path, method: str | None) -> tuple[dict[str, Any], list[str]]:
    nested = _read_mapping(path)
    flat, ignored = _flatten(nested)
    if flat.pop("skip2lora_enabled", None) is False:
        flat.setdefault("method", "lora")
    is_skip_file = any(key.startswith("skip2lora_") for key in nested)
    if "method" not in flat and (
        is_skip_file or any(key in nested for key in (*_LITGPT_BLOCKS, "lora_r"))
    ):
        flat["method"] = "skip2" if is_skip_file else "lora"
    # LitGPT has one rank: it is that of whichever adapter the run trains
    if (method or flat.get("method")) != "lora" and "lora_r" in flat:
        flat.setdefault("skip_r", flat["lora_r"])
    if isinstance(flat.get("blocks"), int):
        flat["blocks"] = str(flat["blocks"])
    if isinstance(flat.get("cache_max_bytes"), int):
        flat["cache_max_bytes"] = str(flat["cache_max_bytes"])
    if isinstance(flat.get("blocks"), list | tuple):
        flat["blocks"] = ",".join(str(block) for block in flat["blocks"])
    return flat, ignored


def _read_mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        shipped = find_resource("config_hub").parent / path
        if path.is_absolute() or not shipped.is_file():
            raise Skip2BenchError(f"config file {str(path)!r} does not exist; check the path")
        path = shipped
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise Skip2BenchError(f"config file {str(path)!r} is not valid YAML: {reason}") from error
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise Skip2BenchError(
            f"config file {str(path)!r} holds no mapping; write lines such as 'epochs: 3'"
        )
    return loaded


def _flatten(nested: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Bring LitGPT's nested keys to field names; return also the keys that have no effect."""
    pairs: list[tuple[str, Any]] = []
    for key, value in nested.items():
        if key == "data":
            pairs += _data_pairs(value)
        elif key == "optimizer":
            pairs += _optimizer_pairs(value)
        elif key in ("train", "eval") and isinstance(value, dict | None):
            pairs += [(f"{key}.{name}", inner) for name, inner in (value or {}).items()]
        else:
            pairs.append((key, value))
    flat: dict[str, Any] = {}
    ignored = []
    for key, value in pairs:
        if key in _WITHOUT_EFFECT:
            ignored += [key] if value is not None else []
        elif value is not None or key not in _UNSUPPORTED:
            _refuse_unsupported(key)
            flat[_RENAMED.get(key, key.removeprefix("train.").removeprefix("data."))] = value
    return flat, ignored


_UNSUPPORTED = {
    "quantize": "train without it",
    "train.max_tokens": "use max_steps",
    "train.max_norm": "gradients are not clipped",
    "train.max_time": "use max_steps",
    "train.tie_embeddings": "the checkpoint's own setting is used",
    "train.lr_warmup_fraction": "use lr_warmup_steps",
}


def _refuse_unsupported(key: str) -> None:
    if key in _UNSUPPORTED:
        raise Skip2BenchError(
            f"LitGPT's key {key!r} is not supported; leave it empty ({_UNSUPPORTED[key]})"
        )


def _data_pairs(value: Any) -> list[tuple[str, Any]]:
    """Pairs of a `data` entry: a plain name, or LitGPT's `{class_path: …, init_args: {…}}`.

    `class_path: litgpt.data.Alpaca2k` becomes its name in lower case, a JSON module its path.
    """
    if not isinstance(value, dict):
        return [("data", value)]
    unknown = set(value) - {"class_path", "init_args"}
    if unknown or not isinstance(value.get("class_path"), str):
        raise Skip2BenchError(
            "data needs class_path (and init_args), such as class_path: litgpt.data.Alpaca2k"
        )
    init_args = _init_args("data", value)
    name = value["class_path"].rpartition(".")[2]
    source = init_args.pop("json_path", None) if name == "JSON" else name.lower()
    if source is None:
        raise Skip2BenchError("data of class JSON needs init_args: json_path")
    return [("data", source), *((f"data.{key}", inner) for key, inner in init_args.items())]


def _init_args(key: str, value: dict[str, Any]) -> dict[str, Any]:
    init_args = value.get("init_args") or {}
    if not isinstance(init_args, dict):
        raise Skip2BenchError(f"init_args of {key} is {init_args!r}; write a mapping below it")
    return dict(init_args)


def _flags_without_effect(flags: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """Flags for what the run does not have: nobody should rely on them."""
    method = str(values.get("method", TrainConfig.method))
    used = "skip_r" if method in ("skip", "skip2") else "lora_r" if "lora" in method else None
    idle = [name for name in ("lora_r", "skip_r") if name in flags and name != used]
    ranks = [f"{name} ({method} takes {used or 'no rank'})" for name in idle]
    targets = [name for name in flags if name in LORA_TARGETS and method != "lora"]
    cache = [name for name in flags if name.startswith("cache_") and method != "skip2"]
    return [
        *ranks,
        *(f"{name} (only lora takes it)" for name in targets),
        *(f"{name} ({method} has no cache)" for name in cache),
    ]


def _optimizer_pairs(value: Any) -> list[tuple[str, Any]]:
    init_args: dict[str, Any] = {}
    name = value
    if isinstance(value, dict):
        name, init_args = value.get("class_path"), _init_args("optimizer", value)
    if name is not None and str(name).rpartition(".")[2] != "AdamW":
        raise Skip2BenchError(
            f"optimizer {name!r} is not supported; every method trains with torch.optim.AdamW"
        )
    betas = init_args.pop("betas", None)
    pairs = [
        (f"optimizer.{key}" if key == "lr" else key, inner) for key, inner in init_args.items()
    ]
    if betas is not None:
        if not isinstance(betas, list) or len(betas) != 2:
            raise Skip2BenchError(f"optimizer betas {betas!r} is no pair; write [0.9, 0.95]")
        pairs += [("adam_beta1", betas[0]), ("adam_beta2", betas[1])]
    return pairs


def _takes_none(hint: Any) -> bool:
    return NoneType in get_args(hint)


def _coerce_value(key: str, value: Any, hint: Any) -> Any:
    """Bring one value to the type of its field; numbers may come as text (YAML reads 2e-4 so)."""
    if value is None:
        return None
    if get_origin(hint) in (Union, UnionType):
        hint = next(inner for inner in get_args(hint) if inner is not NoneType)
    if get_origin(hint) is Literal:
        return value  # __post_init__ names the choices
    if hint is bool:
        good = isinstance(value, bool)
    elif get_origin(hint) is tuple:
        good = isinstance(value, list | tuple)
        kind = get_args(hint)[0]
        items = (str(i) if kind is str else _coerce_value(key, i, kind) for i in value or ())
        value = tuple(items) if good else value
    elif hint is Path or hint is str:
        good = isinstance(value, str | Path)
    else:
        good = not isinstance(value, bool) and isinstance(value, int | float | str)
        good = good and not (hint is int and isinstance(value, float))
    try:
        if good and not isinstance(value, tuple):
            value = hint(value)
    except ValueError:
        good = False
    if not good:
        name = getattr(hint, "__name__", str(hint))
        raise Skip2BenchError(f"{key} is {value!r}; give a value of type {name}")
    return value
