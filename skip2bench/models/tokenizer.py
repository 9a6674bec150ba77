"""LitGPT's tokenizer of a checkpoint, whatever its folder is called and whoever wrote its files.

LitGPT goes by the folder's name for whether prompts begin with a token of the beginning, so one
model would learn two things in two folders. Here the model's own name counts, which its
configuration has, then the tokenizer's files.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from litgpt.tokenizer import Tokenizer

from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import warn
from skip2bench.models.folders import CONFIG_FILE

_SETTINGS_FILE = "tokenizer_config.json"
_CLASS = "PreTrainedTokenizerFast"
"""What Hugging Face takes where a file names no class."""
_FILES = ("tokenizer.json", "tokenizer.model", "generation_config.json")
_said: set[Path] = set()


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder.

    Raises:
        Skip2BenchError: its files are broken.
    """
    try:
        tokenizer = _open(folder)
    except Exception as error:
        # tokenizers raises Exception itself, LitGPT whatever a wrong JSON leads to
        raise Skip2BenchError(
            f"the tokenizer in {str(folder)!r} cannot be loaded ({type(error).__name__}: {error}); "
            "bring tokenizer.json and tokenizer_config.json of the model it was made from"
        ) from error
    by_folder = bool(tokenizer.use_bos)
    tokenizer.use_bos = begins_prompts(folder) if tokenizer.bos_id is not None else False
    if tokenizer.use_bos != by_folder and folder not in _said:
        _said.add(folder)
        verb = "begin" if tokenizer.use_bos else "do not begin"
        warn(
            f"prompts {verb} with a token of the beginning, as the model's files have it; LitGPT "
            f"would decide otherwise by the name of the folder {folder.resolve().name!r}"
        )
    if isinstance(tokenizer.eos_id, list):  # several ends; the first is that of a text
        tokenizer.eos_id = tokenizer.eos_id[0]
    return tokenizer


def begins_prompts(folder: Path) -> bool:
    """True where a model's prompts begin with a token of the beginning.

    By LitGPT's own rules, but for the folder's name, in whose place the model's stands.
    """
    settings = _read_settings(folder)
    name = _read_model_name(folder)
    if name.startswith(("Meta-Llama-3", "Llama-3")):
        return True
    if name.startswith("SmolLM2") and name.endswith("Instruct"):
        return True
    if isinstance(settings.get("add_bos_token"), bool):
        return bool(settings["add_bos_token"])
    return settings.get("tokenizer_class") == "LlamaTokenizer"


def begins_by_name(folder: Path) -> bool:
    """What LitGPT itself decides of a folder."""
    return bool(_open(folder).use_bos)


def _open(folder: Path) -> Tokenizer:
    try:
        return Tokenizer(folder)
    except Exception:
        settings = _read_settings(folder)
        mended = _mend(folder, settings)
        if mended == settings:
            raise
    with tempfile.TemporaryDirectory() as scratch:
        aside = Path(scratch) / folder.resolve().name
        aside.mkdir()
        for name in _FILES:
            if (folder / name).is_file():
                shutil.copy(folder / name, aside / name)
        (aside / _SETTINGS_FILE).write_text(json.dumps(mended), encoding="utf-8")
        return Tokenizer(aside)


def _mend(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that LitGPT's tokenizer reads; those of a good file are the same."""
    mended = dict(settings)
    if (folder / _SETTINGS_FILE).is_file() and not isinstance(mended.get("tokenizer_class"), str):
        mended["tokenizer_class"] = _CLASS
    if (folder / "tokenizer.json").is_file():
        known = _list_tokens(folder / "tokenizer.json")
        for key in ("bos_token", "eos_token"):
            token = mended.get(key)
            text = token.get("content") if isinstance(token, dict) else token
            if text is not None and known is not None and text not in known:
                mended[key] = None  # LitGPT falls back on generation_config.json
    return mended


def _list_tokens(path: Path) -> set[str] | None:
    """Every token of a tokenizer file; None where its form is not known."""
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = (content.get("model") or {}).get("vocab")
    if isinstance(vocabulary, dict):
        known = set(vocabulary)
    elif isinstance(vocabulary, list):
        known = {it[0] for it in vocabulary if isinstance(it, list) and it}
    else:
        return None
    return known | {it.get("content") for it in content.get("added_tokens") or ()}


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / _SETTINGS_FILE
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _read_model_name(folder: Path) -> str:
    """The model's name as its configuration has it; the folder's where there is none."""
    try:
        content = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        name = content.get("name") or (content.get("hf_config") or {}).get("name")
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        name = None
    return str(name) if name else folder.resolve().name
