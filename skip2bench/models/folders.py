"""What a folder is that was given as a model or an adapter, and what to do with it."""

import difflib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
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
    """LitGPT's command that converts a Hugging Face folder where it lies."""
    words = ["litgpt", "convert_to_litgpt", str(path)]
    name = find_model_name(path)
    if name is not None and name != path.name:
        words += ["--model_name", name]
    return shlex.join(words)


def find_model_name(path: Path) -> str | None:
    """LitGPT's name of the model in a Hugging Face folder, by the sizes in its `config.json`.

    Of several of those sizes, the one that is called most like it. None where LitGPT has none.
    """
    if path.name in name_to_config:
        return path.name
    try:
        content = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    alike = [name for name, own in name_to_config.items() if _has_sizes(content, own)]
    wanted = [path.name, str(content.get("_name_or_path", "")).rpartition("/")[2]]
    close = difflib.get_close_matches(
        max(wanted, key=len).lower(), [name.lower() for name in alike], n=1, cutoff=0.0
    )
    return next((name for name in alike if name.lower() in close), None)


def _has_sizes(content: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    try:
        config = Config(**own)
    except (TypeError, ValueError, AssertionError):
        return False
    heads = content.get("num_attention_heads")
    known = {"num_key_value_heads": heads, **content}
    if any(known.get(theirs) != getattr(config, ours) for theirs, ours in _SAME_SIZES):
        return False
    vocabulary = content.get("vocab_size")
    padded = config.padded_vocab_size
    return isinstance(vocabulary, int) and config.vocab_size <= vocabulary <= (padded or 0)
