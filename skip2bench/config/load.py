"""Where a command's values come from: defaults < YAML file < flags.

A YAML file is either flat, with the field names of the configuration (what a run writes as
`config.yaml`), or LitGPT's, with `train:`, `eval:`, `data:` and `optimizer:` blocks and the guide's
`skip2lora_*` keys: each of its keys means a field here, has no effect here, or is refused.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

from skip2bench.config.blocks import blocks_text
from skip2bench.config.methods import TRADITIONAL, find_method, list_names
from skip2bench.config.options import refuse_unknown
from skip2bench.config.train import TrainConfig, make_train_config
from skip2bench.errors import Skip2BenchError
from skip2bench.io.resources import find_resource
from skip2bench.io.text import read_yaml

# `lm_head` is the guide's word for "the adapters end where lm_head begins".
_TARGETS = {"lm_head": "hidden"}


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
    values = values | flags
    if isinstance(target := values.get("target"), str):
        values["target"] = _TARGETS.get(target, target)
    return make_train_config(values), ignored


def read_flat_file(path: Path) -> dict[str, Any]:
    """Values of a YAML file by field name, LitGPT's nested blocks among them.

    Raises:
        Skip2BenchError: the file cannot be read, or a key of LitGPT's in it is not supported.
    """
    return flatten(_read_mapping(path))[0]


def _read_train_file(path: Path, method: str | None) -> tuple[dict[str, Any], list[str]]:
    nested = _read_mapping(path)
    flat, ignored = flatten(nested)
    enabled = flat.pop("skip2lora_enabled", None)
    if not isinstance(enabled, bool | None):
        raise Skip2BenchError(f"skip2lora_enabled is {enabled!r}; give true or false")
    if enabled is False:
        flat.setdefault("method", TRADITIONAL)
    is_skip_file = any(key.startswith("skip2lora_") for key in nested)
    if "method" not in flat and (
        is_skip_file or any(key in nested for key in (*LITGPT_BLOCKS, "lora_r"))
    ):
        flat["method"] = "skip2" if is_skip_file else TRADITIONAL
    # LitGPT has one rank: it is that of whichever adapter the run trains
    if "lora_r" in flat and not find_method(method or flat.get("method")).is_traditional:
        flat.setdefault("skip_r", flat["lora_r"])
    if isinstance(flat.get("cache_max_bytes"), int):
        flat["cache_max_bytes"] = str(flat["cache_max_bytes"])
    if "blocks" in flat:
        flat["blocks"] = blocks_text(flat["blocks"])
    return flat, ignored


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


def _flags_without_effect(flags: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """Flags for what the run does not have: nobody should rely on them."""
    method = find_method(values.get("method", TrainConfig.method))
    why = {
        "has_lora": f"{method.name} takes {method.rank_name or 'no rank'}",
        "is_skip": f"only {list_names('is_skip')} take it",
        "lora_is_configured": f"only {list_names('lora_is_configured')} takes it",
        "is_top": f"only {list_names('is_top')} take it",
        "is_cached": f"{method.name} has no cache",
        "serves_rows": f"only {list_names('serves_rows')} takes it",
        "walks_blocks_backward": f"no backward of {method.name} walks the blocks",
    }
    idle: dict[str, list[str]] = {taken_by: [] for taken_by in why}
    options = {item.name: item.metadata for item in fields(TrainConfig)}
    for name in flags:
        taken_by = options[name].get("taken_by") if name in options else None
        if taken_by and not getattr(method, taken_by):
            is_rank = options[name].get("recorded_as") == "rank"
            idle["has_lora" if is_rank else taken_by].append(name)
    return [f"{name} ({why[taken_by]})" for taken_by, names in idle.items() for name in names]


_RENAMED = {
    "model": "checkpoint_dir",
    "eval.interval": "eval_interval",
    "logger_name": "logger",
    "skip2lora_block_indices": "blocks",
    "skip2lora_output_layer": "target",
    "optimizer.lr": "learning_rate",
    "optimizer.weight_decay": "weight_decay",
}
LITGPT_BLOCKS = ("train", "eval", "optimizer", "data")
# Keys of LitGPT's blocks; those that mean something here are fields of the same name.
_BLOCK_KEYS = {
    "train": (
        *("save_interval", "log_interval", "global_batch_size", "micro_batch_size"),
        *("lr_warmup_steps", "lr_warmup_fraction", "epochs", "max_tokens", "max_steps"),
        *("max_time", "max_seq_length", "tie_embeddings", "max_norm", "min_lr"),
    ),
    "eval": (
        *("interval", "max_new_tokens", "max_iters", "initial_validation"),
        *("final_validation", "evaluate_example"),
    ),
    "data": (
        *("mask_prompt", "val_split_fraction", "prompt_style", "ignore_index", "seed"),
        *("num_workers", "download_dir"),
    ),
    "optimizer": ("lr", "weight_decay", "betas"),
}
# Keys of LitGPT that change nothing here: logging, generation of samples, worker processes.
_WITHOUT_EFFECT = frozenset(
    (
        *("train.log_interval", "train.min_lr"),
        *("eval.max_new_tokens", "eval.max_iters", "eval.evaluate_example"),
        *("eval.initial_validation", "eval.final_validation"),
        *("data.num_workers", "data.download_dir", "data.ignore_index", "data.seed"),
        *("access_token", "log"),
    )
)


def flatten(nested: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Bring LitGPT's nested keys to field names; return also the keys that have no effect."""
    flat: dict[str, Any] = {}
    origin: dict[str, str] = {}
    ignored = []
    for key, value in _pairs(nested):
        if key in _WITHOUT_EFFECT:
            ignored += [key] if value not in (None, {}) else []
        elif value is not None or key not in _UNSUPPORTED:
            _refuse_unsupported(key, value)
            block, _, name = key.rpartition(".")
            field = _RENAMED.get(key, name if block in _BLOCK_KEYS else key)
            if field in flat:
                raise Skip2BenchError(
                    f"{field} is given twice, as {origin[field]!r} and as {key!r}; keep one"
                )
            flat[field], origin[field] = value, key
    return flat, ignored


def _pairs(nested: dict[str, Any]) -> list[tuple[str, Any]]:
    """Keys and values, those of LitGPT's blocks as `train.epochs`.

    A block may also hold fields of `train` under `train`, as a comparison's own config.yaml does.
    """
    pairs: list[tuple[str, Any]] = []
    for key, value in nested.items():
        if key == "data":
            pairs += _data_pairs(value)
        elif key == "optimizer":
            pairs += _optimizer_pairs(value)
        elif key in ("train", "eval"):
            if not isinstance(value, dict | None):
                raise Skip2BenchError(f"{key} is {value!r}; write a mapping below it")
            known = _BLOCK_KEYS[key]
            if key == "train":
                known += tuple(item.name for item in fields(TrainConfig))
            refuse_unknown(value or (), known, f"{key}.")
            pairs += [(f"{key}.{name}", inner) for name, inner in (value or {}).items()]
        else:
            pairs.append((key, value))
    return pairs


_UNSUPPORTED = {
    "train.max_tokens": "use max_steps",
    "train.max_time": "use max_steps",
    "train.tie_embeddings": "the checkpoint's own setting is used",
    "train.lr_warmup_fraction": "use lr_warmup_steps",
}


def _refuse_unsupported(key: str, value: Any) -> None:
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
    module, _, name = str(value.get("class_path")).rpartition(".")
    if unknown or "class_path" not in value or module not in ("", "litgpt.data"):
        raise Skip2BenchError(
            "data needs class_path (and init_args), such as class_path: litgpt.data.Alpaca2k"
        )
    init_args = _init_args("data", value)
    source = init_args.pop("json_path", None) if name == "JSON" else name.lower()
    if source is None:
        raise Skip2BenchError("data of class JSON needs init_args: json_path")
    refuse_unknown(init_args, _BLOCK_KEYS["data"], "data.init_args.")
    return [("data", source), *((f"data.{key}", inner) for key, inner in init_args.items())]


def _init_args(key: str, value: dict[str, Any]) -> dict[str, Any]:
    init_args = value.get("init_args") or {}
    if not isinstance(init_args, dict):
        raise Skip2BenchError(f"init_args of {key} is {init_args!r}; write a mapping below it")
    return dict(init_args)


def _optimizer_pairs(value: Any) -> list[tuple[str, Any]]:
    init_args: dict[str, Any] = {}
    name = value
    if isinstance(value, dict):
        name, init_args = value.get("class_path"), _init_args("optimizer", value)
        refuse_unknown(value, ("class_path", "init_args"), "optimizer.")
        refuse_unknown(init_args, _BLOCK_KEYS["optimizer"], "optimizer.init_args.")
    if name is not None and str(name).rpartition(".")[2] != "AdamW":
        raise Skip2BenchError(
            f"optimizer {name!r} is not supported; every method trains with torch.optim.AdamW"
        )
    betas = init_args.pop("betas", None)
    pairs = [(f"optimizer.{key}", inner) for key, inner in init_args.items()]
    if betas is not None:
        if not isinstance(betas, list) or len(betas) != 2:
            raise Skip2BenchError(f"optimizer betas {betas!r} is no pair; write [0.9, 0.95]")
        pairs += [("adam_beta1", betas[0]), ("adam_beta2", betas[1])]
    return pairs
