import os

import pytest
import torch

from skip2bench.cache.arrays import Layout, MappedWriter, MemoryWriter
from skip2bench.cache.checksums import read_file

LAYOUT = Layout(
    blocks=(0, 2, 3),
    n_embd=5,
    dtype=torch.int8,
    compute_dtype=torch.bfloat16,
    n_logits=7,
)
ROWS = 11


def fill(space):
    """Block after block, the rows of a block in two pieces."""
    torch.manual_seed(0)
    outputs = [torch.randn(ROWS, 5).bfloat16() for _ in LAYOUT.blocks]
    for k, output in enumerate(outputs):
        for first, last in ((4, ROWS), (0, 4)):
            view = space.view(first, last - first)
            LAYOUT.encode_block(k, output, torch.arange(first, last), view)
    view = space.view(0, ROWS)
    view["targets"].copy_(torch.arange(ROWS))
    view["base_logits"].copy_(torch.randn(ROWS, 7))


@pytest.fixture
def expected():
    memory = MemoryWriter(LAYOUT, ROWS, torch.device("cpu"))
    fill(memory)
    return memory.finish().tensors


@pytest.mark.parametrize("can_allocate", [True, False])
def test_files_hold_what_memory_does(tmp_path, expected, can_allocate, monkeypatch):
    if not can_allocate:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
        monkeypatch.setattr("skip2bench.cache.arrays._PIECE_BYTES", 16)
    writer = MappedWriter(LAYOUT, tmp_path, ROWS)
    fill(writer)
    arrays = writer.finish()
    assert arrays.tensors.keys() == expected.keys() == arrays.maps.keys()
    for name, tensor in expected.items():
        assert torch.equal(arrays.tensors[name], tensor)
        assert (tmp_path / f"{name}.bin").stat().st_size == tensor.nbytes


def test_closing_gives_the_checksums_of_the_files(tmp_path, expected):
    writer = MappedWriter(LAYOUT, tmp_path, ROWS)
    fill(writer)
    checksums = writer.close()
    assert checksums == {name: read_file(tmp_path / f"{name}.bin") for name in expected}


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no posix_fallocate here")
def test_a_full_disk_is_found_before_anything_is_computed(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(OSError, match="No space left"):
        MappedWriter(LAYOUT, tmp_path, ROWS)
