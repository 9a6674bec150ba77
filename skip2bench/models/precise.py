"""Sums that float32 would round: in float64, wherever the device has it."""

from torch import Tensor


def in_float64(value: Tensor) -> Tensor:
    """The values in float64, where they are; of an Apple GPU, which has none, on the processor."""
    return (value.cpu() if value.device.type == "mps" else value).double()
