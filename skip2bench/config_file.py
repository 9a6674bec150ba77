"""Where a command's values come from: defaults < YAML file < flags.

A YAML file is either flat, with the field names of the configuration (what a run writes as
`config.yaml`), or LitGPT's, with `train:`, `eval:`, `data:` and `optimizer:` blocks and the guide's
`skip2lora_*` keys.
"""

from pathlib import Path
from typing import Any

from skip2bench.blocks import blocks_text
from skip2bench.coercion import coerce
from skip2bench.config import EMBEDDED_DEFAULTS, LORA_TARGETS, TrainConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.litgpt_yaml import LITGPT_BLOCKS, flatten
from skip2bench.resources import find_resource
from skip2bench.yaml_files import read_yaml

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
    values |= flags
    if isinstance(target := values.get("target"), str):
        values["target"] = _TARGETS.get(target, target)
    if values.get("checkpoint_dir") is None:
        values = EMBEDDED_DEFAULTS | values
    return TrainConfig(**coerce(TrainConfig, values)), ignored


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
        flat.setdefault("method", "lora")
    is_skip_file = any(key.startswith("skip2lora_") for key in nested)
    if "method" not in flat and (
        is_skip_file or any(key in nested for key in (*LITGPT_BLOCKS, "lora_r"))
    ):
        flat["method"] = "skip2" if is_skip_file else "lora"
    # LitGPT has one rank: it is that of whichever adapter the run trains
    if (method or flat.get("method")) != "lora" and "lora_r" in flat:
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
    method = str(values.get("method", TrainConfig.method))
    used = "skip_r" if method in ("skip", "skip2") else "lora_r" if "lora" in method else None
    idle = [name for name in ("lora_r", "skip_r") if name in flags and name != used]
    ranks = [f"{name} ({method} takes {used or 'no rank'})" for name in idle]
    targets = [name for name in flags if name in LORA_TARGETS and method != "lora"]
    cache = [name for name in flags if name.startswith("cache_") and method != "skip2"]
    idle_backward = method in ("last", "lora-last", "skip", "skip2")
    recomputed = [name for name in flags if name == "gradient_checkpointing" and idle_backward]
    skip = [name for name in ("blocks", "target") if name in flags and "skip" not in method]
    return [
        *ranks,
        *(f"{name} (only skip and skip2 take it)" for name in skip),
        *(f"{name} (only lora takes it)" for name in targets),
        *(f"{name} ({method} has no cache)" for name in cache),
        *(f"{name} (no backward of {method} walks the blocks)" for name in recomputed),
    ]
