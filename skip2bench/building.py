"""The models of the methods: built around a base's own tensors, with what trains marked."""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import cast

import torch
from litgpt.config import Config
from litgpt.lora import GPT as LoraGPT
from litgpt.lora import Config as LoraConfig
from litgpt.lora import mark_only_lora_as_trainable
from litgpt.model import GPT
from torch import Tensor, nn

from skip2bench.errors import Skip2BenchError
from skip2bench.methods import MethodSettings, Weights
from skip2bench.models import Base
from skip2bench.skip2 import SkipGPT


def build_empty_model(settings: MethodSettings, config: Config) -> GPT:
    """The method's model with its trainable parameters marked, on the default device."""
    if settings.skip is not None:
        model: GPT = SkipGPT(config, settings.skip)
    elif settings.lora is not None:
        model = LoraGPT(LoraConfig(**(_config_fields(config) | settings.lora)))
    else:
        model = GPT(config)
    _mark_trainable(model, settings)
    return model


def build_model(settings: MethodSettings, base: Base, device: torch.device, seed: int) -> GPT:
    """The method's model around the base's own tensors; only those that train are copies.

    The adapters' initial values depend on `seed` alone.

    Raises:
        Skip2BenchError: the weights do not fit the configuration.
    """
    with torch.device("meta"):
        model = build_empty_model(settings, base.config)
    try:
        missing, unexpected = model.load_state_dict(dict(base.weights), strict=False, assign=True)
    except RuntimeError as error:
        raise Skip2BenchError(
            f"the weights of {base.name!r} do not fit its model_config.yaml: {error}"
        ) from error
    absent = [key for key in missing if "lora_" not in key]
    if absent or unexpected:
        named = ", ".join([*absent, *unexpected][:3])
        raise Skip2BenchError(
            f"the weights of {base.name!r} do not fit its model_config.yaml: see {named}"
        )
    dtype = next(iter(base.weights.values())).dtype
    _materialise_adapters(model, device, dtype, seed)
    model.cos, model.sin = model.rope_cache(device=device)
    _mark_trainable(model, settings)  # the weights that were assigned came with gradients on
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad and "lora_" not in name:
                # other models may stand on the same base
                setattr(module, name, nn.Parameter(parameter.detach().clone()))
    return model


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What trains, by its name in the model's state dict, detached."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _mark_trainable(model: GPT, settings: MethodSettings) -> None:
    mark_only_lora_as_trainable(model)
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.requires_grad = _trains(settings.method.weights, name)


def _trains(weights: Weights | None, name: str) -> bool:
    if weights == "all":
        return True
    if weights == "lm_head":
        return name.startswith("lm_head.")
    return weights == "biases" and name.rpartition(".")[2] == "bias"


def _materialise_adapters(
    model: nn.Module, device: torch.device, dtype: torch.dtype, seed: int
) -> None:
    """Give the adapters storage and their initial values.

    The values are drawn on the CPU, so that every device starts alike.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            own = {
                name: p
                for name, p in module.named_parameters(recurse=False)
                if name.startswith("lora_")
            }
            if not own:
                continue
            for name, parameter in own.items():
                setattr(module, name, nn.Parameter(torch.empty(parameter.shape)))
            cast(Callable[[], None], module.reset_parameters)()
            for name in own:
                initial = getattr(module, name).detach().to(device=device, dtype=dtype)
                setattr(module, name, nn.Parameter(initial))


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Numbers of all parameters and of those that train."""
    total = sum(_count(p) for p in model.parameters())
    return total, sum(p.numel() for p in model.parameters() if p.requires_grad)


def _count(parameter: Tensor) -> int:
    """Its numbers; of one that bitsandbytes has packed, those that it stands for."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else math.prod(packed.shape)


def _config_fields(config: Config) -> dict[str, object]:
    values = asdict(config)
    return {key: value for key, value in values.items() if key in LoraConfig.__dataclass_fields__}
