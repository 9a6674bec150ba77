"""Summed cross-entropy over supervised positions, from tokens or from cached features.

Both give a sum, not a mean: the caller divides by the supervised positions of the *global* batch,
so the loss does not depend on how the batch is cut. Both compute the cross-entropy itself in
float32.
"""

import torch
from torch import Tensor, nn

from skip2bench.data import IGNORE_INDEX
from skip2bench.skip2 import SkipGPT


def token_loss(model: nn.Module, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Summed loss of a padded batch.

    Args:
        model: Maps (B, T) token ids to (B, T, V) logits.
        input_ids: Token ids, (B, T).
        labels: Labels of the same positions, (B, T); position t predicts label t + 1.
    """
    logits = model(input_ids)[:, :-1]
    targets = labels[:, 1:]
    supervised = targets != IGNORE_INDEX
    return nn.functional.cross_entropy(
        logits[supervised].float(), targets[supervised], reduction="sum"
    )


def feature_loss(model: SkipGPT, features: Tensor, targets: Tensor) -> Tensor:
    """Summed loss of supervised positions from their cached features.

    Args:
        model: The Skip model the features came from.
        features: Outputs of `model.feature_blocks`, (N, K', d).
        targets: The tokens that follow those positions, (N,).
    """
    logits = model.forward_features(features)
    return nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


def supervised_features(features: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pick the supervised positions out of a padded batch.

    Args:
        features: K' tensors (B, T, d).
        labels: (B, T).

    Returns:
        Features (N, K', d) and targets (N,), sample after sample.
    """
    targets = labels[:, 1:]
    supervised = targets != IGNORE_INDEX
    picked = torch.stack([h[:, :-1][supervised] for h in features], dim=1)
    return picked, targets[supervised]
