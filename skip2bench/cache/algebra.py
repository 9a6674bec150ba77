"""Two ways from cached features to the logits, equal but for rounding, and which one costs less.

    head      W_head · (ln_f(h_L) + B A h): one product with the head for every position
    folded    base logits + (W_head · B) (A h): base logits cached, W_head · B made once a step

K adapters of rank r, width d, vocabulary V. `folded` wins where K r is far below d; its price is V
more cached numbers a position. Costs are counted, not timed: FLOPs (a multiply-add is two), and
bytes read from where the cache lives, which weigh as the FLOPs that the device does meanwhile.
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
    n_embd: int
    vocabulary: int
    stored_blocks: int
    feature_bytes: float
    """Bytes of one stored feature element."""
    logit_bytes: int
    """Bytes of one stored base logit."""
    adds_to_logits: bool
    """Target "logits": B already has V rows, nothing is folded."""


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


def count_costs(sizes: Sizes, *, positions_per_step: float, passes: float) -> dict[Name, Cost]:
    """Cost of both algebras.

    Args:
        sizes: Of model and cache.
        positions_per_step: Supervised positions of a global batch.
        passes: How often a cached position is served in the run; what `folded` spends once, while
            the cache is built, is spread over them.
    """
    width, columns = sizes.n_adapters * sizes.rank, sizes.vocabulary
    # A forward and its gradient; the features need none
    reduce = 2 * 2 * width * sizes.n_embd
    # forward, gradient of the input, gradient of the weight
    up_hidden, up_logits = 3 * 2 * width * sizes.n_embd, 3 * 2 * width * columns
    head = 2 * 2 * sizes.n_embd * columns
    # with target "logits" nothing trains before the head: it runs forward only
    head_flops = reduce + (head / 2 + up_logits if sizes.adds_to_logits else up_hidden + head)
    fold = 0 if sizes.adds_to_logits else 2 * 2 * width * sizes.n_embd * columns
    folded_flops = reduce + up_logits + fold / positions_per_step + head / 2 / passes
    stored = sizes.stored_blocks * sizes.n_embd * sizes.feature_bytes
    extra = columns * sizes.logit_bytes
    return {
        "head": Cost(flops_per_position=head_flops, bytes_per_position=stored),
        # the base logits are written once and read in every pass
        "folded": Cost(
            flops_per_position=folded_flops,
            bytes_per_position=stored + extra * (1 + 1 / passes),
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
