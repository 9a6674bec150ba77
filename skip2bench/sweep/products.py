"""What the A of many configurations make of the same features, one product a block.

Ranks of any sizes stand side by side: a block's rows are read once for all configurations that
adapt it. Configurations with dropout share its random numbers, as runs of one seed do, and those
with the same share to drop share the masked features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skip2bench.models.dropout import dropped
from skip2bench.models.skip import SkipAdapters, SkipGPT, SkipSettings


def reduce_all(
    model: SkipGPT,
    features: Tensor,
    adapters: Sequence[SkipAdapters],
    settings: Sequence[SkipSettings],
    *,
    is_training: bool,
) -> list[Tensor]:
    """What `SkipAdapters.reduce` would give of each configuration, by itself.

    Args:
        model: Its `feature_blocks` are what the features are of.
        features: (n, K', d).
        adapters: Of the configurations.
        settings: Theirs.
        is_training: With dropout.

    Returns:
        (n, w) of each, with gradients to the A where they are asked for.
    """
    size = model.last_size(features[:, -1])
    shares = [s.dropout if is_training else 0.0 for s in settings]
    divided = [own.divided_A() for own in adapters]
    parts: list[list[Tensor]] = [[torch.empty(0)] * len(s.blocks) for s in settings]
    start = torch.get_rng_state()
    for share in sorted(set(shares)):
        torch.set_rng_state(start)  # the same draws, so that a larger share drops more of the same
        members = [i for i, own in enumerate(shares) if own == share]
        _reduce_members(model, features, share, members, divided, settings, parts)
    return [
        own.join(
            its, size if s.features == "scaled" else None, is_dropping=is_training and s.dropout > 0
        )
        for own, its, s in zip(adapters, parts, settings, strict=True)
    ]


def _reduce_members(
    model: SkipGPT,
    features: Tensor,
    share: float,
    members: Sequence[int],
    divided: Sequence[Tensor],
    settings: Sequence[SkipSettings],
    parts: list[list[Tensor]],
) -> None:
    """Fill in the products of the configurations that drop the same share."""
    for column, block in enumerate(model.feature_blocks):
        readers = [
            (i, settings[i].blocks.index(block)) for i in members if block in settings[i].blocks
        ]
        if not readers:
            continue
        own = features[:, column]
        if share > 0:
            own = dropped(own, share)
        stacked = torch.cat([divided[i][place] for i, place in readers])
        products = nn.functional.linear(own, stacked)
        widths = [settings[i].r for i, _ in readers]
        for (i, place), product in zip(readers, torch.split(products, widths, dim=1), strict=True):
            parts[i][place] = product
