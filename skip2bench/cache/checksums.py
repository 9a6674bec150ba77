"""Checksums of large files, computed on all threads: sha256 over the sha256 of every 16 MiB."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

_CHUNK_BYTES = 1 << 24


class Checksum:
    """The checksum of bytes that come in pieces of any size."""

    def __init__(self) -> None:
        self._whole, self._part = hashlib.sha256(), hashlib.sha256()
        self._room = _CHUNK_BYTES

    def update(self, content: memoryview) -> None:
        """Append bytes."""
        while len(content) >= self._room:
            self._part.update(content[: self._room])
            content = content[self._room :]
            self._whole.update(self._part.digest())
            self._part, self._room = hashlib.sha256(), _CHUNK_BYTES
        self._part.update(content)
        self._room -= len(content)

    def hexdigest(self) -> str:
        """Of all that was appended."""
        whole = self._whole.copy()
        if self._room < _CHUNK_BYTES:
            whole.update(self._part.digest())
        return whole.hexdigest()


def read_file(path: Path, into: memoryview | None = None) -> str:
    """The checksum of a file.

    Args:
        path: The file.
        into: Where its content is to go, of its size; None where only the checksum is wanted.

    Raises:
        OSError: it cannot be read to its end.
    """
    size = path.stat().st_size if into is None else len(into)

    def read(start: int) -> bytes:
        end = min(start + _CHUNK_BYTES, size)
        chunk = memoryview(bytearray(end - start)) if into is None else into[start:end]
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            done = 0
            while done < len(chunk):
                count = file.readinto(chunk[done:])
                if not count:
                    raise OSError(f"{path.name} ends after {start + done} bytes")
                done += count
        return hashlib.sha256(chunk).digest()

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return hashlib.sha256(b"".join(pool.map(read, range(0, size, _CHUNK_BYTES)))).hexdigest()
