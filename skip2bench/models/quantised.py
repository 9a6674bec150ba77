"""A frozen backbone whose linear layers hold 4 or 8 bits a weight, by bitsandbytes.

Lightning Fabric's plugin puts bitsandbytes' layers in the place of torch's, as in LitGPT's
`finetune_lora`: every linear layer, `lm_head` too, and nothing that trains. Unlike there, the
embedding stays as it is: bitsandbytes' has a norm of its own, which the base model has not.
Source of NF4: Dettmers et al., arXiv:2305.14314.
"""

from importlib.util import find_spec

import torch
from lightning.fabric.plugins.precision.bitsandbytes import BitsandbytesPrecision
from litgpt.model import GPT
from torch import nn

from skip2bench.errors import Skip2BenchError
from skip2bench.machine.environment import choose_precision
from skip2bench.machine.hardware import installed_version
from skip2bench.models.skip import SkipGPT


def choose_quantised_precision(quantize: str, precision: str, device: torch.device) -> str:
    """The Fabric precision in which quantised layers compute.

    `auto` is what the kind of quantisation asks for: 16-true for int8, else bf16-true where the
    device has it.

    Raises:
        Skip2BenchError: bitsandbytes is missing, or cannot do it on this device.
    """
    if find_spec("bitsandbytes") is None:
        raise Skip2BenchError(
            f"quantize {quantize} needs bitsandbytes; pip install 'skip2bench[quantize]'"
        )
    is_int8 = "int8" in quantize
    if device.type == "mps" or (is_int8 and device.type != "cuda"):
        raise Skip2BenchError(
            f"quantize {quantize} does not run on {device.type}; use "
            + ("a CUDA GPU, or bnb.nf4" if is_int8 else "--device cpu")
        )
    if precision == "auto":
        has_bf16 = device.type == "cpu" or torch.cuda.is_bf16_supported()
        precision = "bf16-true" if has_bf16 and not is_int8 else "16-true"
    return choose_precision(precision, device)


def quantise(model: GPT, quantize: str, dtype: torch.dtype, device: torch.device) -> None:
    """Bring a model from memory to the device, its frozen linear layers quantised on the way.

    One layer after the other: the device never holds them in full.

    Args:
        model: On the CPU; of its own weights, none may train.
        quantize: A value of `--quantize`.
        dtype: Of its weights.
        device: Where it goes.

    Raises:
        Skip2BenchError: the installed bitsandbytes does not quantise on the device.
    """
    plugin = BitsandbytesPrecision(quantize.removeprefix("bnb."), dtype)
    for block in model.transformer.h:
        plugin.convert_module(block)
        _place(block, device)
    head = nn.ModuleDict({"lm_head": model.lm_head})
    plugin.convert_module(head)
    _place(head, device)
    if isinstance(model, SkipGPT):
        model.replace_head(head["lm_head"])
    else:
        model.lm_head = head["lm_head"]
    model.to(device)
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.requires_grad = False  # bitsandbytes' 8-bit layers come with gradients on


def _place(part: nn.Module, device: torch.device) -> None:
    """Move a part of the model; its 4-bit layers quantise themselves when they are moved."""
    import bitsandbytes as bnb

    part.to(device)
    for layer in part.modules():
        if not isinstance(layer, bnb.nn.Linear4bit):
            continue
        if getattr(layer.weight, "quant_state", None) is None:
            raise Skip2BenchError(
                f"bitsandbytes {installed_version('bitsandbytes')} does not quantise on "
                f"{device.type}; pip install --upgrade 'bitsandbytes>=0.46'"
            )
        # on some CPUs it repacks weights in evaluation, and has no gradient from then on
        layer.support_avx512bf16_for_cpu = False
