import pytest
import torch

from skip2bench.cache.streaming import HiddenStates


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", [0, 100, 10**6])
def test_what_is_read_is_what_was_written_last(tmp_path, dtype, limit):
    path = tmp_path / "scratch" / "states.bin"
    batches = {(0, 0): (2, 3, 4), (0, 1): (1, 5, 4), (1, 0): (3, 2, 4)}
    with HiddenStates(path, memory_bytes=limit) as states:
        for _ in range(3):
            written = {key: torch.randn(shape).to(dtype) for key, shape in batches.items()}
            for key, hidden in written.items():
                states.write(key, hidden)
            for key in reversed(batches):
                read = states.read(key)
                assert torch.equal(read, written[key])
                assert read.dtype == dtype
                read.zero_()  # a copy: what is kept does not change
                assert torch.equal(states.read(key), written[key])
        assert states.memory_bytes <= limit
        assert states.memory_bytes + states.disk_bytes == 68 * dtype.itemsize
        assert path.exists() == (states.disk_bytes > 0)
    assert not path.exists()


def test_views_and_inference_tensors_are_kept(tmp_path):
    with torch.inference_mode():
        hidden = torch.randn(4, 6).t()
    for limit in (0, 1000):
        with HiddenStates(tmp_path / "states.bin", memory_bytes=limit) as states:
            states.write((0, 0), hidden)
            states.write((0, 0), hidden)
            assert torch.equal(states.read((0, 0)), hidden)
            assert not states.read((0, 0)).is_inference()


def test_the_file_goes_with_an_error(tmp_path):
    def use(states):
        with states:
            states.write((0, 0), torch.ones(3))
            assert (tmp_path / "states.bin").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use(HiddenStates(tmp_path / "states.bin", memory_bytes=0))
    assert not (tmp_path / "states.bin").exists()


def test_a_file_that_was_cut_is_an_error(tmp_path):
    path = tmp_path / "states.bin"
    with HiddenStates(path, memory_bytes=0) as states:
        states.write((0, 0), torch.ones(4096))
        states.read((0, 0))
        with path.open("r+b") as file:
            file.truncate(100)
        with pytest.raises(OSError, match=r"states\.bin ends before 16384 bytes"):
            states.read((0, 0))
