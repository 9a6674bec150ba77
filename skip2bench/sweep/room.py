"""How many configurations train at once: what each takes, and what is free."""

from collections.abc import Sequence
from typing import TypeVar

from skip2bench.models.skip import SkipGPT
from skip2bench.sweep.folds import choose_way
from skip2bench.sweep.trial import Trial

Item = TypeVar("Item")
_COPIES = 4
"""Of what trains: itself, its gradient, AdamW's two moments."""
_FLOAT32_BYTES = 4


def trial_bytes(model: SkipGPT, trial: Trial, positions_per_step: float) -> int:
    """What a configuration holds while it trains, a portion's tensors left out."""
    trained = sum(p.numel() for p in trial.adapters.parameters())
    folded = 0
    if choose_way(model, trial.settings, positions_per_step) != "head":
        # F and its gradient
        folded = 2 * int(model.config.padded_vocab_size) * trial.settings.width
    return _FLOAT32_BYTES * (_COPIES * trained + folded)


def pack(items: Sequence[Item], sizes: Sequence[int], room_bytes: int) -> list[list[Item]]:
    """Cut configurations into groups that train at once, one after the other; their order is kept.

    Args:
        items: All that are to train.
        sizes: What each holds.
        room_bytes: What a group may hold; one configuration trains whatever it takes.
    """
    groups: list[list[Item]] = []
    used = 0
    for item, size in zip(items, sizes, strict=True):
        if not groups or used + size > room_bytes:
            groups.append([])
            used = 0
        groups[-1].append(item)
        used += size
    return groups
