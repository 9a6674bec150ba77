"""Adapters on disk: LoRA as LitGPT keeps it, Skip as safetensors with a YAML of its settings.

A LoRA folder is what `litgpt finetune_lora` leaves, so `litgpt merge_lora` and `litgpt generate`
take it. A Skip folder is the adapter alone; `load_skip_model` puts it on its base again.
"""

import os
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from litgpt.prompts import save_prompt_style
from litgpt.utils import copy_config_files
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from skip2bench.errors import Skip2BenchError
from skip2bench.methods import METHODS, MethodSettings, build_model
from skip2bench.models import embedded_checkpoint, hash_file, load_checkpoint
from skip2bench.results import write_yaml
from skip2bench.skip2 import SkipGPT, SkipSettings, merge_skip_adapter

LORA_FILE = "lit_model.pth.lora"
SKIP_FILE = "adapter.safetensors"
SKIP_SETTINGS = "adapter_config.yaml"


def save_adapter(
    model: nn.Module,
    settings: MethodSettings,
    folder: Path,
    base_folder: Path,
    precision: str,
    prompt_style: str,
) -> None:
    """Write the trained adapter of `model` to `folder`.

    Args:
        model: The model that was trained; only its `lora_` parameters are written.
        settings: Its method.
        folder: Made if need be.
        base_folder: The checkpoint folder of the base model.
        precision: The run's Fabric precision.
        prompt_style: LitGPT's name of the prompt style that the data had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    adapter = {
        key: value.detach().cpu().contiguous()
        for key, value in model.state_dict().items()
        if "lora_" in key
    }
    save_prompt_style(prompt_style, folder)
    if settings.skip is not None:
        skip = asdict(settings.skip) | {"blocks": list(settings.skip.blocks)}
        is_embedded = base_folder == embedded_checkpoint()
        base = {
            "checkpoint_dir": None if is_embedded else str(base_folder.resolve()),
            "checkpoint_sha256": hash_file(base_folder / "lit_model.pth"),
        }
        aside = folder / f"{SKIP_FILE}.part"
        save_file(adapter, aside)
        os.replace(aside, folder / SKIP_FILE)
        write_yaml(folder / SKIP_SETTINGS, {"method": settings.method.name, **skip, **base})
        return
    copy_config_files(base_folder, folder)
    aside = folder / f"{LORA_FILE}.part"
    torch.save({"model": adapter}, aside)
    os.replace(aside, folder / LORA_FILE)
    hyperparameters = {"checkpoint_dir": str(base_folder.resolve()), "precision": precision}
    write_yaml(folder / "hyperparameters.yaml", hyperparameters | dict(settings.lora or {}))


def load_skip_model(
    folder: Path,
    checkpoint_dir: Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SkipGPT:
    """The base model with a saved Skip adapter on it, in evaluation mode.

    Args:
        folder: A folder that `save_adapter` wrote for a Skip method.
        checkpoint_dir: The base model's folder, where it has moved since.
        device: Where to put it.
        dtype: Dtype of the weights.

    Raises:
        Skip2BenchError: files are missing, or the base is not the one the adapter was trained on.
    """
    if not (folder / SKIP_FILE).is_file() or not (folder / SKIP_SETTINGS).is_file():
        raise Skip2BenchError(
            f"{str(folder)!r} holds no Skip adapter; give the 'final' folder of a skip or skip2 run"
        )
    saved = yaml.safe_load((folder / SKIP_SETTINGS).read_text(encoding="utf-8"))
    stored = saved["checkpoint_dir"]
    base_folder = checkpoint_dir or (embedded_checkpoint() if stored is None else Path(stored))
    base = load_checkpoint(base_folder, torch.device(device), dtype)
    if hash_file(base_folder / "lit_model.pth") != saved["checkpoint_sha256"]:
        raise Skip2BenchError(
            f"the adapter in {str(folder)!r} was trained on other weights than those in "
            f"{str(base_folder)!r}; give its own base as checkpoint_dir"
        )
    skip = SkipSettings(
        blocks=tuple(saved["blocks"]),
        r=saved["r"],
        alpha=saved["alpha"],
        dropout=saved["dropout"],
        target=saved["target"],
    )
    settings = MethodSettings(method=METHODS[saved["method"]], lora=None, skip=skip)
    model = build_model(settings, base, torch.device(device), seed=0)
    assert isinstance(model, SkipGPT)
    try:
        tensors = load_file(folder / SKIP_FILE, device=device)
        model.load_state_dict(
            {key: value.to(dtype) for key, value in tensors.items()}, strict=False
        )
    except (SafetensorError, RuntimeError) as error:
        raise Skip2BenchError(
            f"the adapter in {str(folder)!r} cannot be loaded ({error}); train it again"
        ) from error
    model.eval()
    return model


def merge_adapter(folder: Path) -> Path:
    """Merge a LoRA adapter into its base with LitGPT's own merge_lora.

    Returns:
        The merged `lit_model.pth`.

    Raises:
        Skip2BenchError: `folder` holds a Skip adapter (which cannot be merged) or none.
    """
    from litgpt.scripts.merge_lora import merge_lora

    if (folder / SKIP_FILE).is_file():
        merge_skip_adapter()
    if not (folder / LORA_FILE).is_file():
        raise Skip2BenchError(
            f"{str(folder)!r} holds no adapter; give the 'final' folder of a lora run"
        )
    merge_lora(folder)
    return folder / "lit_model.pth"
