"""The cache of a run: opened where one was kept, else built; kept where the user asks for it."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from skip2bench.cache.arrays import (
    TOLERANCE,
    Arrays,
    FileWriter,
    MappedWriter,
    MemoryWriter,
    Writer,
    map_files,
)
from skip2bench.cache.kept import (
    CacheFolder,
    DamagedError,
    Entry,
    describe_content,
    entry_name,
    write_arrays,
)
from skip2bench.cache.plan import CachePlan
from skip2bench.cache.skip_cache import (
    BuildOrder,
    SampleIndex,
    Served,
    SkipCache,
    fill,
    stored_rows,
)
from skip2bench.cache.staging import PinnedWriter
from skip2bench.cache.streaming import StreamedBackbone
from skip2bench.data.samples import Samples
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note, warn
from skip2bench.models.top import CachedGPT, TopGPT

_CHECKED_SAMPLES = 3
Side = Literal["train", "val"]
OnBatch = Callable[[Sequence[int], Writer], None]
"""Called with the samples of every forward pass and where they were written."""


@dataclass(frozen=True, kw_only=True)
class Building:
    """A cache in the making."""

    writer: MemoryWriter | FileWriter | MappedWriter
    order: BuildOrder
    index: SampleIndex
    samples: Samples
    about: dict[str, Any]
    name: str | None
    """Of the entry that it becomes; None where it ends with the run."""


@dataclass(frozen=True, kw_only=True)
class CacheBuilder:
    """Opens or builds the caches of one run."""

    model: CachedGPT
    device: torch.device
    plan: CachePlan
    folder: CacheFolder | None
    """Where caches are kept; None where they are in memory and end with the run."""
    key: dict[str, Any]
    """What the activations depend on besides samples and blocks."""
    about: dict[str, Any]
    """Names of model and data, for whoever lists the folder."""
    uncounted: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered around what is no part of building: waiting and saving."""
    backbone: StreamedBackbone | None = None
    """Runs the blocks where `model` does not hold them."""

    def provide(
        self,
        side: Side,
        samples: Samples,
        wanted: Sequence[int],
        planned: Sequence[int],
        on_batch: OnBatch,
    ) -> SkipCache | None:
        """The cache of one side; None where nothing of it is to be cached.

        Args:
            side: Which one.
            samples: All samples of the side.
            wanted: Those that the run uses.
            planned: Those for which there is room, should the cache have to be built.
            on_batch: Shows progress.
        """
        kept = self.open_kept(side, samples, wanted)
        if kept is not None or not planned:
            return kept
        with self.locked(samples, planned) as name:
            # whoever held the lock may have built it
            kept = self.open_kept(side, samples, planned) if name else None
            if kept is not None:
                return kept
            building = self.start(side, samples, planned, name)
            assert not isinstance(building.writer, MappedWriter)
            with disk_errors(self._place):
                fill(building.writer, self.model, samples, building.order, self.device, on_batch)
            return self.finish(building)

    def open_kept(self, side: Side, samples: Samples, ids: Sequence[int]) -> SkipCache | None:
        """A kept cache that serves the given samples and agrees with the model; None without."""
        if self.folder is None:
            return None
        layout = self.plan.layout
        # one without base logits serves too: the other algebra is cheaper than a forward pass
        for wanted in dict.fromkeys((layout, replace(layout, n_logits=0))):
            entry = self.folder.find(self.key, wanted, samples, ids)
            if entry is None:
                continue
            tier = self.plan.tier if entry.nbytes <= self.plan.capacity_bytes else "disk"
            try:
                cache = entry.open(wanted, samples, ids, tier, self.device)
                self._compare_with_model(cache, samples, ids)
            except (DamagedError, OSError) as error:
                warn(f"the kept cache {entry.name} is not used: {error}")
                if isinstance(error, DamagedError):
                    entry.discard()
                continue
            note(f"Skip-Cache for {side}: kept in {entry.name}, no forward pass")
            return cache
        return None

    def _compare_with_model(self, cache: SkipCache, samples: Samples, ids: Sequence[int]) -> None:
        """Recompute a few samples.

        Raises:
            DamagedError: one of them is not what the model gives.
        """
        tolerance = max(TOLERANCE[cache.layout.dtype], TOLERANCE[cache.layout.compute_dtype])
        step = max(1, len(ids) // _CHECKED_SAMPLES)
        chosen = list(ids)[::step][:_CHECKED_SAMPLES]
        for i, fresh in zip(chosen, self._recompute(samples, chosen), strict=True):
            served = cache.serve(cache.index.find_rows([i]), self.device)
            distance = _measure_distance(self.model, served, fresh)
            *_, targets = stored_rows(samples, [i], cache.layout)
            if not distance <= tolerance or not torch.equal(served.targets.cpu(), targets):
                raise DamagedError(f"sample {i} is off by {float(distance):.1e} of its norm")

    def _recompute(self, samples: Samples, ids: Sequence[int]) -> Iterable[Tensor]:
        """Features (n, K', d) of each sample, run by itself."""
        if self.backbone is not None:
            return self.backbone.compute_samples(samples, ids)
        was_training = self.model.training
        self.model.eval()
        features = []
        for i in ids:
            input_ids, rows, _ = stored_rows(samples, [i], self.plan.layout)
            outputs = self.model.compute_features(input_ids.to(self.device))
            features.append(torch.stack([h[0, rows.to(self.device)] for h in outputs], dim=1))
        self.model.train(was_training)
        return features

    def start(
        self, side: Side, samples: Samples, planned: Sequence[int], name: str | None
    ) -> Building:
        """Make room for the planned samples.

        Args:
            side: Which one.
            samples: All samples of the side.
            planned: Those to cache.
            name: Of the entry to keep it as; see `locked`.

        Raises:
            Skip2BenchError: there is no room on the disk.
        """
        layout = self.plan.layout
        order = BuildOrder.of(self.model, samples, planned, self.device)
        index = SampleIndex.of(order.ids, samples, layout)
        writer: MemoryWriter | FileWriter | MappedWriter
        if self.plan.tier != "disk":
            place = self.device if self.plan.tier == "device" else torch.device("cpu")
            is_afar = self.device.type == "cuda" and place != self.device
            writer = (
                PinnedWriter(layout, index.rows, self.device)
                if is_afar and self.backbone is None
                else MemoryWriter(layout, index.rows, place)
            )
        else:
            assert self.folder is not None  # the disk tier always has one
            assert name is not None
            aside = self.folder.find_aside(name)
            with disk_errors(self.folder.root):
                writer = (
                    FileWriter(layout, aside)
                    if self.backbone is None
                    else MappedWriter(layout, aside, index.rows)
                )
        return Building(
            writer=writer,
            order=order,
            index=index,
            samples=samples,
            about=self.about | {"side": side, "samples": len(planned)},
            name=name,
        )

    def finish(self, building: Building) -> SkipCache:
        """The filled cache, kept where it is to be kept."""
        writer = building.writer
        with disk_errors(self._place):
            if building.name is not None and not isinstance(writer, MemoryWriter):
                checksums = writer.close()
                with self.uncounted():
                    entry = self._commit(building, checksums)
                arrays = map_files(entry.folder, self.plan.layout, building.index.rows)
            else:
                arrays = writer.finish()
        if building.name is not None and isinstance(writer, MemoryWriter):
            with self.uncounted():
                self._keep(building, arrays)
        return SkipCache(
            layout=self.plan.layout,
            arrays=arrays,
            index=building.index,
            prefix_tokens=len(building.order.prefix),
        )

    def _keep(self, building: Building, arrays: Arrays) -> None:
        """Write what is in memory; the run goes on without where that fails."""
        assert self.folder is not None
        assert building.name is not None
        try:
            aside = self.folder.find_aside(building.name)
            checksums = write_arrays(arrays.tensors, aside, self.plan.layout)
            self._commit(building, checksums)
        except OSError as error:
            warn(f"the cache could not be kept in {str(self.folder.root)!r}: {error.strerror}")

    def _commit(self, building: Building, checksums: dict[str, str]) -> Entry:
        assert self.folder is not None
        assert building.name is not None
        content = describe_content(self.key, self.plan.layout, building.samples, building.order.ids)
        return self.folder.commit(building.name, content, checksums, building.about)

    @contextmanager
    def locked(self, samples: Samples, planned: Sequence[int]) -> Iterator[str | None]:
        """Within, no other process builds this cache; its name, None where nothing is kept."""
        if self.folder is None:
            yield None
            return
        name = entry_name(self.key, self.plan.layout, samples, planned)
        with self.uncounted():
            lock = self.folder.lock(name)
        try:
            with disk_errors(self.folder.root), self.folder.building(name):
                yield name
        finally:
            lock.release()

    @property
    def _place(self) -> Path:
        """What a full disk is about."""
        return Path() if self.folder is None else self.folder.root


def _measure_distance(model: CachedGPT, served: Served, fresh: Tensor) -> Tensor:
    """How far what is served is from features (n, K', d) made anew, as a share of their norm."""
    pairs = [(served.features, fresh)]
    if served.projected is not None:
        assert not isinstance(model, TopGPT)
        blocks = [model.feature_blocks.index(block) for block in model.settings.blocks]
        projected = model.adapters.project([fresh[:, k] for k in blocks])
        pairs = [(served.features, fresh[:, -1:]), (served.projected, torch.stack(projected, 1))]
    shares = [(kept.float() - new.float()).norm() / new.float().norm() for kept, new in pairs]
    return torch.stack(shares).max()


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Say what a failing disk means."""
    try:
        yield
    except OSError as error:
        raise Skip2BenchError(
            f"cannot write the cache to {str(folder)!r} ({os.strerror(error.errno or 0)}); choose "
            "another --cache-dir, a smaller --cache-max-bytes, or --cache-tier ram"
        ) from error
