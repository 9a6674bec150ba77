"""Many Skip adapters on one base: a padded base once, and a plain LoRA of PEFT's for each.

A base whose stream has d' channels, of which those above d are zero, says what the base says. On
it a Skip adapter is LoRA in every writer and in the head:

    writers    B = [0; I],  A = ε Â_k W         rank K r (r with one B)
    head       A = [0 I],   B = f / (ε g) · s W_head B_k
"""

from pathlib import Path

import torch
from litgpt.config import Config
from safetensors.torch import load_file, save_file
from torch import Tensor

from skip2bench.errors import Skip2BenchError
from skip2bench.export.hugging_face import convert_weights
from skip2bench.io.whole import let_others_read, write_json
from skip2bench.models.widen import Layout

BASE, ADAPTER = "base", "adapter"
_FILE, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_HEAD, _EMBEDDING = "lm_head.weight", "transformer.wte.weight"
_PREFIX = "base_model.model."


def check_can_write(config: Config) -> None:
    """Check that LoRA alone can carry what Skip adapters read.

    Raises:
        Skip2BenchError: biases write too, which LoRA does not change.
    """
    if config.bias or config.norm_class_name == "LayerNorm":
        raise Skip2BenchError(
            f"{config.name} writes biases into its stream, which LoRA cannot change; export --to "
            "hf or litgpt"
        )
    if config.mlp_class_name == "LLaMAMoE":
        raise Skip2BenchError(
            f"{config.name} has experts, whose weights PEFT holds in one; export --to hf or litgpt"
        )


def split_adapter(
    config: Config, weights: dict[str, Tensor], layout: Layout
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """A widened model's weights as those of its padded base, and LoRA on some of them.

    Args:
        config: LitGPT's, of the widened model.
        weights: Its state dict.
        layout: Of its channels.

    Returns:
        The base's state dict; and by LitGPT's name of a weight, A (r, n) and B (m, r).
    """
    added = slice(layout.start, layout.start + layout.added)
    base, pairs = {}, {}
    for name, value in weights.items():
        is_writer = name == _EMBEDDING or name.endswith((".attn.proj.weight", ".mlp.proj.weight"))
        if not is_writer and name != _HEAD:
            base[name] = value
            continue
        rows = value.t() if name in (_EMBEDDING, _HEAD) else value
        taken = rows[added].clone()
        if bool(taken.any()):
            identity = torch.zeros(layout.width, layout.added, dtype=value.dtype)
            identity[added] = torch.eye(layout.added, dtype=value.dtype)
            pairs[name] = (identity.t(), taken.t()) if name == _HEAD else (taken, identity)
        own = rows.clone()
        own[added] = 0
        base[name] = own.t().contiguous() if name in (_EMBEDDING, _HEAD) else own
    return base, pairs


def write_adapter(
    folder: Path, config: Config, pairs: dict[str, tuple[Tensor, Tensor]], base_folder: Path
) -> int:
    """Write PEFT's adapter folder; return its rank."""
    tensors, modules, rank = {}, [], 0
    for name, (A, B) in pairs.items():
        (theirs,) = convert_weights(config, {name: A})
        module = theirs.removesuffix(".weight")
        modules.append(module)
        rank = len(A)
        kind = "lora_embedding_{}" if name == _EMBEDDING else "lora_{}.weight"
        for letter, value in (("A", A), ("B", B)):
            tensors[f"{_PREFIX}{module}.{kind.format(letter)}"] = value.contiguous()
    folder.mkdir()
    save_file(tensors, folder / _FILE, metadata={"format": "pt"})
    let_others_read(folder)
    write_json(
        folder / _CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(base_folder),
            "r": rank,
            "lora_alpha": rank,
            "lora_dropout": 0.0,
            "fan_in_fan_out": False,
            "inference_mode": True,
            "target_modules": modules,
        },
    )
    return rank


def read_adapter(folder: Path, config: Config, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """LitGPT's state dict of a padded base with the adapter of `folder` merged into it."""
    tensors = load_file(folder / _FILE)
    merged = dict(base)
    for name, value in base.items():
        if name != _EMBEDDING and not name.endswith((".proj.weight", _HEAD)):
            continue
        (theirs,) = convert_weights(config, {name: value})
        module = _PREFIX + theirs.removesuffix(".weight")
        kind = "lora_embedding_{}" if name == _EMBEDDING else "lora_{}.weight"
        A, B = (tensors.get(f"{module}.{kind.format(letter)}") for letter in "AB")
        if A is None or B is None:
            continue
        update = B.float() @ A.float()
        merged[name] = value.float() + (update.t() if name == _EMBEDDING else update)
    return merged
