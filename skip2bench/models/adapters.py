"""What a run has trained, on disk, in LitGPT's own form where LitGPT has one.

A LoRA folder is what `litgpt finetune_lora` leaves, so `litgpt merge_lora` and `litgpt generate`
take it; a model whose weights all trained is a LitGPT checkpoint. Skip adapters, and the few
weights of `last` and `bias`, are safetensors with a YAML of their settings: `load_skip_model` puts
an adapter on its base again, `merge_adapter` makes a checkpoint of what can be merged.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from litgpt.lora import GPT as LoraGPT
from litgpt.lora import Config as LoraConfig
from litgpt.lora import lora_filter, merge_lora_weights
from litgpt.model import GPT
from litgpt.utils import copy_config_files, save_config
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from skip2bench.config.methods import METHODS, TRADITIONAL
from skip2bench.data.chat import CHAT_TEMPLATE_FILE
from skip2bench.data.styles import save_style
from skip2bench.errors import Skip2BenchError, printable
from skip2bench.io.resources import embedded_checkpoint
from skip2bench.io.text import read_yaml
from skip2bench.io.whole import hash_file, replacing, write_bytes, write_json, write_yaml
from skip2bench.models.base import (
    build_plain_model,
    check_checkpoint,
    load_checkpoint,
    load_config,
    read_base_weights,
)
from skip2bench.models.folders import ADAPTER_FILE, CONFIG_FILE, LORA_FILE, WEIGHTS_FILE
from skip2bench.models.methods import MethodSettings, build_model, trained_tensors
from skip2bench.models.releases import is_older
from skip2bench.models.skip import (
    PROJECTION,
    RELATIVE_SIZES,
    SkipGPT,
    SkipSettings,
    merge_skip_adapter,
)
from skip2bench.models.tokenizer import begins_by_name, load_tokenizer
from skip2bench.models.top import TopGPT
from skip2bench.models.weights import check_dtypes, check_finite, check_weights, read_weights

ADAPTER_SETTINGS = "adapter_config.yaml"
_LATER = ("features", "share_b")
"""Settings of Skip adapters that older ones do not have."""
_NEVER_SAVED = ("projected",)
"""What a Skip adapter is trained behind is multiplied out when it is saved."""


def merged_weights(model: GPT) -> dict[str, Tensor]:
    """LitGPT's state dict of a model whose LoRA, if it has any, is merged into it."""
    merge_lora_weights(model)
    return {
        key.replace("linear.", ""): value.detach().cpu()
        for key, value in model.state_dict().items()
        if not lora_filter(key, value)
    }


def copy_configuration(base_folder: Path, folder: Path) -> None:
    """Copy configuration and tokenizer of a checkpoint, as LitGPT does, and how it splits text.

    LitGPT goes by the folder's name for whether a prompt begins with a token of the beginning,
    where the tokenizer does not say it; here it says it.
    """
    copy_config_files(base_folder, folder)
    copy_chat_template(base_folder, folder)
    if is_older(yaml.safe_load((base_folder / CONFIG_FILE).read_text(encoding="utf-8"))):
        # LitGPT itself cannot read that
        save_config(load_config(base_folder), folder)
    keep_beginning(base_folder, folder)


def copy_chat_template(base_folder: Path, folder: Path) -> None:
    """Copy a chat template that is a file of its own, of which LitGPT does not know."""
    template = base_folder / CHAT_TEMPLATE_FILE
    if template.is_file():
        shutil.copy(template, folder)


def keep_beginning(base_folder: Path, folder: Path) -> None:
    """Have the tokenizer in `folder` begin prompts as the base's does."""
    path = folder / "tokenizer_config.json"
    wanted = bool(load_tokenizer(base_folder).use_bos)
    if path.is_file() and begins_by_name(folder) != wanted:
        settings = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, settings | {"add_bos_token": wanted})


def save_adapter(
    model: nn.Module,
    settings: MethodSettings,
    folder: Path,
    base_folder: Path,
    precision: str,
    prompt_style: str,
) -> int:
    """Write what has trained in `model` to `folder`; return the bytes of that file.

    Args:
        model: The model that was trained. Where both weights and LoRA trained, the LoRA is merged
            into it.
        settings: Its method.
        folder: Made if need be.
        base_folder: The checkpoint folder of the base model.
        precision: The run's Fabric precision.
        prompt_style: LitGPT's name of the prompt style that the data had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_style(prompt_style, folder)
    method = settings.method
    if method.is_skip or method.weights in ("lm_head", "biases"):
        return _save_part(model, settings, folder, base_folder)
    copy_configuration(base_folder, folder)
    if method.weights == "all":
        return save_whole(merged_weights(model), folder / WEIGHTS_FILE)
    size = save_whole({"model": _lora_tensors(model)}, folder / LORA_FILE)
    hyperparameters = {"checkpoint_dir": str(base_folder.resolve()), "precision": precision}
    write_yaml(folder / "hyperparameters.yaml", hyperparameters | dict(settings.lora or {}))
    return size


def _save_part(model: nn.Module, settings: MethodSettings, folder: Path, base_folder: Path) -> int:
    """Write only what trained, and which base it belongs to."""
    skip = settings.skip
    own = asdict(skip) | {"blocks": list(skip.blocks)} if skip else {}
    own = {name: value for name, value in own.items() if name not in _NEVER_SAVED}
    is_embedded = base_folder == embedded_checkpoint()
    base = {
        "checkpoint_dir": None if is_embedded else str(base_folder.resolve()),
        "checkpoint_sha256": hash_file(base_folder / WEIGHTS_FILE),
    }
    # through bytes: safetensors' own writing has an error type of its own for a full disk
    write_bytes(folder / ADAPTER_FILE, save(_ordinary_tensors(model)))
    write_yaml(folder / ADAPTER_SETTINGS, {"method": settings.method.name, **own, **base})
    return (folder / ADAPTER_FILE).stat().st_size


def save_whole(content: dict[str, Any], path: Path) -> int:
    """Write what `torch.save` writes.

    Raises:
        OSError: it cannot be written. (From `torch.save` itself comes a RuntimeError that does not
            say why; a file of Python's keeps the reason in its context.)
    """
    with replacing(path) as aside, aside.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
    return path.stat().st_size


def _ordinary_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What has trained; Skip adapters behind a projection as those without it that are the same."""
    tensors = _on_cpu(model)
    name = f"adapters.{PROJECTION}"
    if isinstance(model, SkipGPT) and tensors.pop(name, None) is not None:
        # in float32: a product rounded to the run's dtype would no longer be the same adapter
        tensors["adapters.lora_A"] = model.adapters.multiply_out().cpu().contiguous()
    return tensors


def _lora_tensors(model: nn.Module) -> dict[str, Tensor]:
    """LoRA as LitGPT has it: on every block, with nothing but zeros where none has trained."""
    tensors = _on_cpu(model)
    if isinstance(model, TopGPT):
        dtype = next(iter(tensors.values())).dtype
        with torch.device("meta"):
            whole = LoraGPT(model.config).state_dict()
        for name, value in whole.items():
            if "lora_" in name and name not in tensors:
                tensors[name] = torch.zeros(value.shape, dtype=dtype)
    return tensors


def _on_cpu(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.cpu().contiguous() for name, value in trained_tensors(model).items()}


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
    saved = _read_settings(folder)
    if not METHODS[saved.get("method", TRADITIONAL)].is_skip:
        raise Skip2BenchError(
            f"{str(folder)!r} holds no Skip adapter; give the 'final' folder of a skip or skip2 run"
        )
    base_folder = _find_base(folder, saved, checkpoint_dir)
    return _put_on_base(folder, saved, base_folder, device, dtype)


def _put_on_base(
    folder: Path,
    saved: dict[str, Any],
    base_folder: Path,
    device: str,
    dtype: torch.dtype,
) -> SkipGPT:
    """A saved Skip adapter on its base, which has been found."""
    base = load_checkpoint(base_folder, torch.device(device), dtype)
    skip = SkipSettings(
        blocks=tuple(saved["blocks"]),
        r=saved["r"],
        alpha=saved["alpha"],
        dropout=saved["dropout"],
        target=saved["target"],
        features=saved.get("features", "raw"),  # those of before there was a choice
        share_b=saved.get("share_b", False),
    )
    settings = MethodSettings(method=METHODS[saved["method"]], lora=None, skip=skip)
    model = build_model(settings, base, torch.device(device), seed=0)
    assert isinstance(model, SkipGPT)
    tensors = _read_tensors(folder, device)
    _check_fit(folder, tensors, model.state_dict())
    if absent := trained_tensors(model).keys() - tensors.keys():
        raise _broken_adapter(folder, f"{ADAPTER_FILE} lacks {min(absent)}")
    placed = {
        key: value if key.endswith(RELATIVE_SIZES) else value.to(dtype)
        for key, value in tensors.items()
    }
    model.load_state_dict(placed, strict=False)
    model.eval()
    return model


def load_trained_model(
    folder: Path, checkpoint_dir: Path | None = None
) -> tuple[GPT, MethodSettings | None, Path]:
    """What any method left in `folder`, as a model on the CPU, in float32, in evaluation mode.

    Nothing is merged: LoRA and Skip adapters stand beside their base's weights.

    Args:
        folder: The 'final' folder of a run.
        checkpoint_dir: The base model's folder, where it has moved since.

    Returns:
        The model; its settings, None where all weights trained; and the folder of its base, which
        for weights that all trained is `folder` itself.

    Raises:
        Skip2BenchError: files are missing or damaged, or the base is not the one trained on.
    """
    saved = _read_settings(folder)
    if saved and METHODS[saved["method"]].is_skip:
        base_folder = _find_base(folder, saved, checkpoint_dir)
        model = _put_on_base(folder, saved, base_folder, "cpu", torch.float32)
        skip = MethodSettings(method=METHODS[saved["method"]], lora=None, skip=model.settings)
        return model, skip, base_folder
    cpu = torch.device("cpu")
    if saved:
        base_folder = _find_base(folder, saved, checkpoint_dir)
        base = load_checkpoint(base_folder, cpu, torch.float32)
        tensors = _read_tensors(folder)
        _check_fit(folder, tensors, base.weights)
        settings = MethodSettings(method=METHODS[saved["method"]], lora=None, skip=None)
    elif (folder / LORA_FILE).is_file():
        lora, tensors = _check_lora(folder, checkpoint_dir)
        base_folder = checkpoint_dir or _find_lora_base(folder)
        base = load_checkpoint(base_folder, cpu, torch.float32)
        settings = MethodSettings(method=METHODS[TRADITIONAL], lora=lora, skip=None)
    elif (folder / WEIGHTS_FILE).is_file() and (folder / CONFIG_FILE).is_file():
        check_weights(folder / WEIGHTS_FILE, load_config(folder))
        base = load_checkpoint(folder, cpu, torch.float32)
        return build_plain_model(base.config, base.weights), None, folder
    else:
        _check_no_other_tool(folder)
        raise Skip2BenchError(
            f"{str(folder)!r} holds nothing that was trained; give a run's folder, its "
            "'final', or a LitGPT checkpoint"
        )
    model = build_model(settings, base, cpu, seed=0)
    model.load_state_dict({key: value.float() for key, value in tensors.items()}, strict=False)
    model.eval()
    return model, settings, base_folder


_OTHER_TOOLS = {
    "adapter_config.json": "a PEFT adapter, which PEFT loads",
    "adapter/adapter_config.json": "a base and a PEFT adapter, which PEFT loads",
    "*.gguf": "for llama.cpp, which loads it",
    "config.json": "a Hugging Face model, which transformers loads",
}
"""Files by which folders of other tools are known."""


def _check_no_other_tool(folder: Path) -> None:
    """Raise a Skip2BenchError where another tool's model lies."""
    for pattern, kind in _OTHER_TOOLS.items():
        if any(folder.glob(pattern)):
            raise Skip2BenchError(
                f"{str(folder)!r} is {kind}; give a run's folder, its 'final', or a LitGPT "
                "checkpoint"
            )


def merge_adapter(folder: Path, checkpoint_dir: Path | None = None) -> Path:
    """Make a LitGPT checkpoint of an adapter and its base: LoRA with LitGPT's own merge_lora.

    It is computed in the precision of the run, and stored in the dtypes of the base.

    Args:
        folder: The 'final' folder of a run.
        checkpoint_dir: The base model's folder, where it has moved since.

    Returns:
        The merged `lit_model.pth`.

    Raises:
        Skip2BenchError: `folder` holds a Skip adapter (which cannot be merged) or none.
    """
    folder = folder / "final" if (folder / "final").is_dir() else folder  # of a run

    saved = _read_settings(folder)
    if saved and METHODS[saved["method"]].is_skip:
        merge_skip_adapter()
    if saved:
        base_folder = _find_base(folder, saved, checkpoint_dir)
        weights = read_base_weights(base_folder)
        tensors = _read_tensors(folder)
        _check_fit(folder, tensors, weights)
        weights |= {key: value.to(weights[key].dtype) for key, value in tensors.items()}
        copy_configuration(base_folder, folder)
        save_whole(weights, folder / WEIGHTS_FILE)
    elif (folder / LORA_FILE).is_file():
        _check_lora(folder, checkpoint_dir)
        _merge_lora(folder, checkpoint_dir)
        _bring_to_base_dtypes(folder, checkpoint_dir or _find_lora_base(folder))
    else:
        raise Skip2BenchError(
            f"{str(folder)!r} holds no adapter; give the 'final' folder of a lora run"
        )
    return folder / WEIGHTS_FILE


def _merge_lora(folder: Path, checkpoint_dir: Path | None) -> None:
    """LitGPT's merging, which would take what a killed one has left for a whole model."""
    from litgpt.scripts.merge_lora import merge_lora

    target = folder / WEIGHTS_FILE
    try:
        target.unlink(missing_ok=True)
        with redirect_stdout(sys.stderr):  # it prints its arguments
            merge_lora(folder, pretrained_checkpoint_dir=checkpoint_dir)
    except BaseException as error:
        target.unlink(missing_ok=True)
        # torch says of a full disk what it was writing
        if isinstance(error, OSError) or (
            isinstance(error, RuntimeError) and "write" in str(error)
        ):
            raise Skip2BenchError(
                f"cannot write {str(target)!r} ({printable(str(error).splitlines()[0])}); make "
                "room and merge again"
            ) from error
        raise


def _bring_to_base_dtypes(folder: Path, base_folder: Path) -> None:
    """Store merged weights in the dtypes of the base; LitGPT writes those of the run."""
    base = read_base_weights(base_folder)
    merged = read_weights(folder / WEIGHTS_FILE, "merge it again")
    if any(value.dtype != base[key].dtype for key, value in merged.items()):
        narrow = {key: value.to(base[key].dtype) for key, value in merged.items()}
        save_whole(narrow, folder / WEIGHTS_FILE)


def _find_lora_base(folder: Path) -> Path:
    """The base that a LoRA folder names.

    Raises:
        Skip2BenchError: it names none.
    """
    saved = read_yaml(folder / "hyperparameters.yaml", "adapter's file")
    if not isinstance(saved, dict) or not isinstance(saved.get("checkpoint_dir"), str):
        raise _broken_adapter(folder, "hyperparameters.yaml names no checkpoint_dir")
    return Path(saved["checkpoint_dir"])


def _check_lora(
    folder: Path, checkpoint_dir: Path | None = None
) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Check all that a merge reads, before anything is written.

    Returns:
        LitGPT's settings of it, and its tensors.

    Raises:
        Skip2BenchError: the adapter or what belongs to it is damaged.
    """
    path = folder / LORA_FILE
    tensors = read_weights(path, "train it again")
    check_dtypes(path, tensors, "train it again")
    check_finite(path, tensors, "train it again")
    load_config(folder)  # raises where it is broken
    base_folder = checkpoint_dir or _find_lora_base(folder)
    _check_is_there(folder, base_folder)
    check_checkpoint(base_folder)
    check_weights(base_folder / WEIGHTS_FILE, load_config(base_folder))
    saved = read_yaml(folder / "hyperparameters.yaml", "adapter's file")
    lora = {key: value for key, value in saved.items() if key.startswith("lora_")}
    try:
        with torch.device("meta"):
            model = LoraGPT(LoraConfig.from_file(folder / "model_config.yaml", **lora))
    except Exception as error:
        # whatever LitGPT makes of its values, they describe no LoRA model
        raise _broken_adapter(folder, f"hyperparameters.yaml: {error}") from error
    wanted = {key: value for key, value in model.state_dict().items() if "lora_" in key}
    if tensors.keys() != wanted.keys():
        name = min(tensors.keys() ^ wanted.keys())
        raise _broken_adapter(folder, f"{name} is not in both {LORA_FILE} and the model")
    _check_fit(folder, tensors, wanted)
    return lora, tensors


def _check_is_there(folder: Path, base_folder: Path) -> None:
    """Raise a Skip2BenchError where an adapter's base has gone."""
    if not base_folder.is_dir():
        raise Skip2BenchError(
            f"the adapter in {str(folder)!r} needs its base model, which is no longer in "
            f"{str(base_folder)!r}; say where it is with --checkpoint-dir"
        )


def _check_fit(folder: Path, tensors: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for key, value in tensors.items():
        if key not in wanted:
            raise _broken_adapter(folder, f"its base has no {key}")
        if value.shape != wanted[key].shape:
            shapes = f"{tuple(value.shape)}, its base's {tuple(wanted[key].shape)}"
            raise _broken_adapter(folder, f"{key} has shape {shapes}")


def _read_tensors(folder: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of an adapter that `_save_part` wrote."""
    path = folder / ADAPTER_FILE
    try:
        tensors: dict[str, Tensor] = load_file(path, device=device)
    except (SafetensorError, OSError) as error:
        raise _broken_adapter(folder, str(error)) from error
    check_dtypes(path, tensors, "train it again")
    check_finite(path, tensors, "train it again")
    return tensors


def _read_settings(folder: Path) -> dict[str, Any]:
    """Settings of an adapter that `_save_part` wrote; empty where there is none.

    Raises:
        Skip2BenchError: they are damaged.
    """
    if not (folder / ADAPTER_FILE).is_file() or not (folder / ADAPTER_SETTINGS).is_file():
        return {}
    saved = read_yaml(folder / ADAPTER_SETTINGS, "adapter's file")
    if not isinstance(saved, dict) or saved.get("method") not in tuple(METHODS):
        raise _broken_adapter(folder, f"{ADAPTER_SETTINGS} names no method")
    needed = ["checkpoint_dir", "checkpoint_sha256"]
    if METHODS[saved["method"]].is_skip:
        needed += [
            item.name for item in fields(SkipSettings) if item.name not in (*_LATER, *_NEVER_SAVED)
        ]
    if absent := [key for key in needed if key not in saved]:
        raise _broken_adapter(folder, f"{ADAPTER_SETTINGS} lacks {', '.join(absent)}")
    if not isinstance(saved["checkpoint_dir"], str | None):
        raise _broken_adapter(folder, f"{ADAPTER_SETTINGS} names no checkpoint_dir")
    return saved


def _broken_adapter(folder: Path, reason: str) -> Skip2BenchError:
    return Skip2BenchError(
        f"the adapter in {str(folder)!r} cannot be loaded ({reason}); train it again"
    )


def _find_base(folder: Path, saved: dict[str, Any], checkpoint_dir: Path | None) -> Path:
    """The base of an adapter.

    Raises:
        Skip2BenchError: it is not the one the adapter was trained on.
    """
    stored = saved["checkpoint_dir"]
    base_folder = checkpoint_dir or (embedded_checkpoint() if stored is None else Path(stored))
    _check_is_there(folder, base_folder)
    check_checkpoint(base_folder)
    if hash_file(base_folder / WEIGHTS_FILE) != saved["checkpoint_sha256"]:
        raise Skip2BenchError(
            f"the adapter in {str(folder)!r} was trained on other weights than those in "
            f"{str(base_folder)!r}; give its own base with --checkpoint-dir"
        )
    return base_folder
