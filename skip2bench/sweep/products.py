"""What the A of many configurations make of the same features, one product a block.

Ranks of any sizes stand side by side: a block's rows are read once for all configurations that
adapt it. Configurations with dropout share its random numbers, and those with the same share to
drop share the masked features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skip2bench.cache.skip_cache import Served
from skip2bench.models.dropout import dropped
from skip2bench.models.skip import SkipAdapters, SkipGPT, SkipSettings


def reduce_all(
    model: SkipGPT,
    served: Served,
    adapters: Sequence[SkipAdapters],
    settings: Sequence[SkipSettings],
    mask_seed: int | None,
) -> list[Tensor]:
    """What `SkipAdapters.reduce` would give of each configuration, by itself.

    Args:
        model: Reads the blocks of all configurations.
        served: What its frozen layers give for n positions.
        adapters: Of the configurations.
        settings: Theirs.
        mask_seed: Of the random numbers of dropout, see `dropped_block`; None without dropout.

    Returns:
        (n, w) of each, with gradients to the A where they are asked for.
    """
    size = model.last_size(served.features[:, -1])
    inputs = model.read_inputs(served.features, served.projected)
    shares = [0.0 if mask_seed is None else s.dropout for s in settings]
    divided = [own.divided_A() for own in adapters]
    parts: list[list[Tensor]] = [[torch.empty(0)] * len(s.blocks) for s in settings]
    for block, features in zip(model.settings.blocks, inputs, strict=True):
        readers = [(i, s.blocks.index(block)) for i, s in enumerate(settings) if block in s.blocks]
        for share in sorted({shares[i] for i, _ in readers}):
            own = features
            if share > 0:
                assert mask_seed is not None
                own = dropped_block(features, share, mask_seed, block)
            members = [(i, place) for i, place in readers if shares[i] == share]
            stacked = torch.cat([divided[i][place] for i, place in members])
            widths = [settings[i].r for i, _ in members]
            products = torch.split(nn.functional.linear(own, stacked), widths, dim=1)
            for (i, place), product in zip(members, products, strict=True):
                parts[i][place] = product
    return [
        own.join(its, size if s.features == "scaled" else None, is_dropping=share > 0)
        for own, its, s, share in zip(adapters, parts, settings, shares, strict=True)
    ]


def dropped_block(features: Tensor, share: float, mask_seed: int, block: int) -> Tensor:
    """Features (n, d or N) of a block, elements zeroed, still to be scaled by `keep_scale`.

    The draws depend on seed and block alone, not on who else reads which blocks; so what trains
    later, or in other company, has the same masks, and on a CPU a larger share drops more of the
    same elements.
    """
    devices = [] if features.device.type != "cuda" else [features.device]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed((mask_seed * 65_537 + block) % 2**63)
        return dropped(features, share)
