"""The Skip-Caches of a run: opened or built by its clock, and what its files say of them.

What goes into them is `cache.plan`'s decision, how they are built and kept `cache.build`'s.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from skip2bench.cache.arrays import Tier, Writer
from skip2bench.cache.build import CacheBuilder, Side
from skip2bench.cache.plan import CachePlan, CacheUse, describe_projection, measure_free
from skip2bench.cache.skip_cache import SkipCache, stored_counts
from skip2bench.cache.staging import is_afar
from skip2bench.cache.streamed_build import Request, provide_streamed
from skip2bench.io.console import Bar, note
from skip2bench.machine.clock import Clock
from skip2bench.results.run_records import AlgebraCost, ObjectiveFigures
from skip2bench.train.attempt import Attempt
from skip2bench.train.ranks.sharded import uncounted_passes

_PROJECT_AFTER_TOKENS = 8192
"""Tokens done before the time to build is projected from them."""
_PARTS: dict[Side, str] = {"train": "cache_build", "val": "validation"}
"""Of the clock, by the side whose cache they make."""


class RunCaches:
    """Caches of the training and of the validation samples, each of this rank's share."""

    def __init__(
        self, attempt: Attempt, builder: CacheBuilder, use: CacheUse, readers: int = 1
    ) -> None:
        """Nothing is opened or computed before `provide`.

        Args:
            attempt: Of the run.
            builder: Opens or builds the caches by its plan.
            use: What this rank asks of them.
            readers: Configurations that train from them.
        """
        self.use = use
        self.sides: dict[Side, SkipCache | None] = {"train": None, "val": None}
        """None where no sample of a side is cached."""
        self._attempt, self._builder, self._readers = attempt, builder, readers

    @property
    def plan(self) -> CachePlan:
        """What was decided for them."""
        return self._builder.plan

    def provide(self, clock: Clock) -> None:
        """Open or compute both caches, then drop the backbone where no rank needs it any more.

        The training cache counts as `cache_build`, that of the validation samples as `validation`.

        Raises:
            KeyboardInterrupt: somebody asked to stop.
        """
        ranks = self._attempt.ranks
        ranks.together(lambda: self._open_or_build(clock))
        is_needed = self._attempt.plan.config.sample_prompt is not None
        if not is_needed and ranks.sum(self._describe_own().recomputed_samples or 0)[0] == 0:
            self._builder.model.release_backbone()
            self._move_to_device(clock)

    def describe(self) -> ObjectiveFigures:
        """Where the cache is, what it takes, and how its losses are computed.

        Bytes and samples are those of all ranks, the rest is the first one's.
        """
        each = self._attempt.ranks.gather(self._describe_own())
        added = ("cache_bytes", "val_cache_bytes", "cache_samples", "recomputed_samples")
        sums = {name: sum(getattr(own, name) for own in each) for name in added}
        return each[0].model_copy(update=sums)

    def describe_state(self) -> dict[str, Any]:
        """What decided tier, algebra and samples; free memory may be another when it is resumed."""
        return {
            "tier": self.plan.tier,
            "capacity_bytes": self.plan.capacity_bytes,
            "was_kept": self._is_kept,
        }

    def _open_or_build(self, clock: Clock) -> None:
        requests = [self._request(side, clock) for side in self.sides]
        backbone, attempt = self._builder.backbone, self._attempt
        if backbone is not None:
            with attempt.fabric.autocast():
                self.sides.update(provide_streamed(backbone, requests, clock, attempt.stop))
            return
        with uncounted_passes(self._builder.model, attempt.ranks):
            for request in requests:
                if request.wanted:  # else there are fewer samples than ranks
                    self.sides[request.side] = self._provide(request, clock)

    def _request(self, side: Side, clock: Clock) -> Request:
        use, plan, part = self.use, self.plan, _PARTS[side]
        is_train = side == "train"
        return Request(
            side=side,
            samples=use.train if is_train else use.val,
            wanted=use.train_ids if is_train else use.val_ids,
            planned=plan.train_ids if is_train else plan.val_ids,
            builder=replace(self._builder, uncounted=partial(clock.excluded, part)),
            part=part,
        )

    def _provide(self, request: Request, clock: Clock) -> SkipCache | None:
        samples, tokens, is_alone = request.samples, request.tokens, self._attempt.ranks.is_alone
        done, started, is_projected = 0, time.monotonic(), request.side == "val"
        with Bar(f"Skip-Cache, {request.side}", tokens, "tokens") as bar:

            def show_progress(ids: Sequence[int], writer: Writer) -> None:
                nonlocal done, is_projected
                self._attempt.stop.check_apart()  # nothing is lost that a kept cache would have
                with clock.excluded(request.part):
                    batch_tokens = sum(samples.lengths[i] for i in ids)
                    done += batch_tokens
                    seconds = time.monotonic() - started
                    if not is_projected and (done >= _PROJECT_AFTER_TOKENS or done == tokens):
                        is_projected = True
                        counts = stored_counts(samples, self.plan.layout)
                        rows = sum(counts[i] for i in request.planned)
                        serving = writer.measure_seconds_per_row() * rows
                        building = seconds / done * tokens
                        passes = self._readers * self.use.passes
                        text = describe_projection(self.plan, passes, building, serving)
                        note(text + ("" if is_alone else " (the share of one rank)"))
                    bar.advance(batch_tokens, f"{done / seconds:,.0f} tokens/s")

            with clock.part(request.part), self._attempt.fabric.autocast():
                return request.builder.provide(
                    request.side, samples, request.wanted, request.planned, show_progress
                )

    def _move_to_device(self, clock: Clock) -> None:
        """Bring both caches from RAM to where they are used, where there is room by now."""
        device, caches = self._attempt.fabric.device, self._made
        if not self.plan.may_move or not all(is_afar(cache.arrays, device) for cache in caches):
            return
        if sum(cache.nbytes for cache in caches) > measure_free(device, Path()).get("device", 0):
            return
        with clock.part("cache_build"):
            for side, cache in self.sides.items():
                if cache is not None:
                    self.sides[side] = replace(cache, arrays=cache.arrays.to(device))

    @property
    def _made(self) -> list[SkipCache]:
        return [cache for cache in self.sides.values() if cache is not None]

    def _describe_own(self) -> ObjectiveFigures:
        train, val, plan = self.sides["train"], self.sides["val"], self.plan
        is_folded = plan.algebra_name == "folded" and all(c.layout.n_logits for c in self._made)
        # a cache that was kept may hold more than was planned, or be mapped where it is too large
        cached = _count_cached(train, self.use.train_ids)
        cached_val = _count_cached(val, self.use.val_ids)
        left = len(self.use.train_ids) - cached + len(self.use.val_ids) - cached_val
        backbone = self._builder.backbone
        costs: dict[str, AlgebraCost] = {
            name: AlgebraCost(**asdict(cost))
            for name, cost in (plan.algebra.costs.items() if plan.algebra else ())
        }
        return ObjectiveFigures(
            streamed_blocks=backbone is not None,
            **({} if backbone is None else backbone.figures),
            cache_bytes=train.nbytes if train else 0,
            val_cache_bytes=val.nbytes if val else 0,
            cache_tier=self._tier,
            cache_dtype=str(plan.layout.dtype).removeprefix("torch."),
            cache_kept=self._is_kept,
            shared_prefix_tokens=train.prefix_tokens if train else 0,
            cache_samples=cached,
            recomputed_samples=left,
            algebra=None if plan.algebra is None else "folded" if is_folded else "head",
            algebra_costs=costs or None,
        )

    @property
    def _tier(self) -> Tier:
        """Where what is served lies, which may not be where it was planned to."""
        caches, device = self._made, self._attempt.fabric.device
        if any(cache.arrays.maps for cache in caches):
            return "disk"
        has_moved = self.plan.tier == "ram" and device.type != "cpu"
        if has_moved and caches and not any(is_afar(cache.arrays, device) for cache in caches):
            return "device"
        return self.plan.tier

    @property
    def _is_kept(self) -> bool:
        """True where the run found its cache when it began, and its clock holds no building.

        The cache of a run that goes on is where it was, or made again, which no figure shows; what
        lies in its scratch folder is its own.
        """
        earlier, train = self._attempt.objective_state, self.sides["train"]
        if earlier is not None:
            return bool(earlier["was_kept"])
        is_asked_for = self._attempt.plan.config.cache_dir is not None
        return is_asked_for and train is not None and train.is_kept


def _count_cached(cache: SkipCache | None, ids: Sequence[int]) -> int:
    return 0 if cache is None else int((cache.index.counts[list(ids)] > 0).sum())
