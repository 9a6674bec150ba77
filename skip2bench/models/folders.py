"""What a folder is that was given as a model or an adapter, and what to do with it."""

import difflib
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from litgpt.config import Config, name_to_config

WEIGHTS_FILE, CONFIG_FILE = "lit_model.pth", "model_config.yaml"
LORA_FILE = "lit_model.pth.lora"
ADAPTER_FILE = "adapter.safetensors"
HUGGING_FACE_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")
_FINAL = "final"
_SAME_SIZES = (
    ("hidden_size", "n_embd"),
    ("num_hidden_layers", "n_layer"),
    ("num_attention_heads", "n_head"),
    ("num_key_value_heads", "n_query_groups"),
    ("intermediate_size", "intermediate_size"),
)
"""Of Hugging Face's `config.json` and of LitGPT's."""
_OF_NAME = ("name", "hf_config", "block_size")
"""Of LitGPT's configuration, what computes nothing."""


def describe_wrong_model(path: Path) -> str | None:
    """What a path is that is no LitGPT checkpoint, and what works on it; None where nobody knows.

    The text follows the path's name: "is …; …".
    """
    if os.path.isfile(path):
        if path.suffix == ".gguf":
            return "is a GGUF file; give a LitGPT checkpoint folder, made of the original weights"
        return f"is a file; give its folder: --checkpoint-dir {shlex.quote(str(path.parent))}"
    if (path / WEIGHTS_FILE).is_file() and (path / CONFIG_FILE).is_file():
        return None
    if is_hugging_face(path):
        command = convert_command(path)
        return f"is a Hugging Face checkpoint; convert it: {command}, or add --convert"
    if any(path.glob("*.gguf")):
        return "holds GGUF files; give a LitGPT checkpoint folder, made of the original weights"
    if (found := _describe_trained(path)) is not None:
        return found
    if inner := next(_find_below(path), None):
        return f"is a folder above a checkpoint; give --checkpoint-dir {_quote(inner)}"
    return None


def _describe_trained(path: Path) -> str | None:
    """The same of what a training has left."""
    if (path / "summary.json").is_file() and (path / _FINAL).is_dir():
        inner = describe_wrong_model(path / _FINAL)
        if inner is None:
            return f"is a run's folder; its model is --checkpoint-dir {_quote(path / _FINAL)}"
        return f"is a run's folder: its {_FINAL!r} {inner}"
    if (path / LORA_FILE).is_file():
        command = f"skip2bench merge {_quote(path)}"
        return f"holds a LoRA adapter, no whole model; merge it first: {command}"
    if (path / ADAPTER_FILE).is_file():
        command = f"skip2bench export {_quote(path)} --to litgpt --out-dir MODEL"
        return f"holds an adapter, no whole model; export it first: {command}"
    if (path / "adapter_config.json").is_file():
        return (
            "holds a PEFT adapter, no whole model; merge it with PEFT (merge_and_unload, "
            "save_pretrained), then convert it"
        )
    return None


def _quote(path: Path) -> str:
    return shlex.quote(str(path))


def _find_below(path: Path) -> Iterator[Path]:
    """Checkpoints below a folder, as those that hold several models have them."""
    for pattern in ("*", "*/*", "snapshots/*"):
        for file in sorted(path.glob(f"{pattern}/{WEIGHTS_FILE}")):
            yield file.parent
        for file in sorted(path.glob(f"{pattern}/config.json")):
            if is_hugging_face(file.parent):
                yield file.parent


def is_hugging_face(path: Path) -> bool:
    """True for a folder with a model's weights in one of Hugging Face's forms."""
    return any(
        not file.name.startswith("adapter")
        for pattern in HUGGING_FACE_FILES
        for file in path.glob(pattern)
    )


def convert_command(path: Path) -> str:
    """LitGPT's command that converts a Hugging Face folder where it lies.

    Where its model may be one of several that compute differently, they follow the command.
    """
    words = ["litgpt", "convert_to_litgpt", str(path)]
    names = list_model_names(path)
    if len(names) > 1:
        return f"{shlex.join([*words, '--model_name'])} NAME, with {_join(names)} for NAME"
    if names and names[0] != path.name:
        words += ["--model_name", names[0]]
    return shlex.join(words)


def _join(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def list_model_names(path: Path) -> list[str]:
    """LitGPT's names of what the model in a Hugging Face folder may be, by its `config.json`.

    One where it is known, or where all that fit compute the same: that which is called most like
    it, or else LitGPT's first. None where LitGPT has no such model.
    """
    path = path.resolve()
    if path.name in name_to_config:
        return [path.name]
    try:
        content = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(content, dict):
        return []
    alike = {
        name: config
        for name, own in name_to_config.items()
        if (config := _read_config(own)) and _has_sizes(content, config)
    }
    own_name = str(content.get("_name_or_path", "")).rpartition("/")[2]
    called = [text.lower() for text in (own_name, path.name) if text] or [""]
    inside = [name for name in alike if any(name.lower() in text for text in called)]
    if inside:
        return [max(inside, key=len)]
    if len({_describe_computing(config) for config in alike.values()}) > 1:
        return sorted(alike)
    close = difflib.get_close_matches(called[0], [name.lower() for name in alike], n=1)
    return ([name for name in alike if name.lower() in close] or list(alike))[:1]


def _read_config(own: Mapping[str, Any]) -> Config | None:
    try:
        return Config(**own)
    except (TypeError, ValueError, AssertionError):
        return None


def _describe_computing(config: Config) -> str:
    """All that decides what a model computes."""
    named = asdict(config)
    return repr({key: value for key, value in named.items() if key not in _OF_NAME})


def _has_sizes(content: Mapping[str, Any], config: Config) -> bool:
    heads = content.get("num_attention_heads")
    known = {"num_key_value_heads": heads, **content}
    if any(known.get(theirs) != getattr(config, ours) for theirs, ours in _SAME_SIZES):
        return False
    vocabulary, padded = content.get("vocab_size"), config.padded_vocab_size
    if not isinstance(vocabulary, int) or not config.vocab_size <= vocabulary <= (padded or 0):
        return False
    return _has_positions(content, config)


def _has_positions(content: Mapping[str, Any], config: Config) -> bool:
    """False where the rotary embedding differs in its base or its stretching, as far as told."""
    given = content.get("rope_parameters") or content
    bases = (given.get(name) for name in ("rope_theta", "rotary_emb_base"))
    base = next((value for value in bases if value is not None), None)
    if base is not None and base != config.rope_base:
        return False
    if "rope_parameters" not in content and "rope_scaling" not in content:
        return True
    stretched = content.get("rope_parameters") or content.get("rope_scaling") or {}
    adjusted = config.rope_adjustments or {}
    factor = adjusted.get("factor", config.rope_condense_ratio)
    plain = None if stretched.get("rope_type", stretched.get("type", "default")) != "default" else 1
    told = stretched.get("factor", plain)
    return told is None or told == factor
