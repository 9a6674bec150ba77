"""Portions of one side's samples for `skip2`: rows of its cache, and tokens where it has none."""

from collections.abc import Sequence
from functools import partial

import torch
from lightning.fabric import Fabric
from torch import Tensor

from skip2bench.cache import Served, SkipCache, supervised_rows, token_budget
from skip2bench.data import Samples, collate, length_buckets
from skip2bench.objective import Portion
from skip2bench.served_loss import ServedLoss
from skip2bench.skip2 import SkipGPT
from skip2bench.staging import Stager, is_worth_staging


class PortionSource:
    """Cuts samples of one side into portions, and brings these to the device."""

    def __init__(
        self,
        fabric: Fabric,
        model: SkipGPT,
        samples: Samples,
        cache: SkipCache | None,
        loss: ServedLoss,
        max_rows: int,
    ) -> None:
        """Nothing is computed or copied yet.

        Args:
            fabric: Of the run.
            model: The Skip model; its backbone is needed where a sample is not cached.
            samples: All of the side.
            cache: What is cached of them.
            loss: Of what is served, shared by both sides.
            max_rows: Supervised positions in a portion.
        """
        self._fabric, self._model, self._samples, self._cache = fabric, model, samples, cache
        self._loss, self._max_rows = loss, max_rows
        is_staged = cache is not None and is_worth_staging(cache.arrays, fabric.device)
        self._stager = Stager(cache.arrays, fabric.device) if cache and is_staged else None

    def split(self, ids: Sequence[int]) -> list[Tensor | list[int]]:
        """Rows of cached samples in even portions, and samples of similar length to recompute."""
        cache = self._cache
        cached = [i for i in ids if cache is not None and cache.index.counts[i] > 0]
        parts: list[Tensor | list[int]] = []
        if cache is not None and cached:
            rows = cache.index.find_rows(cached)
            parts += rows.chunk(-(-len(rows) // self._max_rows))
        if len(cached) < len(ids):
            there = set(cached)
            left = [i for i in ids if i not in there]
            parts += length_buckets(left, self._samples.lengths, token_budget(self._fabric.device))
        return parts

    def prefetch(self, ids: Sequence[int]) -> None:
        """Have samples that come next read ahead from disk and brought to a GPU."""
        if self._cache is not None:
            self._cache.prefetch(ids)
        if self._stager is not None:
            self._stager.expect([part for part in self.split(ids) if isinstance(part, Tensor)])

    def load(self, part: Tensor | list[int]) -> Portion:
        """Rows of the cache, or tokens."""
        device = self._fabric.device
        if isinstance(part, Tensor):
            assert self._cache is not None
            served = (
                self._cache.serve(part, device)
                if self._stager is None
                else self._cache.unpack(self._stager.take(part))
            )
            logits = () if served.base_logits is None else (served.base_logits,)
            return Portion(
                tensors=(served.features, served.targets, *logits),
                loss=partial(self._served_loss, served),
            )
        input_ids, labels = collate(self._samples, part)
        rows, targets = supervised_rows(labels)
        tensors = (input_ids.to(device), rows.to(device), targets.to(device))
        return Portion(tensors=tensors, loss=partial(self._recomputed_loss, *tensors))

    def _served_loss(self, served: Served) -> Tensor:
        with self._fabric.autocast():
            return self._loss(served)

    def _recomputed_loss(self, input_ids: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        with self._fabric.autocast():
            outputs = self._model.compute_features(input_ids)
            # plain tensors, that autograd may save
            features = torch.stack([h.flatten(0, 1)[rows] for h in outputs], dim=1)
            return self._loss(Served(features=features, targets=targets))
