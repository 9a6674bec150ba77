"""The hidden states of all batches on their way from one block to the next.

In memory up to a bound, beyond it in a scratch file that is read and written a batch at a time: the
system keeps what it has room for, and memory of this process stays bounded.
"""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from skip2bench.cache_arrays import raw_bytes

MEMORY_BYTES = 128 * 2**20
"""What is held in memory; the rest goes to the file."""

Key = tuple[int, int]
"""Which side, and which of its batches."""


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a batch lies in the file."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype


class HiddenStates:
    """One tensor a batch, replaced block after block."""

    def __init__(self, path: Path, memory_bytes: int | None = None) -> None:
        """Nothing is made yet.

        Args:
            path: The scratch file, made when it is needed and removed at the end.
            memory_bytes: What may be held in memory; None for MEMORY_BYTES.
        """
        self._path = path
        self._limit = MEMORY_BYTES if memory_bytes is None else memory_bytes
        self._held: dict[Key, Tensor] = {}
        self._places: dict[Key, _Place] = {}
        self._file: BinaryIO | None = None
        self.memory_bytes = 0
        """Held in memory."""
        self.disk_bytes = 0
        """Held in the file."""

    def __enter__(self) -> "HiddenStates":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held.clear()
        if self._file is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)

    def write(self, key: Key, hidden: Tensor) -> None:
        """Keep a batch in the place of what its key had before.

        Raises:
            OSError: the file cannot be written.
        """
        if key in self._held:
            self._held[key].copy_(hidden)
        elif key in self._places:
            self._write_file(self._places[key].offset, hidden)
        elif self.memory_bytes + hidden.nbytes <= self._limit:
            self._held[key] = hidden.to("cpu", copy=True)
            self.memory_bytes += hidden.nbytes
        else:
            self._places[key] = _Place(
                offset=self.disk_bytes, shape=hidden.shape, dtype=hidden.dtype
            )
            self._write_file(self.disk_bytes, hidden)
            self.disk_bytes += hidden.nbytes

    def read(self, key: Key) -> Tensor:
        """A copy of what is kept, on the CPU.

        Always in memory of its own, aligned as a block's own output would be.

        Raises:
            OSError: the file cannot be read.
        """
        if key in self._held:
            return self._held[key].clone()
        place = self._places[key]
        hidden = torch.empty(place.shape, dtype=place.dtype)
        assert self._file is not None
        self._file.seek(place.offset)
        if self._file.readinto(raw_bytes(hidden)) != hidden.nbytes:  # type: ignore[attr-defined]
            raise OSError(f"{self._path.name} ends before {place.offset + hidden.nbytes} bytes")
        return hidden

    def _write_file(self, offset: int, hidden: Tensor) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w+b")
        self._file.seek(offset)
        self._file.write(raw_bytes(hidden.cpu().contiguous()))
