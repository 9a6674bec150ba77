"""The optimizer and its schedule: one for every method, wherever it trains."""

import math
from collections.abc import Iterable

import torch
from torch import nn


def build_optimizer(
    trained: Iterable[nn.Parameter],
    device: torch.device,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    is_scaled: bool = False,
) -> torch.optim.Optimizer:
    """AdamW over what trains on a device.

    Args:
        trained: What trains.
        device: Where it lies.
        learning_rate: Of the first update.
        weight_decay: AdamW's.
        betas: AdamW's.
        is_scaled: Gradients are scaled, as in 16-mixed: the fused update would undo that itself,
            after they were to be clipped.
    """
    return torch.optim.AdamW(
        trained,
        lr=learning_rate,
        betas=betas,
        weight_decay=weight_decay,
        fused=device.type in ("cpu", "cuda") and not is_scaled,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Have the next update take this rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def scale_warmup(warmup_steps: int, total_steps: int, steps: int) -> int:
    """Warm-up of a schedule of fewer steps, the same share of it."""
    return -(-warmup_steps * steps // total_steps)


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """Factor on the peak learning rate for one update.

    Args:
        step: The update, counted from 0.
        warmup_steps: Updates until the peak; a run may be shorter and then ends on the way up.
        total_steps: Updates of the whole run.

    Returns:
        (step + 1) / warmup_steps during the warm-up, so that no update is wasted on a rate of zero;
        after it a half cosine from 1 that would reach 0 one update past the end.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))
