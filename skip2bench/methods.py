"""The table of methods: what each one trains and how its model is built around a base."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import cast

import torch
from litgpt.config import Config
from litgpt.lora import GPT as LoraGPT
from litgpt.lora import Config as LoraConfig
from litgpt.lora import mark_only_lora_as_trainable
from litgpt.model import GPT
from torch import nn

from skip2bench.config import LORA_TARGETS, RunConfig, parse_blocks
from skip2bench.errors import Skip2BenchError
from skip2bench.models import Base
from skip2bench.skip2 import SkipGPT, SkipSettings


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to fine-tune."""

    name: str
    title: str
    trains: str
    """What it trains, in words."""
    is_skip: bool
    is_cached: bool
    """True where later epochs read the Skip-Cache instead of running the backbone."""


METHODS = {
    method.name: method
    for method in (
        Method(
            name="lora",
            title="Traditional LoRA",
            trains="low-rank updates of attention weights in every block",
            is_skip=False,
            is_cached=False,
        ),
        Method(
            name="skip",
            title="Skip-LoRA",
            trains="adapters from blocks' outputs to the end of the network",
            is_skip=True,
            is_cached=False,
        ),
        Method(
            name="skip2",
            title="Skip2-LoRA",
            trains="as skip, on activations computed once",
            is_skip=True,
            is_cached=True,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """A method with everything that decides the shape of its model."""

    method: Method
    lora: dict[str, object] | None
    """LitGPT's `lora_*` settings; None for the Skip methods."""
    skip: SkipSettings | None

    @property
    def blocks(self) -> tuple[int, ...] | None:
        """Blocks of the Skip methods."""
        return self.skip.blocks if self.skip else None

    @property
    def rank(self) -> int:
        """Rank of the adapters."""
        return self.skip.r if self.skip else int(str(self.lora and self.lora["lora_r"]))

    @property
    def label(self) -> str:
        """Name in tables: "Traditional LoRA", "Skip2-LoRA (4 blocks)"."""
        if self.blocks is None:
            return self.method.title
        return f"{self.method.title} ({len(self.blocks)} block{'s' * (len(self.blocks) > 1)})"

    @property
    def slug(self) -> str:
        """Name in folders' names: "lora", "skip2-0-3" (blocks 0 to 3), "skip2-0_3" (0 and 3)."""
        if self.blocks is None:
            return self.method.name
        first, last = self.blocks[0], self.blocks[-1]
        is_run = len(self.blocks) > 1 and last - first + 1 == len(self.blocks)
        return (
            f"{self.method.name}-{f'{first}-{last}' if is_run else '_'.join(map(str, self.blocks))}"
        )


def resolve_method(name: str, blocks: str, config: RunConfig, model: Config) -> MethodSettings:
    """Settings of method `name` on a model, from a command's configuration.

    Raises:
        Skip2BenchError: blocks that the model does not have.
    """
    method = METHODS[name]
    if method.is_skip:
        skip = SkipSettings(
            blocks=parse_blocks(blocks, model.n_layer),
            r=config.skip_r,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            target=config.target,
        )
        return MethodSettings(method=method, lora=None, skip=skip)
    lora: dict[str, object] = {
        "lora_r": config.lora_r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
    }
    defaults = {"lora_query": True, "lora_value": True}
    lora |= {key: getattr(config, key, defaults.get(key, False)) for key in LORA_TARGETS}
    return MethodSettings(method=method, lora=lora, skip=None)


def build_empty_model(settings: MethodSettings, config: Config) -> GPT:
    """The method's model with its trainable parameters marked, on the default device."""
    if settings.skip is not None:
        model: GPT = SkipGPT(config, settings.skip)
    else:
        model = LoraGPT(LoraConfig(**(_config_fields(config) | (settings.lora or {}))))
    mark_only_lora_as_trainable(model)
    return model


def build_model(settings: MethodSettings, base: Base, device: torch.device, seed: int) -> GPT:
    """The method's model around the base's own tensors, not copies of them.

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
    mark_only_lora_as_trainable(model)  # the weights that were assigned came with gradients on
    return model


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
    total = sum(p.numel() for p in model.parameters())
    return total, sum(p.numel() for p in model.parameters() if p.requires_grad)


def _config_fields(config: Config) -> dict[str, object]:
    values = asdict(config)
    return {key: value for key, value in values.items() if key in LoraConfig.__dataclass_fields__}
