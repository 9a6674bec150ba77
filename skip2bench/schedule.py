"""The learning-rate schedule: linear warm-up, then a cosine to zero."""

import math


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
