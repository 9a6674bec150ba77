"""A new cache in mapped files of their final size, to be filled in any order.

`cache_arrays.FileWriter` writes whole rows one after the other; here a row is filled block by
block. The mapped pages belong to the files, not to the memory of this process.
"""

import mmap
import os
from pathlib import Path
from typing import BinaryIO, Protocol

import torch
from torch import Tensor

from skip2bench.cache_arrays import Arrays, Layout, map_files
from skip2bench.checksums import read_file

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
