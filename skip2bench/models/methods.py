"""The models of the methods: built around a base's own tensors, with what trains marked.

Which methods there are is `config.methods`' table; a base is loaded by `base`.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import cast

import torch
from litgpt.config import Config
from litgpt.lora import GPT as LoraGPT
from litgpt.lora import Config as LoraConfig
from litgpt.lora import mark_only_lora_as_trainable
from litgpt.model import GPT
from torch import Tensor, nn

from skip2bench.config.blocks import count_top, name_range, parse_blocks
from skip2bench.config.methods import LORA_TARGETS, METHODS, Method, Weights
from skip2bench.config.run import RunConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.units import format_amount
from skip2bench.models.base import Base
from skip2bench.models.skip import FIXED, PROJECTION, RELATIVE_SIZES, SkipGPT, SkipSettings
from skip2bench.models.top import TopGPT


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """A method with everything that decides the shape of its model."""

    method: Method
    lora: dict[str, object] | None
    """LitGPT's `lora_*` settings; None for a method without LoRA."""
    skip: SkipSettings | None
    top: tuple[int, ...] | None = None
    """The last blocks, which LoRA-Top adapts; None for other methods."""

    @property
    def blocks(self) -> tuple[int, ...] | None:
        """Blocks that the Skip methods read, or LoRA-Top adapts."""
        return self.skip.blocks if self.skip else self.top

    @property
    def top_blocks(self) -> int | None:
        """How many of the last blocks LoRA-Top adapts."""
        return None if self.top is None else len(self.top)

    @property
    def rank(self) -> int | None:
        """Rank of the adapters; None for a method without any."""
        return self.skip.r if self.skip else int(str(self.lora["lora_r"])) if self.lora else None

    @property
    def label(self) -> str:
        """Name in tables: "Traditional LoRA", "Skip2-LoRA (4 blocks, one B)"."""
        if self.top is not None:
            return f"{self.method.title} ({format_amount(len(self.top), 'block')})"
        if self.skip is None:
            return self.method.title
        details = [format_amount(len(self.skip.blocks), "block")]
        details += ["raw features"] if self.skip.features == "raw" else []
        details += ["one B"] if self.skip.share_b else []
        projected = self.skip.projected
        details += [] if projected is None else [f"projected to {projected}"]
        return f"{self.method.title} ({', '.join(details)})"

    def describe_blocks(self, n_layer: int) -> str:
        """Which blocks the Skip methods read, and LoRA-Top adapts: ", blocks 0-5 of 30"; else "".

        A preset's name does not say that it is the first ones.
        """
        if self.blocks is None:
            return ""
        return f", blocks {self.block_range} of {n_layer}"

    @property
    def block_range(self) -> str:
        """The blocks in short; empty of a method that reads none."""
        return name_range(self.blocks or ())

    @property
    def slug(self) -> str:
        """Name in folders' names: "lora", "skip2-0-3" (blocks 0 to 3), "skip2-0_3" (0 and 3)."""
        if self.blocks is None:
            return self.method.name
        return f"{self.method.name}-{self.block_range.replace(',', '_')}"


def resolve_method(name: str, blocks: str, config: RunConfig, model: Config) -> MethodSettings:
    """Settings of method `name` on a model, from a command's configuration.

    Args:
        name: Of the method.
        blocks: Of a Skip method; of LoRA-Top how many of the last ones, "" for the usual number.
        config: Of a command.
        model: LitGPT's configuration of the model.

    Raises:
        Skip2BenchError: blocks that the model does not have, a projection to more numbers than a
            block gives, or biases where it has none.
    """
    method = METHODS[name]
    if method.is_skip:
        projected = getattr(config, "cache_project", None)  # an option of `train` alone
        if projected is not None and projected > model.n_embd:
            raise Skip2BenchError(
                f"cache_project is {projected}, and block outputs of {model.name!r} have "
                f"{model.n_embd} numbers; give at most {model.n_embd}, or leave it out"
            )
        skip = SkipSettings(
            blocks=parse_blocks(blocks, model.n_layer),
            r=config.skip_r,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            target=config.target,
            features=config.features,
            share_b=config.share_b,
            projected=projected,
        )
        return MethodSettings(method=method, lora=None, skip=skip)
    if method.weights == "biases" and not has_biases(model):
        raise Skip2BenchError(
            f"method {name!r} trains biases, and {model.name!r} has none; choose another method"
        )
    if not method.has_lora:
        return MethodSettings(method=method, lora=None, skip=None)
    lora: dict[str, object] = {
        "lora_r": config.lora_r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
    }
    for key in LORA_TARGETS:
        is_target = key in method.lora_targets
        lora[key] = getattr(config, key, is_target) if method.lora_is_configured else is_target
    n_layer = model.n_layer
    top = tuple(range(n_layer))[-count_top(blocks, n_layer) :] if method.is_top else None
    return MethodSettings(method=method, lora=lora, skip=None, top=top)


def has_biases(model: Config) -> bool:
    """True where a LitGPT model has any bias; its LayerNorm has one, its RMSNorm none."""
    linear = (model.bias, model.attn_bias, model.lm_head_bias)
    with torch.device("meta"):
        norm = model.norm_class(model.n_embd, eps=model.norm_eps)
    return any(linear) or getattr(norm, "bias", None) is not None


def build_empty_model(settings: MethodSettings, config: Config) -> GPT:
    """The method's model with its trainable parameters marked, on the default device."""
    if settings.skip is not None:
        model: GPT = SkipGPT(config, settings.skip)
    elif settings.lora is not None:
        own = LoraConfig(**(_config_fields(config) | settings.lora))
        top_blocks = settings.top_blocks
        model = LoraGPT(own) if top_blocks is None else TopGPT(own, top_blocks)
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
    absent = [key for key in missing if "lora_" not in key and not key.endswith(FIXED)]
    if absent or unexpected:
        named = ", ".join([*absent, *unexpected][:3])
        raise Skip2BenchError(
            f"the weights of {base.name!r} do not fit its model_config.yaml: see {named}"
        )
    dtype = next(iter(base.weights.values())).dtype
    _materialise_adapters(model, device, dtype, seed)
    # in the dtype that Fabric brings them to, where a step runs through the whole model: what fills
    # a cache computes the same then
    tables = model.rope_cache(device=device)
    model.cos, model.sin = (it.to(dtype if dtype.is_floating_point else it.dtype) for it in tables)
    _mark_trainable(model, settings)  # the weights that were assigned came with gradients on
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad and "lora_" not in name:
                # other models may stand on the same base
                setattr(module, name, nn.Parameter(parameter.detach().clone()))
    return model


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a run leaves, by its name in the model's state dict, detached.

    That is what trains, the relative sizes that scaled Skip features are divided by, and what they
    are projected by.
    """
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: b for name, b in model.named_buffers() if name.endswith(FIXED)}
    return trained | fixed


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
    return weights == "biases" and f".{name}".endswith(".bias")


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
            if (sizes := getattr(module, RELATIVE_SIZES, None)) is not None:
                setattr(module, RELATIVE_SIZES, torch.ones(sizes.shape, device=device))
            if (rows := getattr(module, PROJECTION, None)) is not None:
                unknown = torch.full(rows.shape, torch.nan, device=device, dtype=dtype)
                setattr(module, PROJECTION, unknown)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Numbers of all parameters and of those that train."""
    total = sum(_count(p) for p in model.parameters())
    return total, sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_trainable(settings: MethodSettings, config: Config) -> int:
    """Parameters that a method trains on a model of this configuration; no weight is made."""
    with torch.device("meta"):
        return count_parameters(build_empty_model(settings, config))[1]


def _count(parameter: Tensor) -> int:
    """Its numbers; of one that bitsandbytes has packed, those that it stands for."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else math.prod(packed.shape)


def _config_fields(config: Config) -> dict[str, object]:
    values = asdict(config)
    return {key: value for key, value in values.items() if key in LoraConfig.__dataclass_fields__}
