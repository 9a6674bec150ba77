"""Both caches of a run in one sweep over the blocks, for a model larger than memory.

What was kept is opened; what is missing of both sides is built together, so that each block's
weights are read once. Held-out text that no run caches gets its loss the same way.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial

import torch

from skip2bench.cache.arrays import MappedWriter, MemoryWriter
from skip2bench.cache.build import Building, CacheBuilder, Side, disk_errors
from skip2bench.cache.kept import entry_name
from skip2bench.cache.loss import ServedLoss, portion_rows
from skip2bench.cache.plan import CachePlan
from skip2bench.cache.skip_cache import BuildOrder, SampleIndex, SkipCache
from skip2bench.cache.streaming import StreamedBackbone, Task
from skip2bench.data.samples import Samples
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import Bar, note
from skip2bench.io.units import format_amount, format_bytes
from skip2bench.machine.clock import Clock
from skip2bench.machine.signals import StopRequest
from skip2bench.models.precise import in_float64


@dataclass(frozen=True, kw_only=True)
class Request:
    """One side of a run's data."""

    side: Side
    samples: Samples
    wanted: Sequence[int]
    """Samples that the run uses."""
    planned: Sequence[int]
    """Those for which there is room."""
    builder: CacheBuilder
    """Its `uncounted` leaves time out of this side's part of the clock."""
    part: str
    """Of the clock."""

    @property
    def tokens(self) -> int:
        """Tokens of the planned samples."""
        lengths = self.samples.lengths
        return sum(lengths[i] for i in self.planned)

    @property
    def name(self) -> str:
        """Of the entry that would be kept; sides are locked in the order of these."""
        builder = self.builder
        return entry_name(builder.key, builder.plan.layout, self.samples, self.planned)


def provide_streamed(
    backbone: StreamedBackbone, requests: Sequence[Request], clock: Clock, stop: StopRequest
) -> dict[Side, SkipCache]:
    """The caches of all sides, each opened or built by its own part of the clock.

    Raises:
        Skip2BenchError: a side has to be built and not all of it has room, or the disk is full.
    """
    caches: dict[Side, SkipCache] = {}

    def open_kept(request: Request, ids: Sequence[int]) -> bool:
        with clock.part(request.part):
            kept = request.builder.open_kept(request.side, request.samples, ids)
        if kept is not None:
            caches[request.side] = kept
        return kept is not None

    missing = [request for request in requests if not open_kept(request, request.wanted)]
    _check_room(missing)
    with ExitStack() as locks:
        buildings: dict[Side, Building] = {}
        started = []
        # in one order for every process: two of them never wait for each other
        for request in sorted(missing, key=lambda request: request.name):
            builder = request.builder
            with clock.part(request.part):
                name = locks.enter_context(builder.locked(request.samples, request.planned))
            if name is not None and open_kept(request, request.planned):
                continue  # whoever held the lock has built it
            with clock.part(request.part):
                buildings[request.side] = builder.start(
                    request.side, request.samples, request.planned, name
                )
            started.append(request)
        # the training side first: it is the one that waits for the disk
        started.sort(key=requests.index)
        if started:
            _fill(backbone, started, buildings, clock, stop)
        for request in started:
            with clock.part(request.part):
                caches[request.side] = request.builder.finish(buildings[request.side])
    return caches


def _fill(
    backbone: StreamedBackbone,
    requests: Sequence[Request],
    buildings: dict[Side, Building],
    clock: Clock,
    stop: StopRequest,
) -> None:
    n_blocks = backbone.model.config.n_layer
    tokens = sum(request.tokens for request in requests)
    progress = _Progress(requests[0].builder.plan, tokens, n_blocks, stop)
    tasks = []
    for request in requests:
        building = buildings[request.side]
        assert isinstance(building.writer, MemoryWriter | MappedWriter)
        tasks.append(
            Task(
                samples=request.samples,
                order=building.order,
                layout=request.builder.plan.layout,
                space=building.writer,
                timed=partial(clock.part, request.part),
                on_batch=partial(
                    progress.count, request.samples.lengths, partial(clock.excluded, request.part)
                ),
            )
        )
    with progress.bar, disk_errors(backbone.scratch):
        backbone.fill(tasks)


class _Progress:
    """One bar over blocks × tokens, and the time to build projected after the first block."""

    def __init__(self, plan: CachePlan, tokens: int, n_blocks: int, stop: StopRequest) -> None:
        self._plan, self._tokens, self._n_blocks, self._stop = plan, tokens, n_blocks, stop
        self.bar = Bar("Skip-Cache, block by block", tokens * n_blocks, "block tokens")
        self._done, self._started = 0, time.monotonic()

    def count(
        self,
        lengths: Sequence[int],
        uncounted: Callable[[], AbstractContextManager[None]],
        ids: Sequence[int],
    ) -> None:
        """Count a batch that has passed a block; stop here where that was asked for."""
        self._stop.check()
        with uncounted():
            tokens = sum(lengths[i] for i in ids)
            before, self._done = self._done, self._done + tokens
            seconds = time.monotonic() - self._started
            if before < self._tokens <= self._done:
                note(
                    f"Skip-Cache: {format_bytes(self._plan.nbytes)} on {self._plan.tier}, "
                    f"validation included; about {seconds * self._n_blocks:.0f} s to build, one of "
                    f"{self._n_blocks} blocks at a time"
                )
            block = min(self._done // self._tokens + 1, self._n_blocks)
            self.bar.advance(tokens, f"block {block} of {self._n_blocks}")


def _check_room(missing: Sequence[Request]) -> None:
    """Check that nothing is to be recomputed.

    Raises:
        Skip2BenchError: samples do not fit.
    """
    left = sum(len(request.wanted) - len(request.planned) for request in missing)
    if left:
        plan = missing[0].builder.plan
        raise Skip2BenchError(
            f"{format_amount(left, 'sample')} too many for {format_bytes(plan.capacity_bytes)} of "
            f"Skip-Cache on {plan.tier}, and stream_blocks holds no backbone to recompute "
            "them: raise --cache-max-bytes, use --cache-tier disk, or store less with "
            "--cache-dtype or --blocks"
        )


@torch.no_grad()
def streamed_validation_loss(backbone: StreamedBackbone, samples: Samples) -> float:
    """Mean loss over the supervised positions, by one sweep over the blocks.

    Their features lie in a scratch file meanwhile.

    Raises:
        Skip2BenchError: the disk is full.
    """
    model, layout, device = backbone.model, backbone.layout, backbone.device
    order = BuildOrder.of(model, samples, range(len(samples)), device)
    index = SampleIndex.of(order.ids, samples, layout)
    folder = backbone.scratch / "loss"
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            writer = MappedWriter(layout, folder, index.rows)
            backbone.fill([Task(samples=samples, order=order, layout=layout, space=writer)])
            cache = SkipCache(layout=layout, arrays=writer.finish(), index=index)
        loss = ServedLoss(model, "head")
        size = portion_rows(model, layout, "head", device)
        portions = torch.split(torch.arange(index.rows), size)
        losses = [in_float64(loss(cache.serve(rows, device))) for rows in portions]
        return float(torch.stack(losses).sum()) / index.rows
    finally:
        shutil.rmtree(folder, ignore_errors=True)
