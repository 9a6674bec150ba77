import sys
import time
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from skip2bench.machine.clock import Clock, clock_name, count_flops, time_call
from skip2bench.machine.memory import (
    count_saved_bytes,
    read_anonymous_memory,
    read_memory,
    read_peak_memory,
    read_reserved_memory,
    reset_peak_memory,
    watch_anonymous_memory,
)

CPU = torch.device("cpu")


class FakeTime:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_clock_adds_up_parts_and_leaves_out_the_rest():
    time = FakeTime()
    clock = Clock(CPU, now=time)
    for seconds in (1.0, 2.0):
        with clock.part("forward"):
            time.now += seconds
        time.now += 100
    with clock.part("backward"):
        time.now += 4
    assert clock.seconds == {"forward": 3.0, "backward": 4.0}
    assert clock.total(("forward", "backward", "optimizer")) == 7.0


def test_clock_leaves_out_what_is_excluded_inside_a_part():
    time = FakeTime()
    clock = Clock(CPU, now=time)
    with clock.part("cache_build"):
        time.now += 5
        with clock.excluded("cache_build"):
            time.now += 2
        time.now += 1
    assert clock.seconds == {"cache_build": 6.0}


def test_clock_counts_a_part_that_fails():
    time = FakeTime()
    clock = Clock(CPU, now=time)
    try:
        with clock.part("forward"):
            time.now += 1
            raise ValueError
    except ValueError:
        pass
    assert clock.seconds == {"forward": 1.0}


def test_time_call_is_the_time_of_the_call():
    time = FakeTime()

    def work() -> None:
        time.now += 2.5

    assert time_call(work, CPU, now=time) == 2.5


def test_on_cuda_the_time_is_that_between_two_events(monkeypatch):
    log = []

    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing

        def record(self, stream):
            log.append(f"record on {stream}")
            self.number = len(log)

        def elapsed_time(self, end):
            assert self.number < end.number
            log.append("read")
            return 250.0  # milliseconds

    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: log.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: "the stream")
    assert time_call(lambda: log.append("call"), device) == 0.25
    assert log == [
        *("synchronize", "record on the stream", "call", "record on the stream"),
        *("synchronize", "read"),
    ]
    assert clock_name(device) == "cuda events"
    assert clock_name(CPU) == "perf_counter"


def test_peak_memory_sees_what_was_freed_again():
    reset_peak_memory(CPU)
    before = read_memory(CPU)
    block = torch.ones(64 << 20, dtype=torch.uint8)
    del block
    assert read_peak_memory(CPU) - before > 60 << 20
    reset_peak_memory(CPU)
    assert read_peak_memory(CPU) - before < 40 << 20
    assert read_reserved_memory(CPU) is None


def test_saved_bytes_of_a_known_case():
    """relu(x W)²: keeps x for W's gradient, and relu's output once for both."""
    x, weight = torch.randn(8, 4), nn.Parameter(torch.randn(4, 16))
    saved = count_saved_bytes(lambda: (x @ weight).relu().square().sum(), excluded=[weight])
    assert saved == x.nbytes + 8 * 16 * 4
    assert (
        count_saved_bytes(lambda: (x @ weight).relu().square().sum(), excluded=[weight, x])
        == 8 * 16 * 4
    )


@pytest.mark.parametrize("mode", [nullcontext, FakeTensorMode, lambda: torch.device("meta")])
def test_saved_bytes_of_tensors_without_bytes(mode):
    """They share the address 0, and are told apart all the same."""
    with mode():
        x, weight = torch.randn(8, 4), nn.Parameter(torch.randn(4, 16))
        saved = count_saved_bytes(lambda: (x @ weight).relu().square().sum(), excluded=[weight])
    assert saved == (8 * 4 + 8 * 16) * 4


def test_nothing_is_saved_where_nothing_trains():
    weight = torch.randn(4, 16)
    assert count_saved_bytes(lambda: (torch.randn(8, 4) @ weight).relu(), excluded=[]) == 0


def test_flops_of_a_matrix_product():
    assert count_flops(lambda: torch.randn(8, 4) @ torch.randn(4, 16)) == 2 * 8 * 4 * 16


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_anonymous_memory_leaves_out_mapped_files(tmp_path):
    size = 64 * 2**20
    path = tmp_path / "tensor.pth"
    torch.save(torch.ones(size // 4), path)
    with watch_anonymous_memory(0.001) as read_peak:
        before = read_anonymous_memory()
        mapped = torch.load(path, mmap=True)
        assert mapped.sum() > 0  # every page was read
        assert read_anonymous_memory() - before < size / 2
        held = torch.ones(size // 4)
        assert read_anonymous_memory() - before > size / 2
        deadline = time.monotonic() + 30
        while read_peak() - before < size / 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        del held
    assert before + size / 2 < read_peak() < before + 3 * size


def test_there_is_no_such_figure_elsewhere(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert read_anonymous_memory() is None
    with watch_anonymous_memory() as read_peak:
        assert read_peak() is None
