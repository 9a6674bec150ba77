"""Skip-Cache: every sample's frozen activations, computed once and served in every later epoch.

Held in memory as flat arrays over supervised positions only, in the backbone's dtype. The final
norm is not
stored: it is cheap to derive. Source: Matsutani et al., arXiv:2410.21073, section 3.3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skip2bench.data import Samples, collate, length_buckets
from skip2bench.loss import supervised_features
from skip2bench.skip2 import SkipGPT

TOKEN_BUDGET = 4096
"""Tokens, padding included, in one forward pass while the cache is built."""


@dataclass(frozen=True, kw_only=True)
class SkipCache:
    """Features of N supervised positions of some samples."""

    features: Tensor
    """(N, K', d): outputs of the Skip model's `feature_blocks`."""
    targets: Tensor
    """(N,): the token that follows each position."""
    starts: Tensor
    """(S,): where each sample's positions begin; S samples in all, cached or not."""
    counts: Tensor
    """(S,): how many positions each sample has here; 0 for samples that are not cached."""

    @property
    def nbytes(self) -> int:
        """Bytes of features and targets."""
        return self.features.nbytes + self.targets.nbytes

    def gather(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Features (n, K', d) and targets (n,) of the given samples, in their order.

        Raises:
            KeyError: a sample that is not cached.
        """
        chosen = torch.tensor(ids)
        counts = self.counts[chosen]
        if not bool(counts.all()):
            raise KeyError(f"samples {chosen[counts == 0].tolist()} are not in the cache")
        # positions of sample i: starts[i], starts[i] + 1, …; all samples at once
        first_rows = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        rows = (
            torch.repeat_interleave(self.starts[chosen], counts)
            + torch.arange(len(first_rows))
            - first_rows
        )
        rows = rows.to(self.features.device)
        return self.features[rows], self.targets[rows]


def build_cache(
    model: SkipGPT,
    samples: Samples,
    ids: Sequence[int],
    device: torch.device,
    on_batch: Callable[[int], None] = lambda _tokens: None,
) -> SkipCache:
    """Run the frozen backbone once over the given samples, sorted by length.

    Args:
        model: The Skip model; put in evaluation mode while this runs.
        samples: All samples of a side.
        ids: Those to cache.
        device: Where the model runs and the cache is kept.
        on_batch: Called after each forward pass with the real tokens it did.
    """
    was_training = model.training
    model.eval()
    lengths, supervised = samples.lengths, torch.tensor(samples.supervised_counts)
    buckets = length_buckets(ids, lengths, TOKEN_BUDGET)
    order = [i for bucket in buckets for i in bucket]
    counts = torch.zeros(len(samples), dtype=torch.long)
    counts[order] = supervised[order]
    starts = torch.zeros(len(samples), dtype=torch.long)
    starts[order] = counts[order].cumsum(0) - counts[order]
    features: Tensor | None = None
    targets = torch.empty(int(counts.sum()), dtype=torch.long, device=device)
    row = 0
    for bucket in buckets:
        input_ids, labels = (tensor.to(device) for tensor in collate(samples, bucket))
        picked, picked_targets = supervised_features(model.compute_features(input_ids), labels)
        if features is None:
            # a plain tensor, made outside inference mode: autograd refuses to save inference
            # tensors
            features = torch.empty(
                len(targets), *picked.shape[1:], dtype=picked.dtype, device=device
            )
        features[row : row + len(picked)] = picked
        targets[row : row + len(picked)] = picked_targets
        row += len(picked)
        on_batch(sum(lengths[i] for i in bucket))
    model.train(was_training)
    assert features is not None
    return SkipCache(features=features, targets=targets, starts=starts, counts=counts)
