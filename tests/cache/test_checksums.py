import os

import pytest

import skip2bench.cache.checksums
from skip2bench.cache.checksums import Checksum, read_file


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(skip2bench.cache.checksums, "_CHUNK_BYTES", 10)


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 57])
@pytest.mark.parametrize("piece", [1, 7, 10, 100])
def test_pieces_threads_and_reading_agree(tmp_path, size, piece):
    content = os.urandom(size)
    path = tmp_path / "file"
    path.write_bytes(content)
    checksum = Checksum()
    for start in range(0, size, piece):
        checksum.update(memoryview(content)[start : start + piece])
    into = memoryview(bytearray(size))
    assert checksum.hexdigest() == read_file(path) == read_file(path, into)
    assert bytes(into) == content


def test_every_byte_counts(tmp_path):
    path = tmp_path / "file"
    content = bytearray(os.urandom(25))
    sums = set()
    for place in (None, 0, 9, 10, 24):
        changed = bytearray(content)
        if place is not None:
            changed[place] ^= 1
        path.write_bytes(changed)
        sums.add(read_file(path))
    path.write_bytes(content[:-1])
    assert len(sums | {read_file(path)}) == 6


def test_a_file_that_ends_early_is_an_error(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    with pytest.raises(OSError, match="ends after 3 bytes"):
        read_file(path, memoryview(bytearray(4)))
