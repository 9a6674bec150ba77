import os
import signal
from dataclasses import replace

import pytest
import torch

from skip2bench.bench import memory
from skip2bench.bench.workload import Workload, build_workload
from skip2bench.cache import portions
from skip2bench.config.commands import BenchConfig
from skip2bench.models.base import load_base
from skip2bench.models.methods import resolve_method

REQUEST = memory.MemoryRequest(config=BenchConfig(), method="lora", blocks="", threads=1)

CUDA_MESSAGE = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB of "
    "which 1.12 GiB is free."
)


def failing(error):
    """A function that raises `error` whatever it is given."""

    def fail(*_args: object, **_named: object) -> None:
        raise error

    return fail


def make_workload(checkpoint, method, *, cached):
    config = BenchConfig(model=str(checkpoint), batch_size=2, seq_length=16, device="cpu")
    base = load_base(config.model, torch.device("cpu"), torch.float32, 0)
    settings = resolve_method(method, "0,1" if method == "skip2" else "", config, base.config)
    return build_workload(settings, base, config, torch.device("cpu"), "32-true", with_cache=cached)


def _be_killed(_request: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _crash(_request: object) -> None:
    os._exit(3)


NOTHING_KNOWN = {"status": "oom", "requested_bytes": None, "oom_phase": None}


@pytest.mark.parametrize(
    ("fate", "figures"), [(_be_killed, NOTHING_KNOWN), (_crash, {"status": "failed"})]
)
def test_a_process_that_dies_is_a_status_and_no_crash(monkeypatch, fate, figures):
    monkeypatch.setattr(memory, "_measure_here", fate)
    assert memory.measure_memory(REQUEST) == figures


@pytest.mark.parametrize(
    ("error", "requested_bytes"),
    [
        (MemoryError(), None),
        (torch.OutOfMemoryError(CUDA_MESSAGE), 2 * 2**30),
        (RuntimeError("can't allocate memory: you tried to allocate 9000 bytes."), 9000),
    ],
)
def test_running_out_of_memory_is_a_status(monkeypatch, error, requested_bytes):
    monkeypatch.setattr(memory, "load_base", failing(error))
    figures = memory._measure_here(REQUEST)
    assert figures == {
        "status": "oom",
        "requested_bytes": requested_bytes,
        "oom_phase": "weights",
    }


@pytest.mark.parametrize(
    ("call", "phase"),
    [
        ("token_loss", "train_forward"),
        ("backward", "backward"),
        ("optimizer_step", "optimizer"),
        ("count_saved_bytes", "saved_for_backward"),
    ],
)
def test_the_phase_that_ran_out_is_named(monkeypatch, tiny_checkpoint, call, phase):
    error = failing(torch.OutOfMemoryError(CUDA_MESSAGE))
    monkeypatch.setattr(*((portions, call) if call == "token_loss" else (Workload, call)), error)
    config = BenchConfig(model=str(tiny_checkpoint), batch_size=2, seq_length=16, device="cpu")
    request = memory.MemoryRequest(config=config, method="lora", blocks="", threads=1)
    misfit = {"status": "oom", "requested_bytes": 2 * 2**30, "oom_phase": phase}
    assert memory._measure_here(request) == misfit


@pytest.mark.parametrize(
    ("method", "cached", "phases"),
    [
        ("lora", False, ["forward", "train_forward", "backward", "optimizer"]),
        ("skip2", True, ["cached_forward", "cached_backward"]),
    ],
)
def test_each_phase_has_peaks_of_its_own(tiny_checkpoint, monkeypatch, method, cached, phases):
    """The order of reset, call and reading, which on CUDA gives a phase's own peak."""
    events = []
    monkeypatch.setattr(memory, "reset_peak_memory", lambda _device: events.append("reset"))
    monkeypatch.setattr(memory, "read_peak_memory", lambda _device: events.append("read") or 7)
    monkeypatch.setattr(memory, "read_reserved_memory", lambda _device: 9)
    work = make_workload(tiny_checkpoint, method, cached=cached)
    peaks = memory._measure_phases(work, torch.device("cpu"))
    assert list(peaks) == phases
    assert all(it == {"peak_memory_bytes": 7, "reserved_memory_bytes": 9} for it in peaks.values())
    assert events == ["reset", "read"] * (len(phases) + cached)


def test_phases_of_both_processes_stand_together(monkeypatch):
    """Of a cached method, whose two processes each measure some of them."""
    whole = {"status": "ok", "phases": {"backward": {"peak_memory_bytes": 3}}}
    cached = {"status": "ok", "phases": {"cached_backward": {"peak_memory_bytes": 2}}}
    monkeypatch.setattr(
        memory,
        "_measure_in_process",
        lambda request: dict(cached if request.cached else whole),
    )
    figures = memory.measure_memory(replace(REQUEST, method="skip2", blocks="all"))
    assert figures == {
        "status": "ok",
        "cached_status": "ok",
        "phases": whole["phases"] | cached["phases"],
    }


def test_any_other_error_is_a_bug(monkeypatch):
    monkeypatch.setattr(memory, "load_base", failing(RuntimeError("shapes do not match")))
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
    assert "phases" not in lora
