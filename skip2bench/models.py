"""Base models: the embedded one, LitGPT checkpoint folders, random weights by LitGPT config name.

A base is its configuration and its weights, loaded once; `methods` builds each method's model
around the same tensors, so that comparing configurations costs one backbone of memory, not one
each.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from litgpt.config import Config, name_to_config
from litgpt.model import GPT
from torch import Tensor

from skip2bench.config import EMBEDDED_MODEL
from skip2bench.errors import Skip2BenchError
from skip2bench.resources import find_resource

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True, kw_only=True)
class Base:
    """A frozen base model."""

    name: str
    config: Config
    weights: dict[str, Tensor]
    """LitGPT's state dict, on the device and in the dtype of the run."""
    folder: Path | None
    """The checkpoint folder; None where the weights are random."""


def embedded_checkpoint() -> Path:
    """Folder of the embedded model."""
    return find_resource("assets") / EMBEDDED_MODEL


def check_checkpoint(folder: Path) -> None:
    """Check that `folder` is a LitGPT checkpoint with a tokenizer.

    Raises:
        Skip2BenchError: what is missing, and the command that makes it.
    """
    if not folder.is_dir():
        raise Skip2BenchError(
            f"checkpoint folder {str(folder)!r} does not exist; get one with "
            "'litgpt download <name>', or leave the flag out for the embedded model"
        )
    names = ["lit_model.pth", "model_config.yaml", "tokenizer_config.json"]
    missing = [name for name in names if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        missing.append("tokenizer.json or tokenizer.model")
    if missing and any(folder.glob("*.safetensors")) and "lit_model.pth" in missing:
        raise Skip2BenchError(
            f"{str(folder)!r} is a Hugging Face checkpoint; convert it with "
            f"'litgpt convert_to_litgpt {folder}'"
        )
    if missing:
        raise Skip2BenchError(
            f"checkpoint folder {str(folder)!r} lacks {', '.join(missing)}; download it again"
        )


def load_config(folder: Path) -> Config:
    """Read `model_config.yaml` of a checkpoint folder.

    Raises:
        Skip2BenchError: the file does not describe a LitGPT model.
    """
    try:
        return Config.from_file(folder / "model_config.yaml")
    except (TypeError, ValueError, yaml.YAMLError) as error:
        raise Skip2BenchError(
            f"{str(folder / 'model_config.yaml')!r} is no LitGPT model configuration ({error}); "
            "download it again"
        ) from error


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
    try:
        weights = torch.load(
            folder / "lit_model.pth", mmap=True, weights_only=True, map_location="cpu"
        )
    except Exception as error:
        # torch raises many types for a broken file; whichever it is, the remedy is the same
        raise Skip2BenchError(
            f"{str(folder / 'lit_model.pth')!r} cannot be read ({error}); get it again"
        ) from error
    weights = weights.get("model", weights)
    return Base(
        name=folder.resolve().name,
        config=load_config(folder),
        weights={
            key: _placed(value, device, dtype)
            for key, value in weights.items()
            if key.startswith(prefixes)
        },
        folder=folder,
    )


def _placed(weight: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    return weight.to(device=device, dtype=dtype if weight.is_floating_point() else None)


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
    return Path(model) if Path(model).is_dir() else None


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
