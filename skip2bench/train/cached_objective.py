"""The objective of `skip2`: losses from Skip-Cache, and by the backbone for what is not cached.

A batch is cut into portions: rows of the cache, and tokens where it has none.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from skip2bench.cache.arrays import Tier, Writer
from skip2bench.cache.build import CacheBuilder, Side
from skip2bench.cache.loss import ServedLoss, portion_rows
from skip2bench.cache.plan import CachePlan, describe_projection, measure_free
from skip2bench.cache.skip_cache import Served, SkipCache, supervised_rows, token_budget
from skip2bench.cache.staging import Stager, is_afar, is_worth_staging
from skip2bench.cache.streamed_build import Request, provide_streamed
from skip2bench.cache.streaming import StreamedBackbone
from skip2bench.data.samples import Samples, TokenizedData, collate, length_buckets
from skip2bench.io.console import Bar, note
from skip2bench.machine.clock import Clock
from skip2bench.machine.signals import StopRequest
from skip2bench.models.skip import SkipGPT
from skip2bench.train.objective import Portion, mean_loss
from skip2bench.train.ranks.ranks import Ranks, share

_PROJECT_AFTER_TOKENS = 8192
"""Tokens done before the time to build is projected from them."""


class CachedObjective:
    """Serves features from Skip-Cache. Samples that had no room in it pass the backbone anew."""

    def __init__(
        self,
        fabric: Fabric,
        model: SkipGPT,
        data: TokenizedData,
        builder: CacheBuilder,
        train_ids: Sequence[int],
        passes: float,
        *,
        was_kept: bool | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Prepare without computing anything; `prepare` fills the caches.

        Args:
            fabric: Of the run.
            model: The Skip model.
            data: Both sides.
            builder: Opens or builds the caches by its plan.
            train_ids: Training samples that the run uses, of this rank's share.
            passes: How often it uses each, on average.
            was_kept: Whether the run found its cache when it began; None where it begins now.
            ranks: Those of the run; each caches its share of the samples. None for one process.
        """
        self._ranks = ranks or Ranks()
        self._own_train, self._val_ids = set(train_ids), own_val_ids(data, self._ranks)
        self._fabric, self._model, self._data, self._builder = fabric, model, data, builder
        self._train_ids, self._passes, self._was_kept = train_ids, passes, was_kept
        self._train: SkipCache | None = None
        self._val: SkipCache | None = None
        self._loss = ServedLoss(model, self._plan.algebra.name)
        self._sources: dict[Side, PortionSource] = {}
        self._portion_rows = portion_rows(
            model, self._plan.layout, self._plan.algebra.name, fabric.device
        )

    @property
    def _plan(self) -> CachePlan:
        return self._builder.plan

    def prepare(self, clock: Clock, stop: StopRequest) -> None:
        """Open or compute both caches, and drop the backbone where nothing needs it any more.

        The training cache counts as `cache_build`, that of the validation samples as `validation`.
        """
        if self._builder.backbone is not None:
            self._provide_streamed(self._builder.backbone, clock, stop)
        else:
            self._train = self._provide("train", self._train_ids, clock, "cache_build", stop)
            self._val = self._provide("val", self._val_ids, clock, "validation", stop)

    def release(self, clock: Clock) -> None:
        """Drop the backbone where no rank needs it any more; a cache may take its place."""
        if self._ranks.sum(self._describe_own()["recomputed_samples"])[0] == 0:
            self._model.release_backbone()
            self._move_to_device(clock)
        caches: dict[Side, SkipCache | None] = {"train": self._train, "val": self._val}
        self._sources = {
            side: PortionSource(
                self._fabric,
                self._model,
                self._data.sides[side],
                cache,
                self._loss,
                self._portion_rows,
            )
            for side, cache in caches.items()
        }

    def split(self, ids: Sequence[int]) -> list[Tensor | list[int]]:
        """Rows of cached samples in even portions, and samples of similar length to recompute."""
        return self._sources["train"].split(self._own(ids))

    def load(self, part: Tensor | list[int]) -> Portion:
        """Rows of the cache, or tokens."""
        return self._sources["train"].load(part)

    def prefetch(self, ids: Sequence[int]) -> None:
        """Have a batch read ahead from disk, and brought to a GPU."""
        self._sources["train"].prefetch(self._own(ids))

    def finish_step(self) -> None:
        """Pass on what the folded algebra has gathered."""
        self._loss.finish_step()

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean loss over the validation samples, from a cache of their own."""
        source = self._sources["val"]
        source.prefetch(self._val_ids)
        portions = map(source.load, source.split(self._val_ids))
        return mean_loss(portions, self._data.val, self._ranks)

    def describe(self) -> dict[str, Any]:
        """Where the cache is, what it takes, and how its losses are computed.

        Bytes and samples are those of all ranks, the rest is the first one's.
        """
        each = self._ranks.gather(self._describe_own())
        added = ("cache_bytes", "val_cache_bytes", "cache_samples", "recomputed_samples")
        return each[0] | {name: sum(own[name] for own in each) for name in added}

    def _describe_own(self) -> dict[str, Any]:
        caches = [cache for cache in (self._train, self._val) if cache is not None]
        is_folded = self._plan.algebra.name == "folded" and all(c.layout.n_logits for c in caches)
        # a cache that was kept may hold more than was planned, or be mapped where it is too large
        cached = _count_cached(self._train, self._train_ids)
        cached_val = _count_cached(self._val, self._val_ids)
        left = len(self._train_ids) - cached + len(self._val_ids) - cached_val
        backbone = self._builder.backbone
        return {
            "streamed_blocks": backbone is not None,
            **({} if backbone is None else backbone.figures),
            "cache_bytes": self._train.nbytes if self._train else 0,
            "val_cache_bytes": self._val.nbytes if self._val else 0,
            "cache_tier": self._tier(caches),
            "cache_dtype": str(self._plan.layout.dtype).removeprefix("torch."),
            "cache_kept": self._is_kept,
            "shared_prefix_tokens": self._train.prefix_tokens if self._train else 0,
            "cache_samples": cached,
            "recomputed_samples": left,
            **self._plan.algebra.describe(),
            "algebra": "folded" if is_folded else "head",
        }

    def _tier(self, caches: Sequence[SkipCache]) -> Tier:
        """Where what is served lies, which may not be where it was planned to."""
        if any(cache.arrays.maps for cache in caches):
            return "disk"
        has_moved = self._plan.tier == "ram" and self._fabric.device.type != "cpu"
        if has_moved and caches and not any(is_afar(c.arrays, self._fabric.device) for c in caches):
            return "device"
        return self._plan.tier

    def describe_state(self) -> dict[str, Any] | None:
        """What decided tier, algebra and samples; free memory may be another when it is resumed."""
        plan = self._plan
        return {
            "tier": plan.tier,
            "capacity_bytes": plan.capacity_bytes,
            "was_kept": self._is_kept,
        }

    @property
    def _is_kept(self) -> bool:
        """True where the run found its cache, and its clock holds no building."""
        found = bool(self._train and self._train.is_kept)
        return found if self._was_kept is None else self._was_kept

    def _provide(
        self, side: Side, ids: Sequence[int], clock: Clock, part: str, stop: StopRequest
    ) -> SkipCache | None:
        if not ids:
            return None  # fewer samples than ranks
        samples = self._data.sides[side]
        planned = self._plan.train_ids if side == "train" else self._plan.val_ids
        lengths = samples.lengths
        tokens = sum(lengths[i] for i in planned)
        builder = replace(self._builder, uncounted=partial(clock.excluded, part))
        done, started, is_projected = 0, time.monotonic(), side == "val"
        with Bar(f"Skip-Cache, {side}", tokens, "tokens") as bar:

            def show_progress(ids: Sequence[int], writer: Writer) -> None:
                nonlocal done, is_projected
                stop.check_apart()  # nothing is lost that a kept cache would have
                with clock.excluded(part):
                    batch_tokens = sum(lengths[i] for i in ids)
                    done += batch_tokens
                    seconds = time.monotonic() - started
                    if not is_projected and (done >= _PROJECT_AFTER_TOKENS or done == tokens):
                        is_projected = True
                        rows = sum(samples.supervised_counts[i] for i in planned)
                        serving = writer.measure_seconds_per_row() * rows
                        building = seconds / done * tokens
                        text = describe_projection(self._plan, self._passes, building, serving)
                        note(text + ("" if self._ranks.is_alone else " (the share of one rank)"))
                    bar.advance(batch_tokens, f"{done / seconds:,.0f} tokens/s")

            with clock.part(part), self._fabric.autocast():
                return builder.provide(side, samples, ids, planned, show_progress)

    def _provide_streamed(
        self, backbone: StreamedBackbone, clock: Clock, stop: StopRequest
    ) -> None:
        """Both caches, built in one sweep over the blocks."""
        data, plan = self._data, self._plan
        sides: list[tuple[Side, Samples, Sequence[int], Sequence[int], str]] = [
            ("train", data.train, self._train_ids, plan.train_ids, "cache_build"),
            ("val", data.val, range(len(data.val)), plan.val_ids, "validation"),
        ]
        requests = [
            Request(
                side=side,
                samples=samples,
                wanted=wanted,
                planned=planned,
                builder=replace(self._builder, uncounted=partial(clock.excluded, part)),
                part=part,
            )
            for side, samples, wanted, planned, part in sides
        ]
        with self._fabric.autocast():
            caches = provide_streamed(backbone, requests, clock, stop)
        self._train, self._val = caches["train"], caches["val"]

    def _own(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if i in self._own_train]

    def _move_to_device(self, clock: Clock) -> None:
        """Bring both caches from RAM to where they are used, where there is room by now."""
        device = self._fabric.device
        caches = [cache for cache in (self._train, self._val) if cache is not None]
        if not self._plan.may_move or not all(is_afar(cache.arrays, device) for cache in caches):
            return
        if sum(cache.nbytes for cache in caches) > measure_free(device, Path()).get("device", 0):
            return
        with clock.part("cache_build"):
            self._train, self._val = (
                cache and replace(cache, arrays=cache.arrays.to(device))
                for cache in (self._train, self._val)
            )


def own_val_ids(data: TokenizedData, ranks: Ranks) -> list[int]:
    """Validation samples of this rank's share."""
    return share(range(len(data.val)), data.val.lengths, ranks.size)[ranks.rank]


def _count_cached(cache: SkipCache | None, ids: Sequence[int]) -> int:
    return 0 if cache is None else int((cache.index.counts[list(ids)] > 0).sum())


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
