"""Base models: the embedded one, LitGPT checkpoint folders, random weights by LitGPT config name.

A base is its configuration and its weights, loaded once; `methods` builds each method's model
around the same tensors, so that comparing configurations costs one backbone of memory, not one
each.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from litgpt.config import Config, name_to_config
from litgpt.model import GPT
from torch import Tensor

from skip2bench.config.train import find_downloaded
from skip2bench.errors import Skip2BenchError
from skip2bench.io.resources import EMBEDDED_MODEL, embedded_checkpoint
from skip2bench.models.folders import CONFIG_FILE, WEIGHTS_FILE, describe_wrong_model
from skip2bench.models.releases import bring_config, bring_weights
from skip2bench.models.weights import read_weights

HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.weight"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
_SIZES = dict.fromkeys(("n_layer", "n_head", "n_query_groups"), 100_000) | dict.fromkeys(
    ("n_embd", "head_size", "block_size", "vocab_size", "padded_vocab_size"), 1 << 30
)
"""The largest that a model's sizes may be: beyond it, they are damaged."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """A frozen base model."""

    name: str
    config: Config
    weights: dict[str, Tensor]
    """LitGPT's state dict, on the device and in the dtype of the run."""
    folder: Path | None
    """The checkpoint folder; None where the weights are random."""


_GET_ONE = "get one with 'litgpt download <name>'"


def check_checkpoint(folder: Path) -> None:
    """Check that `folder` is a LitGPT checkpoint with a tokenizer.

    Raises:
        Skip2BenchError: what is missing, and the command that makes it.
    """
    if not os.path.exists(folder):
        raise Skip2BenchError(
            f"checkpoint folder {str(folder)!r} does not exist; {_remedy(folder)}, or leave the "
            "flag out for the embedded model"
        )
    if (found := describe_wrong_model(folder)) is not None:
        raise Skip2BenchError(f"{str(folder)!r} {found}")
    names = [WEIGHTS_FILE, CONFIG_FILE, "tokenizer_config.json"]
    missing = [name for name in names if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        missing.append("tokenizer.json or tokenizer.model")
    if missing:
        is_some = len(missing) < len(names) + 1
        remedy = "download it again" if is_some else _GET_ONE
        raise Skip2BenchError(
            f"checkpoint folder {str(folder)!r} lacks {', '.join(missing)}; {remedy}"
        )


def _remedy(folder: Path) -> str:
    """Where to get a checkpoint that is not there: it may be the name of one on the Hub."""
    kept = Path("checkpoints") / folder
    if os.path.isdir(kept):
        return f"give --checkpoint-dir {kept}"
    if not folder.is_absolute() and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(folder)):
        return _get(str(folder))
    if (known := name_to_config.get(folder.name)) is not None:
        whole = f"{known['hf_config']['org']}/{known['hf_config']['name']}"
        return f"a name has no weights, which bench and doctor alone can do without; {_get(whole)}"
    return _GET_ONE


def _get(name: str) -> str:
    return f"get it with 'litgpt download {name}' and give --checkpoint-dir checkpoints/{name}"


def load_config(folder: Path) -> Config:
    """Read `model_config.yaml` of a checkpoint folder.

    Raises:
        Skip2BenchError: the file does not describe a LitGPT model.
    """
    path = folder / CONFIG_FILE
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.safe_load(file)
        if not isinstance(content, dict):
            raise ValueError("it holds no mapping")
        config = Config(**bring_config(content))
        for key, most in _SIZES.items():
            value = getattr(config, key)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise ValueError(f"{key} is {value!r}")
    except Exception as error:
        # LitGPT checks little of it: whatever it stumbles over, the file is no configuration
        reason = error if str(error) else "its sizes do not fit each other"
        raise Skip2BenchError(
            f"{str(path)!r} is no LitGPT model configuration ({reason}); download it again"
        ) from error
    return config


def read_base_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint folder by the names that this release of LitGPT has, mapped.

    Raises:
        Skip2BenchError: they cannot be read.
    """
    weights = read_weights(folder / WEIGHTS_FILE, "download the checkpoint again")
    return bring_weights(weights, load_config(folder))


def load_checkpoint(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype | None,
    prefixes: tuple[str, ...] = ("",),
) -> Base:
    """Load a LitGPT checkpoint folder's weights straight to `device` and `dtype`.

    The file is mapped: what needs no move and no conversion is read when it is first used, and
    what nothing refers to is not read at all.

    Args:
        folder: The checkpoint folder.
        device: Where the weights go.
        dtype: Theirs; None for the one they have in the file.
        prefixes: Weights whose names start otherwise are left out.

    Raises:
        Skip2BenchError: files are missing or unreadable.
    """
    check_checkpoint(folder)
    weights = read_base_weights(folder)
    is_tied = is_head_tied(weights)
    placed = {
        key: _placed(value, device, dtype)
        for key, value in weights.items()
        if key.startswith(prefixes)
    }
    if is_tied and {HEAD, EMBEDDING} <= placed.keys():
        placed[HEAD] = placed[EMBEDDING]  # once in memory, as in the file
    return Base(
        name=folder.resolve().name, config=load_config(folder), weights=placed, folder=folder
    )


def is_head_tied(weights: Mapping[str, Tensor]) -> bool:
    """True where the head's weight is the embedding's own memory, as files of tied models have it.

    LitGPT's models hold the two apart, and count both.
    """
    head, embedding = weights.get(HEAD), weights.get(EMBEDDING)
    if head is None or embedding is None or head.shape != embedding.shape:
        return False
    return head.data_ptr() == embedding.data_ptr() != 0


def describe_tied_head(folder: Path) -> str | None:
    """What LitGPT makes of a checkpoint whose head is tied to its embedding; None for others."""
    weights = read_base_weights(folder)
    if not is_head_tied(weights):
        return None
    total = sum(weight.numel() for weight in weights.values())
    own = total - weights[HEAD].numel()
    return (
        f"{folder.resolve().name} ties its head to the embedding: {own / 1e6:.1f}M parameters; "
        f"LitGPT counts both, {total / 1e6:.1f}M"
    )


def _placed(weight: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    return weight.to(device=device, dtype=dtype if weight.is_floating_point() else None)


def build_plain_model(config: Config, weights: Mapping[str, Tensor]) -> GPT:
    """LitGPT's GPT on the tensors of a state dict themselves, in evaluation mode."""
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict(dict(weights), assign=True)
    model.cos, model.sin = model.rope_cache(device=model.transformer.wte.weight.device)
    model.eval()
    return model


def make_random(name: str, device: torch.device, dtype: torch.dtype, seed: int) -> Base:
    """Make random weights for a LitGPT config name directly on `device`.

    Speed and memory do not depend on the values of weights.

    Raises:
        Skip2BenchError: LitGPT has no configuration of that name.
    """
    config = config_by_name(name)
    with torch.device("meta"):
        model = GPT(config).to(dtype)
    model.to_empty(device=device)
    torch.manual_seed(seed)
    for module in model.modules():
        if module is not model and hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return Base(name=config.name, config=config, weights=model.state_dict(), folder=None)


def config_by_name(name: str) -> Config:
    """LitGPT's configuration of that name.

    Raises:
        Skip2BenchError: there is none; the nearest names are given.
    """
    try:
        config = Config.from_name(name)
    except ValueError as error:
        import difflib

        near = difflib.get_close_matches(name, name_to_config, n=3, cutoff=0.4)
        remedy = (
            f"near it: {', '.join(near)}"
            if near
            else "give a LitGPT config name such as Llama-2-7b-hf"
        )
        raise Skip2BenchError(
            f"model {name!r} is neither {EMBEDDED_MODEL!r}, a checkpoint folder nor a LitGPT "
            f"config; {remedy}"
        ) from error
    assert config is not None
    return config


def load_base(model: str, device: torch.device, dtype: torch.dtype, seed: int) -> Base:
    """The base that `--model` names: embedded, a checkpoint folder, or random by config name."""
    folder = find_checkpoint(model)
    return (
        load_checkpoint(folder, device, dtype)
        if folder
        else make_random(model, device, dtype, seed)
    )


def find_checkpoint(model: str) -> Path | None:
    """The checkpoint folder that `--model` names; None where it is a LitGPT config name."""
    if model == EMBEDDED_MODEL:
        return embedded_checkpoint()
    path = Path(find_downloaded(model))
    return path if os.path.isdir(path) else None
