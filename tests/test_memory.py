import os
import signal

import pytest
import torch

from skip2bench import memory
from skip2bench.config import BenchConfig

REQUEST = memory.MemoryRequest(config=BenchConfig(), method="lora", blocks="", threads=1)


def _be_killed(_request: object, _sender: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _crash(_request: object, _sender: object) -> None:
    os._exit(3)


@pytest.mark.parametrize(("fate", "status"), [(_be_killed, "oom"), (_crash, "failed")])
def test_a_process_that_dies_is_a_status_and_no_crash(monkeypatch, fate, status):
    monkeypatch.setattr(memory, "_measure_and_send", fate)
    assert memory.measure_memory(REQUEST) == {"status": status}


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError(), RuntimeError("can't allocate memory: 9 TB")]
)
def test_running_out_of_memory_is_a_status(monkeypatch, error):
    def fail(*_args: object) -> None:
        raise error

    monkeypatch.setattr(memory, "load_base", fail)
    assert memory._measure_here(REQUEST) == {"status": "oom"}


def test_any_other_error_is_a_bug(monkeypatch):
    def fail(*_args: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(memory, "load_base", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        memory._measure_here(REQUEST)


def test_skip_saves_less_for_backward_and_a_cached_step_no_more(tiny_checkpoint):
    figures = {}
    for method, blocks in (("lora", ""), ("skip2", "0,1")):
        config = BenchConfig(model=str(tiny_checkpoint), batch_size=2, seq_length=16, device="cpu")
        request = memory.MemoryRequest(config=config, method=method, blocks=blocks, threads=1)
        figures[method] = memory.measure_memory(request)
    lora, skip2 = figures["lora"], figures["skip2"]
    assert lora["status"] == skip2["status"] == "ok"
    assert skip2["saved_for_backward_bytes"] < lora["saved_for_backward_bytes"]
    assert skip2["cached_saved_for_backward_bytes"] <= skip2["saved_for_backward_bytes"]
    assert skip2["cached_peak_memory_bytes"] > 0
    assert lora["reserved_memory_bytes"] is None
