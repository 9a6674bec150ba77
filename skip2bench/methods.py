"""The table of methods: what each one trains, by the names of the Skip2-LoRA paper.

`building` makes their models. The paper (arXiv:2410.21073, section 2) calls them FT-All, FT-Last,
FT-Bias, LoRA-All, LoRA-Last, FT-All-LoRA, Skip-LoRA and Skip2-LoRA; traditional LoRA on query and
value is Hu et al.'s and LitGPT's default.
"""

from dataclasses import dataclass
from typing import Literal

from litgpt.config import Config

from skip2bench.blocks import parse_blocks
from skip2bench.config import LORA_TARGETS, RunConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.skip2 import SkipSettings
from skip2bench.units import format_amount

Weights = Literal["all", "lm_head", "biases"]
_BLOCK_TARGETS = tuple(name for name in LORA_TARGETS if name != "lora_head")


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to fine-tune."""

    name: str
    title: str
    trains: str
    """What it trains, in words."""
    is_skip: bool = False
    is_cached: bool = False
    """True where later epochs read the Skip-Cache instead of running the backbone."""
    weights: Weights | None = None
    """Which of the base model's own weights train."""
    lora_targets: tuple[str, ...] = ()
    """LitGPT's switches of the layers that get LoRA; empty for a method without it."""
    lora_is_configured: bool = False
    """True where the configuration's switches stand in place of `lora_targets`."""

    @property
    def rank_name(self) -> str | None:
        """Field of the configuration with the rank of its adapters; None where it has none."""
        return "skip_r" if self.is_skip else "lora_r" if self.lora_targets else None


METHODS = {
    method.name: method
    for method in (
        Method(
            name="lora",
            title="Traditional LoRA",
            trains="low-rank updates of attention weights in every block",
            lora_targets=("lora_query", "lora_value"),
            lora_is_configured=True,
        ),
        Method(
            name="lora-all",
            title="LoRA-All",
            trains="low-rank updates of every linear layer of the blocks",
            lora_targets=_BLOCK_TARGETS,
        ),
        Method(
            name="lora-last",
            title="LoRA-Last",
            trains="a low-rank update of lm_head",
            lora_targets=("lora_head",),
        ),
        Method(name="full", title="FT-All", trains="every weight", weights="all"),
        Method(
            name="full+lora",
            title="FT-All-LoRA",
            trains="every weight, and low-rank updates of every linear layer of the blocks",
            weights="all",
            lora_targets=_BLOCK_TARGETS,
        ),
        Method(name="last", title="FT-Last", trains="lm_head", weights="lm_head"),
        Method(
            name="bias",
            title="FT-Bias",
            trains="biases of linear layers and norms; norms' weights stay as they are",
            weights="biases",
        ),
        Method(
            name="skip",
            title="Skip-LoRA",
            trains="adapters from blocks' outputs to the end of the network",
            is_skip=True,
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
    """LitGPT's `lora_*` settings; None for a method without LoRA."""
    skip: SkipSettings | None

    @property
    def blocks(self) -> tuple[int, ...] | None:
        """Blocks of the Skip methods."""
        return self.skip.blocks if self.skip else None

    @property
    def rank(self) -> int | None:
        """Rank of the adapters; None for a method without any."""
        return self.skip.r if self.skip else int(str(self.lora["lora_r"])) if self.lora else None

    @property
    def label(self) -> str:
        """Name in tables: "Traditional LoRA", "Skip2-LoRA (4 blocks)"."""
        if self.blocks is None:
            return self.method.title
        return f"{self.method.title} ({format_amount(len(self.blocks), 'block')})"

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
        Skip2BenchError: blocks that the model does not have, or biases where it has none.
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
    if method.weights == "biases" and not has_biases(model):
        raise Skip2BenchError(
            f"method 'bias' trains biases, and {model.name!r} has none; choose another method"
        )
    if not method.lora_targets:
        return MethodSettings(method=method, lora=None, skip=None)
    lora: dict[str, object] = {
        "lora_r": config.lora_r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
    }
    for key in LORA_TARGETS:
        is_target = key in method.lora_targets
        lora[key] = getattr(config, key, is_target) if method.lora_is_configured else is_target
    return MethodSettings(method=method, lora=lora, skip=None)


def has_biases(model: Config) -> bool:
    """True where a LitGPT model has any bias; its LayerNorm has one, its RMSNorm none."""
    linear = (model.bias, model.attn_bias, model.lm_head_bias)
    return any(linear) or model.norm_class_name == "LayerNorm"
