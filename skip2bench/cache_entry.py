"""One kept Skip-Cache on disk: its manifest, and its files checked against it."""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from skip2bench.cache import SampleIndex, SkipCache
from skip2bench.cache_arrays import Layout, Tier, map_files, read_files
from skip2bench.checksums import read_file
from skip2bench.data import Samples

FORMAT = 1
MANIFEST = "manifest.json"


class DamagedError(Exception):
    """An entry's files are not what its manifest says."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A cache on disk."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.name

    @property
    def layout(self) -> Layout:
        """Of its arrays."""
        stored = self.manifest["layout"]
        return Layout(
            blocks=tuple(stored["blocks"]),
            n_embd=stored["n_embd"],
            dtype=getattr(torch, stored["dtype"]),
            compute_dtype=getattr(torch, stored["compute_dtype"]),
            n_logits=stored["n_logits"],
        )

    @property
    def rows(self) -> int:
        """Supervised positions."""
        return sum(self.manifest["counts"])

    @property
    def nbytes(self) -> int:
        """Bytes of its files."""
        return sum(file["bytes"] for file in self.manifest["files"].values())

    def verify(self) -> None:
        """Check sizes and checksums.

        Raises:
            DamagedError: which file is not as it was written.
        """
        self._check_sizes()
        for name in self.layout.specs:
            self._check_sum(name, read_file(self.folder / f"{name}.bin"))

    def open(
        self, wanted: Layout, samples: Samples, ids: Sequence[int], tier: Tier, device: torch.device
    ) -> SkipCache:
        """The cache of the given samples with the arrays of `wanted`, its files verified.

        Raises:
            DamagedError: see `verify`.
        """
        layout = replace(self.layout, n_logits=wanted.n_logits)
        if tier == "disk":
            self.verify()
            arrays = map_files(self.folder, layout, self.rows)
        else:
            self._check_sizes()
            arrays, checksums = read_files(self.folder, layout, self.rows)
            for name, found in checksums.items():
                self._check_sum(name, found)
            if tier == "device":
                arrays = arrays.to(device)
        columns = tuple(layout.blocks.index(block) for block in wanted.blocks)
        return SkipCache(
            layout=layout,
            arrays=arrays,
            index=self._index(samples, ids),
            columns=None if wanted.blocks == layout.blocks else columns,
            is_kept=True,
        )

    def discard(self) -> None:
        """Make sure that nobody takes this entry for a good one; its space is reused by the next.

        Nothing happens where the folder cannot be written.
        """
        with contextlib.suppress(OSError):
            (self.folder / MANIFEST).unlink()

    def _index(self, samples: Samples, ids: Sequence[int]) -> SampleIndex:
        """Where the samples of this run lie in the entry, found by what they are made of."""
        places, row = {}, 0
        for sample_hash, count in zip(
            self.manifest["samples"], self.manifest["counts"], strict=True
        ):
            places[sample_hash] = (row, count)
            row += count
        starts = torch.zeros(len(samples), dtype=torch.long)
        counts = torch.zeros(len(samples), dtype=torch.long)
        for i in ids:
            starts[i], counts[i] = places[hash_sample(samples, i)]
        return SampleIndex(starts=starts, counts=counts)

    def _check_sizes(self) -> None:
        for name, (shape, dtype) in self.layout.specs.items():
            path = self.folder / f"{name}.bin"
            expected = self.rows * torch.Size(shape).numel() * dtype.itemsize
            found = path.stat().st_size if path.is_file() else None
            if found != expected or self.manifest["files"][name]["bytes"] != expected:
                raise DamagedError(f"{path.name} has {found} bytes instead of {expected}")

    def _check_sum(self, name: str, found: str) -> None:
        if found != self.manifest["files"][name]["checksum"]:
            raise DamagedError(f"{name}.bin does not have the checksum that was written down")


def hash_sample(samples: Samples, i: int) -> str:
    """Identity of a sample: its token ids and labels."""
    digest = hashlib.sha256()
    for tensor in (samples.input_ids[i], samples.labels[i]):
        digest.update(tensor.numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:32]
