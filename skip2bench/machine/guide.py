"""What the guide asks of a machine (section 8.1), as numbers, and the batch size it names.

Sizes are those that hardware is sold by, in decimal units. A card sold with 16 GB reports as little
as 14.7 GiB, one of 24 GB as little as 22.0 GiB, so a size counts as reached from 5 % below it.
"""

GUIDE_GPU = "NVIDIA A100"
GUIDE_CAPABILITY = (8, 0)
"""The A100's compute capability; a GPU of its class has no lower one, and no less memory."""
GUIDE_GPU_BYTES = 40 * 10**9
GUIDE_RAM_BYTES = 64 * 10**9
GUIDE_DISK_BYTES = 500 * 10**9
MICRO_BATCH_SIZES = {16 * 10**9: 2, 24 * 10**9: 4, 40 * 10**9: 8}
"""By the GPU's memory in bytes."""
_MICRO_BATCH_SIZE = 1
"""LitGPT's."""
_EMBEDDED_MICRO_BATCH_SIZE = 4
"""Suits the embedded model on a CPU."""
_TOLERANCE_RATIO = 0.05


def has_size(found_bytes: int, sold_bytes: int) -> bool:
    """True where a size found is one of hardware sold with `sold_bytes`, or more."""
    return found_bytes >= (1 - _TOLERANCE_RATIO) * sold_bytes


def default_micro_batch_size(device_memory_bytes: int | None) -> int:
    """The guide's batch size for a GPU with that much memory.

    Args:
        device_memory_bytes: All of its memory; None where that is not known.

    Returns:
        Of the guide's sizes that the memory reaches the largest one's batch size; 1 below all of
        them, or where the memory is not known.
    """
    reached = [
        batch_size
        for sold_bytes, batch_size in MICRO_BATCH_SIZES.items()
        if device_memory_bytes is not None and has_size(device_memory_bytes, sold_bytes)
    ]
    return max(reached, default=1)


def choose_micro_batch_size(
    device_type: str, device_memory_bytes: int | None, *, is_embedded: bool
) -> int:
    """Samples in a forward pass where nobody says: the guide's on a GPU, else `train`'s own.

    Args:
        device_type: cpu, cuda or mps.
        device_memory_bytes: All memory of a GPU; None where it is not known.
        is_embedded: True for the embedded model.
    """
    if device_type == "cuda":
        return default_micro_batch_size(device_memory_bytes)
    return _EMBEDDED_MICRO_BATCH_SIZE if is_embedded else _MICRO_BATCH_SIZE
