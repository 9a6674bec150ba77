"""The objective of LoRA on the last blocks over a cached trunk.

Its micro-batches are those of the same method without a cache, so that losses and masks of dropout
are the same. Samples that had no room in the cache pass the whole model, in micro-batches of their
own: then the losses are the same without dropout alone.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from skip2bench.cache.build import Side
from skip2bench.cache.portions import Portion
from skip2bench.cache.skip_cache import token_budget
from skip2bench.cache.trunk import TrunkSource
from skip2bench.data.samples import length_buckets
from skip2bench.models.top import TopGPT
from skip2bench.results.run_records import ObjectiveFigures
from skip2bench.train.attempt import Attempt
from skip2bench.train.caches import RunCaches
from skip2bench.train.objective import TokenObjective, Validation, validate_portions


class TrunkObjective:
    """Runs the blocks above the trunk on what the cache has of it."""

    def __init__(
        self, tokens: TokenObjective, attempt: Attempt, model: TopGPT, caches: RunCaches
    ) -> None:
        """Nothing is computed yet.

        Args:
            tokens: That of the method without a cache, whose micro-batches these are.
            attempt: Of the run.
            model: LoRA on the last blocks.
            caches: Those of the run, provided before the first portion is asked for.
        """
        self._tokens, self._ranks, self._fabric = tokens, attempt.ranks, attempt.fabric
        self._data, self._model, self._caches = attempt.plan.data, model, caches
        self._own_train = set(caches.use.train_ids)
        self._sources: dict[Side, TrunkSource] = {}

    def portions(self, ids: Sequence[int], following: Sequence[int] = ()) -> Iterator[Portion]:
        """Micro-batches of this rank's share; those that follow are read ahead from disk."""
        source = self._source("train")
        parts = source.cut(self._own(ids), self._tokens.micro_batch_size)
        source.expect(self._own(following))
        yield from map(source.load, parts)

    @torch.no_grad()
    def validate(self) -> Validation:
        """On the validation samples, from a cache of their own."""
        source, val = self._source("val"), self._data.val
        buckets = length_buckets(
            self._caches.use.val_ids, val.lengths, token_budget(self._fabric.device)
        )
        parts = [part for bucket in buckets for part in source.cut(bucket, len(bucket))]
        return validate_portions(map(source.load, parts), val, self._ranks)

    def describe(self) -> ObjectiveFigures:
        """Where the cache is and what it takes, and the micro-batch, where it was found."""
        return self._caches.describe().model_copy(update=self._tokens.describe_state() or {})

    def describe_state(self) -> dict[str, Any]:
        """What the caches were decided by, and the micro-batch that was found."""
        return self._caches.describe_state() | (self._tokens.describe_state() or {})

    def _source(self, side: Side) -> TrunkSource:
        if side not in self._sources:
            samples, cache = self._data.sides[side], self._caches.sides[side]
            self._sources[side] = TrunkSource(self._fabric, self._model, samples, cache)
        return self._sources[side]

    def _own(self, ids: Sequence[int]) -> list[int]:
        return sorted(i for i in ids if i in self._own_train)  # as `share` does
