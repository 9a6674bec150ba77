"""Dropout masks that cost little: sixteen random bits an element where torch spends a float.

On two CPU cores torch's own dropout took more time than the rest of a cached step. On other
devices torch's is fast, and is used.
"""

import numpy as np
import torch
from torch import Tensor

_LEVELS = 2**16
_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
"""Integers as wide as the dtypes that features have."""


def dropped(features: Tensor, p: float) -> Tensor:
    """Features with each element zeroed with probability `p`, still to be scaled by `keep_scale`.

    Args:
        features: Any shape.
        p: Share to drop, from 0 to below 1; on the CPU rounded to a multiple of 2**-16.
    """
    # the bits of a subclass that has none (FakeTensorMode's) cannot be masked
    if features.device.type == "cpu" and type(features) is Tensor:
        bits = _BITS[features.dtype]
        # all ones keep an element bit for bit, zeros make it 0.0; a product takes twice as long
        mask = _keep_mask(features.shape, p).to(bits).neg_()
        return (features.view(bits) & mask).view(features.dtype)
    return torch.nn.functional.dropout(features, p)


def keep_scale(p: float, device: torch.device) -> float:
    """What `dropped` leaves to be multiplied, so that the expectation is the input.

    Left out on the CPU, as it costs less on whatever small thing is made of the features.
    """
    return 1 / (1 - _threshold(p) / _LEVELS) if device.type == "cpu" else 1.0


def _threshold(p: float) -> int:
    return min(round(p * _LEVELS), _LEVELS - 1)


def _keep_mask(shape: torch.Size, p: float) -> Tensor:
    """Boolean mask; one 64-bit draw decides four elements.

    The bits are SFC64's, three times as fast as those of torch's generator, which gives the seed:
    so torch's state is the only one to keep.
    """
    count = shape.numel()
    seed = int(torch.randint(2**62, ()))
    draws = np.random.SFC64(seed).random_raw((count + 3) // 4).view(np.int16)
    keep = draws[:count] >= np.int16(_threshold(p) - _LEVELS // 2)
    return torch.from_numpy(keep).view(shape)
