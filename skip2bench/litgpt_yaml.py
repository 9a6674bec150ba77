"""LitGPT's nested YAML as field names: what each of its keys means here, or why it means none."""

from dataclasses import fields
from typing import Any

from skip2bench.coercion import refuse_unknown
from skip2bench.config import TrainConfig
from skip2bench.errors import Skip2BenchError

_RENAMED = {
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
    "train.max_norm": "gradients are not clipped",
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
