"""The cache of a run: opened where one was kept, else built; kept where the user asks for it."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from skip2bench.cache import BuildOrder, SampleIndex, SkipCache, fill, supervised_rows
from skip2bench.cache_arrays import FileWriter, MemoryWriter, Writer, map_files
from skip2bench.cache_entry import DamagedError
from skip2bench.cache_folder import CacheFolder, entry_name, write_arrays
from skip2bench.cache_plan import CachePlan
from skip2bench.console import note, warn
from skip2bench.data import Samples, collate
from skip2bench.errors import Skip2BenchError
from skip2bench.skip2 import SkipGPT

_CHECKED_SAMPLES = 3
_TOLERANCE = {
    torch.float32: 1e-4,
    torch.float16: 5e-3,
    torch.bfloat16: 2e-2,
    torch.int8: 3e-2,
}
"""How far a kept sample may be from a recomputed one, as a share of its norm, by stored dtype."""

Side = Literal["train", "val"]
OnBatch = Callable[[Sequence[int], Writer], None]
"""Called with the samples of every forward pass and where they were written."""


@dataclass(frozen=True, kw_only=True)
class CacheBuilder:
    """Opens or builds the caches of one run."""

    model: SkipGPT
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
        if self.folder is None:
            return self._build(samples, planned, on_batch) if planned else None
        kept = self._open_kept(side, samples, wanted)
        if kept is not None or not planned:
            return kept
        name = entry_name(self.key, self.plan.layout, samples, planned)
        with self._locked(self.folder, name):
            # whoever held the lock may have built it
            kept = self._open_kept(side, samples, planned)
            if kept is not None:
                return kept
            return self._build_and_keep(self.folder, name, side, samples, planned, on_batch)

    def _open_kept(self, side: Side, samples: Samples, ids: Sequence[int]) -> SkipCache | None:
        assert self.folder is not None
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
        tolerance = max(_TOLERANCE[cache.layout.dtype], _TOLERANCE[cache.layout.compute_dtype])
        step = max(1, len(ids) // _CHECKED_SAMPLES)
        was_training = self.model.training
        self.model.eval()
        for i in list(ids)[::step][:_CHECKED_SAMPLES]:
            input_ids, labels = collate(samples, [i])
            rows, targets = supervised_rows(labels)
            outputs = self.model.compute_features(input_ids.to(self.device))
            fresh = torch.stack([h[0, rows.to(self.device)] for h in outputs], dim=1).float()
            served = cache.serve(cache.index.find_rows([i]), self.device)
            distance = (served.features.float() - fresh).norm() / fresh.norm()
            if not distance <= tolerance or not torch.equal(served.targets.cpu(), targets):
                raise DamagedError(f"sample {i} is off by {float(distance):.1e} of its norm")
        self.model.train(was_training)

    def _build(self, samples: Samples, planned: Sequence[int], on_batch: OnBatch) -> SkipCache:
        """In memory; the disk tier always has a folder."""
        layout = self.plan.layout
        order = BuildOrder.of(self.model, samples, planned, self.device)
        index = SampleIndex.of(order.ids, samples)
        place = self.device if self.plan.tier == "device" else torch.device("cpu")
        writer = MemoryWriter(layout, index.rows, place)
        fill(writer, layout, self.model, samples, order, self.device, on_batch)
        return SkipCache(
            layout=layout, arrays=writer.finish(), index=index, prefix_tokens=len(order.prefix)
        )

    def _build_and_keep(
        self,
        folder: CacheFolder,
        name: str,
        side: Side,
        samples: Samples,
        planned: Sequence[int],
        on_batch: OnBatch,
    ) -> SkipCache:
        layout = self.plan.layout
        order = BuildOrder.of(self.model, samples, planned, self.device)
        about = self.about | {"side": side, "samples": len(planned)}
        commit = partial(folder.commit, name, self.key, layout, samples, order.ids, about=about)
        with _disk_errors(folder.root), folder.building(name) as aside:
            if self.plan.tier == "disk":
                writer = FileWriter(layout, aside)
                fill(writer, layout, self.model, samples, order, self.device, on_batch)
                checksums = writer.close()
                with self.uncounted():
                    entry = commit(checksums=checksums)
                index = SampleIndex.of(order.ids, samples)
                arrays = map_files(entry.folder, layout, index.rows)
                return SkipCache(
                    layout=layout, arrays=arrays, index=index, prefix_tokens=len(order.prefix)
                )
            cache = self._build(samples, planned, on_batch)
            try:
                with self.uncounted():
                    commit(checksums=write_arrays(cache.arrays.tensors, aside, layout))
            except OSError as error:
                warn(f"the cache could not be kept in {str(folder.root)!r}: {error.strerror}")
            return cache

    @contextmanager
    def _locked(self, folder: CacheFolder, name: str) -> Iterator[None]:
        with self.uncounted():
            lock = folder.lock(name)
        try:
            yield
        finally:
            lock.release()


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Say what a failing disk means."""
    try:
        yield
    except OSError as error:
        raise Skip2BenchError(
            f"cannot write the cache to {str(folder)!r} ({os.strerror(error.errno or 0)}); choose "
            "another --cache-dir, a smaller --cache-max-bytes, or --cache-tier ram"
        ) from error
