"""Dropout masks that cost little: sixteen random bits an element where torch spends a float.

On two CPU cores torch's own dropout took more time than the rest of a cached step. On other
devices torch's is fast, and is used.
"""

import torch
from torch import Tensor

_LEVELS = 2**16


def dropped(features: Tensor, p: float) -> Tensor:
    """Features with each element zeroed with probability `p`, still to be scaled by `keep_scale`.

    Args:
        features: Any shape.
        p: Share to drop, from 0 to below 1; on the CPU rounded to a multiple of 2**-16.
    """
    if features.device.type == "cpu":
        return features * _keep_mask(features.shape, p)
    return torch.nn.functional.dropout(features, p)


def keep_scale(p: float, device: torch.device) -> float:
    """What `dropped` leaves to be multiplied, so that the expectation is the input.

    Left out on the CPU, as it costs less on whatever small thing is made of the features.
    """
    return 1 / (1 - _threshold(p) / _LEVELS) if device.type == "cpu" else 1.0


def _threshold(p: float) -> int:
    return min(round(p * _LEVELS), _LEVELS - 1)


def _keep_mask(shape: torch.Size, p: float) -> Tensor:
    """Boolean mask from torch's CPU generator: one 64-bit draw decides four elements."""
    count = shape.numel()
    draws = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return (draws.view(torch.int16)[:count] >= _threshold(p) - _LEVELS // 2).view(shape)
