"""How far a training run has come; saved with its state and brought back when it is resumed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    """Step losses since the last evaluation point."""
    val_losses: list[tuple[int, float]] = field(default_factory=list)
    """Every evaluation point: step, validation loss."""
    saved_bytes: int = 0
    """Bytes that autograd saves for one step's backward."""
    preparation_peak_bytes: int = 0
    """Peak memory before the first step: building a cache."""
    earlier_steps_peak_bytes: int = 0
    """Peak memory of the steps that were taken before the run was resumed."""
    resumed_at_steps: list[int] = field(default_factory=list)
    """Steps at which the run went on after it had been stopped."""

    def to_plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Progress":
        """What `to_plain` gave."""
        points = [(int(step), float(loss)) for step, loss in plain["val_losses"]]
        return cls(**{**plain, "val_losses": points})
