"""Steps of LoRA on the last blocks, from a cache of what the frozen trunk gave.

A micro-batch of whole samples is put together from the cache's rows, padded as its tokens would be,
and goes through the blocks above the trunk and the head: the arithmetic of the whole model's pass.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from skip2bench.cache.portions import Place, Portion
from skip2bench.cache.skip_cache import SkipCache, sample_rows, supervised_rows
from skip2bench.data.samples import Samples, collate, micro_batches
from skip2bench.models.loss import token_loss
from skip2bench.models.top import TopGPT


def portion_above(
    place: Place, model: TopGPT, hidden: Tensor, rows: Tensor, targets: Tensor
) -> Portion:
    """What the trunk gave, (B, T, d), that passes the blocks above it; else as `token_portion`."""

    def loss() -> Tensor:
        with place.autocast(), model.from_trunk(hidden) as input_ids:
            return token_loss(model, input_ids, rows, targets)

    return Portion(tensors=(hidden, rows, targets), loss=loss)


class TrunkSource:
    """Cuts samples of one side into micro-batches, and brings these to the device."""

    def __init__(
        self, place: Place, model: TopGPT, samples: Samples, cache: SkipCache | None
    ) -> None:
        """Nothing is computed or copied yet.

        Args:
            place: Of the run.
            model: The trunk is needed where a sample is not cached.
            samples: All of the side.
            cache: Outputs of the trunk at all positions, of what is cached; None for nothing.
        """
        self._place, self._model, self._samples, self._cache = place, model, samples, cache

    def cut(self, ids: Sequence[int], size: int) -> list[list[int]]:
        """Micro-batches of at most `size` samples of similar length, cached ones apart."""
        cached = [i for i in ids if self._is_cached(i)]
        there = set(cached)
        left = [i for i in ids if i not in there]
        lengths = self._samples.lengths
        return [part for own in (cached, left) for part in micro_batches(own, lengths, size)]

    def expect(self, ids: Sequence[int]) -> None:
        """Have the batch that comes next read ahead, where the cache is on disk."""
        if self._cache is not None:
            self._cache.prefetch(ids)

    def load(self, ids: Sequence[int]) -> Portion:
        """A micro-batch on the device: from the cache, or tokens where it has none of it."""
        input_ids, labels = collate(self._samples, ids)
        rows, targets = (self._bring(t) for t in supervised_rows(labels))
        if self._is_cached(ids[0]):
            hidden = self._pad(ids, input_ids.shape)
            return portion_above(self._place, self._model, hidden, rows, targets)
        tensors = (self._bring(input_ids), rows, targets)
        return Portion(tensors=tensors, loss=partial(self._loss, *tensors))

    def _is_cached(self, i: int) -> bool:
        return self._cache is not None and bool(self._cache.index.counts[i] > 0)

    def _bring(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._place.device, non_blocking=True)

    def _pad(self, ids: Sequence[int], shape: torch.Size) -> Tensor:
        """What the trunk gave for samples, (B, T, d), zero behind their ends."""
        assert self._cache is not None
        served = self._cache.serve(self._cache.index.find_rows(ids), self._place.device)
        features = served.features[:, -1]
        places = sample_rows(torch.tensor([self._samples.lengths[i] for i in ids]))
        hidden = features.new_zeros(shape.numel(), features.size(-1))
        return hidden.index_copy_(0, self._bring(places), features).view(*shape, -1)

    def _loss(self, *tensors: Tensor) -> Tensor:
        with self._place.autocast():
            return token_loss(self._model, *tensors)
