"""The flat arrays of a Skip-Cache, one row a supervised position, in memory or in mapped files.

A layout says which arrays there are; a writer takes rows and ends as `Arrays`, which serve them: in
order for a build sample by sample, at any place for one block by block. On disk every array is a
plain file `<name>.bin` of its rows in the machine's byte order; mapped pages belong to the files,
not to the memory of this process.
"""

import mmap
import os
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import torch
from torch import Tensor

from skip2bench.cache.checksums import Checksum, read_file
from skip2bench.machine.clock import time_call

Tier = Literal["device", "ram", "disk"]
Stored = Literal["features", "projected"]
"""Arrays of blocks' outputs: whole, and projected."""
_SCALES: dict[str, str] = {"features": "scales", "projected": "projected_scales"}
"""By array, that with its scales where it is stored as int8."""

STORED_DTYPES = {"bf16": torch.bfloat16, "int8": torch.int8}
"""What a cache can store in place of the model's own dtype, by the option's name."""
TOLERANCE = {
    torch.float32: 1e-4,
    torch.float16: 5e-3,
    torch.bfloat16: 2e-2,
    torch.int8: 3e-2,
}
"""How far a kept sample may be from a recomputed one, as a share of its norm, by stored dtype."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is stored for a position, and in which dtype."""

    blocks: tuple[int, ...]
    """Blocks whose outputs are stored whole, ascending; without `whole_samples` the last one is the
    model's last."""
    n_embd: int
    dtype: torch.dtype
    """Of the stored features; int8 has one scale a position and block beside it."""
    compute_dtype: torch.dtype
    """Of the features as the model made them and gets them back."""
    n_logits: int = 0
    """Base logits of a position; 0 where they are not cached."""
    projected: int = 0
    """Numbers that each output of `projected_blocks` is stored as; 0 without a projection."""
    projected_blocks: tuple[int, ...] = ()
    """Those with an adapter, ascending."""
    whole_samples: bool = False
    """True where all positions of a sample are stored, for blocks that mix them; else those alone
    that are supervised."""

    @property
    def feature_numbers(self) -> int:
        """Elements of all stored outputs of a position, whole and projected."""
        whole, projected = len(self.blocks) * self.n_embd, len(self.projected_blocks)
        return whole + projected * self.projected

    @property
    def specs(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape of a row and dtype of every array, by name."""
        specs: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "features": ((len(self.blocks), self.n_embd), self.dtype),
            "targets": ((), torch.int64),
        }
        if self.projected:
            specs["projected"] = ((len(self.projected_blocks), self.projected), self.dtype)
        for name in [name for name in specs if name in _SCALES and self.dtype == torch.int8]:
            specs[_SCALES[name]] = (specs[name][0][:1], torch.float32)
        if self.n_logits:
            specs["base_logits"] = ((self.n_logits,), self.compute_dtype)
        return specs

    @property
    def position_bytes(self) -> int:
        """Bytes of one position in all arrays."""
        return sum(
            torch.Size(shape).numel() * dtype.itemsize for shape, dtype in self.specs.values()
        )

    def encode(
        self,
        outputs: list[Tensor],
        rows: Tensor,
        into: dict[str, Tensor],
        name: Stored = "features",
    ) -> None:
        """Store the given rows of blocks' outputs.

        Args:
            outputs: One tensor (m, d) for each of `blocks`; for "projected", (m, N) for each of
                `projected_blocks`.
            rows: (n,), places in the outputs.
            into: Arrays of n rows to write to.
            name: Of the array that is written, and its scales.
        """
        if into[name].device != rows.device:
            self._encode_afar(outputs, rows, into, name)
        elif self.dtype == outputs[0].dtype:
            # whole rows of all blocks at once, straight to their place
            torch.index_select(torch.stack(outputs, dim=1), 0, rows, out=into[name])
        else:
            for k, output in enumerate(outputs):
                self.encode_block(k, output, rows, into, name)

    def _encode_afar(
        self,
        outputs: list[Tensor],
        rows: Tensor,
        into: dict[str, Tensor],
        name: Stored = "features",
    ) -> None:
        """Encode where the outputs are; one copy for each array, that waits where it has to."""
        near = {
            own: torch.empty((len(rows), *shape), dtype=dtype, device=rows.device)
            for own, (shape, dtype) in self.specs.items()
            if own in (name, _SCALES[name])
        }
        self.encode(outputs, rows, near, name)
        for own, tensor in near.items():
            into[own].copy_(tensor, non_blocking=into[own].is_pinned())

    def encode_block(
        self,
        k: int,
        output: Tensor,
        rows: Tensor,
        into: dict[str, Tensor],
        name: Stored = "features",
    ) -> None:
        """Store the given rows of the k-th of the outputs, as `encode` would."""
        picked = output.index_select(0, rows)
        if self.dtype == torch.int8:
            picked = picked.float()
            scale = picked.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
            into[_SCALES[name]][:, k] = scale
            picked = (picked / scale[:, None]).round_()
        into[name][:, k] = picked

    def decode(self, rows: dict[str, Tensor], name: Stored = "features") -> Tensor:
        """Features (n, K', d), or projected ones (n, K, N), in the compute dtype, from rows."""
        stored = rows[name]
        if self.dtype == torch.int8:
            return (stored * rows[_SCALES[name]].unsqueeze(-1)).to(self.compute_dtype)
        return stored.to(self.compute_dtype)

    def decode_projected(self, rows: dict[str, Tensor]) -> Tensor | None:
        """Projected features (n, K, N) in the compute dtype; None without a projection."""
        return self.decode(rows, "projected") if self.projected else None


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """The arrays of a finished cache, wherever they live."""

    tensors: dict[str, Tensor]
    maps: dict[str, mmap.mmap] = field(default_factory=dict)
    """Of the disk tier: the mapped files."""

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def select(self, rows: Tensor, device: torch.device) -> dict[str, Tensor]:
        """Copies of the given rows (n,) on `device`."""
        return {
            name: tensor.index_select(0, rows.to(tensor.device, non_blocking=tensor.is_cuda)).to(
                device, non_blocking=True
            )
            for name, tensor in self.tensors.items()
        }

    def to(self, device: torch.device) -> "Arrays":
        """The arrays in the memory of `device`."""
        return Arrays(tensors={name: tensor.to(device) for name, tensor in self.tensors.items()})

    def prefetch(self, first_row: int, rows: int) -> None:
        """Ask the system to read consecutive rows ahead; nothing where they are in memory."""
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        for name, mapped in self.maps.items():
            row_bytes = self.tensors[name][:1].nbytes
            start = first_row * row_bytes // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, start, (first_row + rows) * row_bytes - start)


class Writer(Protocol):
    """Takes the rows of a new cache in order."""

    layout: Layout

    def reserve(self, rows: int) -> dict[str, Tensor]:
        """Space for the next rows, to be filled before the next call."""

    def commit(self) -> None:
        """Say that the rows are filled, or that the device has been told to."""

    def measure_seconds_per_row(self) -> float:
        """What serving a row will take, estimated from the rows that are there."""

    def finish(self) -> Arrays:
        """The arrays, after the last row."""


class MemoryWriter:
    """Arrays in the memory of a device."""

    def __init__(self, layout: Layout, rows: int, device: torch.device) -> None:
        self.layout = layout
        # made outside inference mode: autograd refuses to save inference tensors
        self._tensors = {
            name: torch.empty((rows, *shape), dtype=dtype, device=device)
            for name, (shape, dtype) in layout.specs.items()
        }
        self._row = 0

    def reserve(self, rows: int) -> dict[str, Tensor]:
        """Views of the arrays themselves."""
        start, self._row = self._row, self._row + rows
        return {name: tensor[start : self._row] for name, tensor in self._tensors.items()}

    def commit(self) -> None:
        """They are in their place."""

    def view(self, first_row: int, rows: int) -> dict[str, Tensor]:
        """Views of any consecutive rows, for whoever does not fill them in order."""
        end = first_row + rows
        return {name: tensor[first_row:end] for name, tensor in self._tensors.items()}

    def measure_seconds_per_row(self) -> float:
        """By serving some of them, in random order."""
        device = self._tensors["targets"].device
        rows = torch.randperm(self._row, generator=torch.Generator().manual_seed(0))[:4096]
        return time_call(lambda: self.finish().select(rows, device), device) / max(1, len(rows))

    def finish(self) -> Arrays:
        """The arrays."""
        return Arrays(tensors=self._tensors)


class FileWriter:
    """Arrays in files, written in order and then mapped."""

    def __init__(self, layout: Layout, folder: Path) -> None:
        """Make the files.

        Raises:
            OSError: they cannot be made, here or while writing.
        """
        self.layout, self._folder = layout, folder
        self._files = {name: (folder / f"{name}.bin").open("wb") for name in layout.specs}
        self._checksums = {name: Checksum() for name in layout.specs}
        self._pending: dict[str, Tensor] = {}
        self._rows = 0
        self._written_rows, self._seconds = 0, 0.0

    def reserve(self, rows: int) -> dict[str, Tensor]:
        """Fresh memory, which the next call writes out."""
        self._flush()
        self._rows += rows
        self._pending = {
            name: torch.empty((rows, *shape), dtype=dtype)
            for name, (shape, dtype) in self.layout.specs.items()
        }
        return self._pending

    def commit(self) -> None:
        """The next call of `reserve` writes them."""

    def measure_seconds_per_row(self) -> float:
        """By what writing took: no more, where the system holds the files in its memory."""
        return self._seconds / max(1, self._written_rows)

    def finish(self) -> Arrays:
        """Write the last rows and map the files."""
        self.close()
        return map_files(self._folder, self.layout, self._rows)

    def close(self) -> dict[str, str]:
        """Write the last rows; checksum of each file by name."""
        self._flush()
        for file in self._files.values():
            file.close()
        return {name: checksum.hexdigest() for name, checksum in self._checksums.items()}

    def _flush(self) -> None:
        for name, tensor in self._pending.items():
            content = raw_bytes(tensor)
            started = time.perf_counter()
            self._files[name].write(content)
            self._seconds += time.perf_counter() - started
            self._checksums[name].update(content)
        self._written_rows = self._rows
        self._pending = {}


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor of any dtype, to read or to write."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def map_files(folder: Path, layout: Layout, rows: int) -> Arrays:
    """Map a cache's files into memory; nothing is read before it is used."""
    tensors, maps = {}, {}
    for name, (shape, dtype) in layout.specs.items():
        with (folder / f"{name}.bin").open("rb") as file:
            maps[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # the file is not to be written, and is not
            flat = torch.frombuffer(maps[name], dtype=dtype)
        tensors[name] = flat.view(rows, *shape)
    return Arrays(tensors=tensors, maps=maps)


def read_files(folder: Path, layout: Layout, rows: int) -> tuple[Arrays, dict[str, str]]:
    """Read a cache's files into memory; the checksum of each is found on the way."""
    arrays = MemoryWriter(layout, rows, torch.device("cpu")).finish()
    checksums = {
        name: read_file(folder / f"{name}.bin", raw_bytes(tensor))
        for name, tensor in arrays.tensors.items()
    }
    return arrays, checksums


_PIECE_BYTES = 1 << 24


class Space(Protocol):
    """All rows of a new cache, to be filled in any order."""

    def view(self, first_row: int, rows: int) -> dict[str, Tensor]:
        """Consecutive rows of every array, to write to."""

    def finish(self) -> Arrays:
        """The arrays, after the last row."""


class MappedWriter:
    """Arrays in files that are mapped while they are written."""

    def __init__(self, layout: Layout, folder: Path, rows: int) -> None:
        """Make the files, with room on the disk for all of their bytes.

        A write to a mapped page for which the disk has no room would end the process.

        Raises:
            OSError: they cannot be made.
        """
        self._layout, self._folder, self._rows = layout, folder, rows
        self._maps: dict[str, mmap.mmap] = {}
        self._tensors: dict[str, Tensor] = {}
        for name, (shape, dtype) in layout.specs.items():
            with (folder / f"{name}.bin").open("w+b") as file:
                _allocate(file, rows * torch.Size(shape).numel() * dtype.itemsize)
                self._maps[name] = mmap.mmap(file.fileno(), 0)
            flat = torch.frombuffer(self._maps[name], dtype=dtype)
            self._tensors[name] = flat.view(rows, *shape)

    def view(self, first_row: int, rows: int) -> dict[str, Tensor]:
        """Rows of the files themselves."""
        end = first_row + rows
        return {name: tensor[first_row:end] for name, tensor in self._tensors.items()}

    def finish(self) -> Arrays:
        """The files, mapped anew for reading alone."""
        self._unmap()
        return map_files(self._folder, self._layout, self._rows)

    def close(self) -> dict[str, str]:
        """Write out what is still in memory; checksum of each file by name."""
        self._unmap()
        return {name: read_file(self._folder / f"{name}.bin") for name in self._layout.specs}

    def _unmap(self) -> None:
        for mapped in self._maps.values():
            mapped.flush()
        self._tensors.clear()
        self._maps.clear()


def _allocate(file: BinaryIO, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, _PIECE_BYTES):
        file.write(bytes(min(_PIECE_BYTES, size - start)))
    file.flush()
