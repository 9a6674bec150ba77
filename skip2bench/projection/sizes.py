"""What a projection gives: bytes of methods, and of their caches."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CacheProjection:
    """A whole Skip-Cache, training and validation samples, in one tier."""

    tier: str
    is_automatic: bool
    """True for the tier that a run would take, which is `--cache-tier`'s business."""
    positions: int
    position_bytes: int
    usable_bytes: int | None
    """What a cache may take there beside the weights; None where that is not known."""
    recomputed_samples: int
    """Samples that would not fit."""

    @property
    def needed_bytes(self) -> int:
        """Positions times the bytes of each."""
        return self.positions * self.position_bytes


@dataclass(frozen=True, kw_only=True)
class MethodProjection:
    """Memory of one method's training."""

    method: str
    label: str
    trainable_parameters: int
    weights_bytes: int
    """All weights, those that train included."""
    optimizer_bytes: int
    """Gradients of what trains and AdamW's two moments, each in the dtype of the weights."""
    saved_for_backward_bytes: int | None
    """Of the largest forward pass; None where it cannot be counted."""
    problem: str | None
    """Why not: shapes that depend on values, as in mixtures of experts."""
    pass_positions: int
    """Positions of that pass, at most."""
    process_bytes: int = 0
    """On a CPU, what a process takes that has loaded all programs and nothing else."""
    shared_bytes: int = 0
    """Of `weights_bytes`, what is in memory once: a head that is tied to the embedding."""
    cached_bytes: int = 0
    """Skip-Cache, where it lives beside the model."""
    passing_bytes: int = 0
    """Of the largest pass without gradients: a block's tensors, and the outputs that are kept."""
    caches: tuple[CacheProjection, ...] = ()

    @property
    def needed_bytes(self) -> int | None:
        """What training holds at one time, at least; a cache not counted."""
        if self.saved_for_backward_bytes is None:
            return None
        return self.weights_bytes + self.optimizer_bytes + self.saved_for_backward_bytes

    @property
    def peak_bytes(self) -> int | None:
        """What the run takes at its peak, in building its cache or in a step."""
        if self.saved_for_backward_bytes is None:
            return None
        standing = self.process_bytes + self.weights_bytes - self.shared_bytes + self.cached_bytes
        return standing + max(
            self.optimizer_bytes + self.saved_for_backward_bytes, self.passing_bytes
        )


@dataclass(frozen=True, kw_only=True)
class Projection:
    """What a model and its data would take."""

    model: str
    precision: str
    total_parameters: int
    weights_bytes: int
    micro_batch_size: int
    data: str
    data_problem: str | None
    """Why there is no data to project a cache from."""
    tokens_are_estimated: bool
    """True where the model came without a tokenizer: tokens are the embedded model's."""
    train_samples: int | None
    val_samples: int | None
    longest_tokens: int
    """Of the data; without it, the model's context."""
    methods: tuple[MethodProjection, ...]
