"""Two ways from cached features to the logits, equal but for rounding, and which one costs less.

    head      W_head · (ln_f(h_L) + B A h): one product with the head for every position
    folded    base logits + (W_head · B) (A h): base logits cached, W_head · B made once a step

K adapters of rank r, width d, vocabulary V. `folded` wins where K r is far below d; its price is V
more cached numbers a position. Costs are those of a whole run, building and validation included.
They are counted, not timed: FLOPs (a multiply-add is two), and bytes read from where the cache
lives, which weigh as the FLOPs that the device does meanwhile.
"""

from dataclasses import dataclass
from typing import Literal

Name = Literal["head", "folded"]

FLOPS_PER_BYTE = {
    ("cpu", "ram"): 100,
    ("cpu", "disk"): 500,
    ("cuda", "device"): 150,
    ("cuda", "ram"): 10_000,
    ("cuda", "disk"): 200_000,
}
"""Balance of a device and of the tier that feeds it.

That of a CPU's memory was measured on two cores in float32: the folded algebra broke even at 75 to
120 FLOPs a byte. The others are orders of magnitude, from specifications.
"""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the cost of a cached step depends on."""

    n_adapters: int
    rank: int
    width: int
    """Numbers that all A make of a position, see `SkipSettings`."""
    n_embd: int
    vocabulary: int
    stored_blocks: int
    """Of which the whole output is stored."""
    feature_bytes: float
    """Bytes of one stored feature element."""
    logit_bytes: int
    """Bytes of one stored base logit."""
    adds_to_logits: bool
    """Target "logits": B already has V rows, nothing is folded."""
    projected: int = 0
    """Numbers that each adapter reads and that are stored for it; 0 where it reads all of d."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """What a run asks of its cache."""

    positions_per_step: float
    """Supervised positions of a global batch."""
    passes: float
    """How often a cached position is trained on; what is spent once is spread over them."""
    val_ratio: float = 0.0
    """Cached validation positions, by training positions."""
    evaluations: int = 0
    """How often each validation position is served."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a supervised position in one epoch, averaged over a run."""

    flops_per_position: float
    bytes_per_position: float


@dataclass(frozen=True, kw_only=True)
class Algebra:
    """The choice, and what it was made from."""

    name: Name
    costs: dict[Name, Cost]
    flops_per_byte: int


def count_costs(sizes: Sizes, use: Use) -> dict[Name, Cost]:
    """Cost of both algebras."""
    d, width, columns = sizes.n_embd, sizes.width, sizes.vocabulary
    # A forward, for each block; its gradient costs as much, and the features need none
    reduce = 2 * sizes.n_adapters * sizes.rank * (sizes.projected or d)
    up_hidden, up_logits, head = 2 * width * d, 2 * width * columns, 2 * d * columns
    fold = 0 if sizes.adds_to_logits else 2 * width * d * columns
    # forward, gradient of the input, gradient of the weight; with target "logits" nothing trains
    # before the head: it runs forward only
    head_step = head + 3 * up_logits if sizes.adds_to_logits else 3 * up_hidden + 2 * head
    head_value = head + (up_logits if sizes.adds_to_logits else up_hidden)
    # of a run, by the trained positions
    evaluated = use.val_ratio * use.evaluations / use.passes
    built = (1 + use.val_ratio) / use.passes
    folds = (2 + evaluated) * fold / use.positions_per_step  # made, its gradient; each evaluation's
    numbers = sizes.stored_blocks * d + sizes.n_adapters * sizes.projected
    stored = numbers * sizes.feature_bytes
    logits = columns * sizes.logit_bytes
    return {
        "head": Cost(
            flops_per_position=2 * reduce + head_step + evaluated * (reduce + head_value),
            bytes_per_position=stored * (1 + evaluated),
        ),
        # base logits are written once, and read whenever they are served
        "folded": Cost(
            flops_per_position=2 * reduce
            + 3 * up_logits
            + folds
            + built * head
            + evaluated * (reduce + up_logits),
            bytes_per_position=(stored + logits) * (1 + evaluated) + logits * built,
        ),
    }


def choose_algebra(costs: dict[Name, Cost], device: str, tier: str) -> Algebra:
    """The algebra of the lower cost; `head`, which needs no larger cache, where they are equal."""
    balance = FLOPS_PER_BYTE.get((device, tier), FLOPS_PER_BYTE["cuda", tier])

    def total(name: Name) -> float:
        cost = costs[name]
        return cost.flops_per_position + balance * cost.bytes_per_position

    name: Name = "folded" if total("folded") < total("head") else "head"
    return Algebra(name=name, costs=costs, flops_per_byte=balance)
