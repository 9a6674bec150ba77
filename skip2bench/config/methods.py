"""The table of methods: what each one trains, by the names of the Skip2-LoRA paper.

Plain data; `models.methods` makes their models. The paper (arXiv:2410.21073, section 2) calls them
FT-All, FT-Last, FT-Bias, LoRA-All, LoRA-Last, FT-All-LoRA, Skip-LoRA and Skip2-LoRA; traditional
LoRA on query and value is Hu et al.'s and LitGPT's default. LoRA-Top is the rival that the same
idea allows: a frozen trunk is cached, and the blocks above it go on to mix positions.
"""

from dataclasses import dataclass
from typing import Literal

MethodName = Literal[
    "lora",
    "lora-all",
    "lora-last",
    "lora-top",
    "lora-top-uncached",
    "full",
    "full+lora",
    "last",
    "bias",
    "skip",
    "skip2",
]
"""The names of METHODS once more, since types are spelled; a test holds the two equal."""
Weights = Literal["all", "lm_head", "biases"]

TRADITIONAL: MethodName = "lora"
"""What the others are compared with, and what other programs train as well."""
SKIP2: MethodName = "skip2"
FULL: MethodName = "full"
LORA_TARGETS = ("lora_query", "lora_key", "lora_value", "lora_projection", "lora_mlp", "lora_head")
"""LitGPT's switches of the layers that get LoRA."""
_BLOCK_TARGETS = tuple(name for name in LORA_TARGETS if name != "lora_head")


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to fine-tune."""

    name: str
    title: str
    trains: str
    """What it trains, in words."""
    is_skip: bool = False
    is_top: bool = False
    """True where LoRA is on the last blocks alone, and all before them is frozen."""
    is_cached: bool = False
    """True where later epochs read a cache instead of running the frozen blocks."""
    weights: Weights | None = None
    """Which of the base model's own weights train."""
    lora_targets: tuple[str, ...] = ()
    """LitGPT's switches of the layers that get LoRA; empty for a method without it."""
    lora_is_configured: bool = False
    """True where the configuration's switches stand in place of `lora_targets`."""

    @property
    def is_traditional(self) -> bool:
        """True for the LoRA that the others are compared with."""
        return self.name == TRADITIONAL

    @property
    def has_lora(self) -> bool:
        """True where layers get LoRA, as LitGPT has it."""
        return bool(self.lora_targets)

    @property
    def walks_blocks_backward(self) -> bool:
        """True where something inside the blocks trains, so that backward goes through them."""
        return self.weights in ("all", "biases") or any(
            name in _BLOCK_TARGETS for name in self.lora_targets
        )

    @property
    def serves_rows(self) -> bool:
        """True where steps are made of single positions from Skip-Cache, and run no block."""
        return self.is_cached and self.is_skip

    @property
    def rank_name(self) -> str | None:
        """Field of the configuration with the rank of its adapters; None where it has none."""
        return "skip_r" if self.is_skip else "lora_r" if self.has_lora else None


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
        Method(
            name="lora-top",
            title="LoRA-Top",
            trains="low-rank updates of the last blocks, on a frozen trunk that is run once",
            is_top=True,
            is_cached=True,
            lora_targets=("lora_query", "lora_value"),
            lora_is_configured=True,
        ),
        Method(
            name="lora-top-uncached",
            title="LoRA-Top without a cache",
            trains="as lora-top, and runs the trunk in every step",
            is_top=True,
            lora_targets=("lora_query", "lora_value"),
            lora_is_configured=True,
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


def find_method(name: object) -> Method:
    """The method of a name from a file; where the table has no such name, one that trains nothing.

    So a run of another version has no property of any method, and is no error.
    """
    return METHODS.get(str(name)) or Method(name=str(name), title=str(name), trains="")


def list_names(method_property: str) -> str:
    """Names of the methods that have a property, in words: "skip and skip2"."""
    names = [name for name, method in METHODS.items() if getattr(method, method_property)]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
