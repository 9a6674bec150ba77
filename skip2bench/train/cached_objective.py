"""The objective of `skip2`: losses from Skip-Cache, and by the backbone for what is not cached.

A batch is cut into portions: rows of the cache, and tokens where it has none.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from skip2bench.cache.build import Side
from skip2bench.cache.loss import ServedLoss, portion_rows
from skip2bench.cache.portions import Portion, PortionSource
from skip2bench.cache.skip_cache import Served
from skip2bench.models.skip import SkipGPT
from skip2bench.results.run_records import ObjectiveFigures
from skip2bench.train.attempt import Attempt
from skip2bench.train.caches import RunCaches
from skip2bench.train.objective import Validation, validate_portions
from skip2bench.train.ranks.sharded import even_out_passes


class CachedObjective:
    """Serves features from Skip-Cache. Samples that had no room in it pass the backbone anew."""

    def __init__(self, attempt: Attempt, model: SkipGPT, caches: RunCaches) -> None:
        """Nothing is computed yet.

        Args:
            attempt: Of the run.
            model: The Skip model.
            caches: Those of the run, provided before the first portion is asked for.
        """
        self._ranks, self._fabric, self._data = attempt.ranks, attempt.fabric, attempt.plan.data
        self._model, self._caches = model, caches
        self._own_train = set(caches.use.train_ids)
        self._loss = ServedLoss(model, caches.plan.algebra_name)
        self._sources: dict[Side, PortionSource] = {}

    def portions(self, ids: Sequence[int], following: Sequence[int] = ()) -> Iterator[Portion]:
        """Rows of the cache and tokens to recompute, of this rank's share.

        Those of the batch that follows are read ahead from disk, and brought to a GPU.
        """
        source = self._source("train")
        parts = source.split(self._own(ids))
        if following:  # else what is expected already stays so
            source.expect(self._own(following))
        self._even_out(parts)
        yield from source.portions(parts)

    def frozen(self, ids: Sequence[int]) -> Iterator[Served]:
        """What the frozen layers give for this rank's share of training samples."""
        source = self._source("train")
        parts = source.split(self._own(ids))
        self._even_out(parts)
        yield from source.serve(parts)

    @torch.no_grad()
    def validate(self) -> Validation:
        """Of the validation samples, from a cache of their own."""
        source, ids = self._source("val"), self._caches.use.val_ids
        source.expect(ids)
        parts = source.split(ids)
        self._even_out(parts)
        return validate_portions(source.portions(parts), self._data.val, self._ranks)

    def describe(self) -> ObjectiveFigures:
        """Where the cache is, what it takes, and how its losses are computed."""
        return self._caches.describe()

    def describe_state(self) -> dict[str, Any]:
        """What the caches were decided by."""
        return self._caches.describe_state()

    def _source(self, side: Side) -> PortionSource:
        if side not in self._sources:
            plan, device = self._caches.plan, self._fabric.device
            self._sources[side] = PortionSource(
                self._fabric,
                self._model,
                self._data.sides[side],
                self._caches.sides[side],
                self._loss,
                portion_rows(self._model, plan.layout, plan.algebra_name, device),
            )
        return self._sources[side]

    def _own(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in self._own_train]

    def _even_out(self, parts: Sequence[object]) -> None:
        """Have every rank recompute as many parts; rows need no forward pass of the backbone."""
        recomputed = sum(isinstance(part, list) for part in parts)
        even_out_passes(self._model, self._ranks, recomputed)
