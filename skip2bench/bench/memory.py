"""Peak memory of one configuration, measured in a process of its own.

In one process for all, what the first configuration left behind would hide what the second takes.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from skip2bench.bench.own_process import measure_in_own_process
from skip2bench.bench.workload import Workload, build_workload
from skip2bench.config.commands import BenchConfig
from skip2bench.config.methods import METHODS
from skip2bench.machine.environment import choose_device, choose_precision, weights_dtype
from skip2bench.machine.memory import (
    read_memory,
    read_peak_memory,
    read_reserved_memory,
    reset_peak_memory,
)
from skip2bench.machine.out_of_memory import DoesNotFitError, fitting
from skip2bench.models.base import load_base
from skip2bench.models.methods import resolve_method

_STEPS = 2
"""The first step allocates the optimizer's state, the second one finds it there."""


@dataclass(frozen=True, kw_only=True)
class MemoryRequest:
    """Which configuration to measure."""

    config: BenchConfig
    method: str
    blocks: str
    threads: int
    cached: bool = False
    """Measure steps from cached features instead of whole ones."""


def measure_memory(request: MemoryRequest) -> dict[str, Any]:
    """Measure whole steps in a fresh process and, for a cached method, cached steps in another.

    Returns:
        `status` ("ok", "oom" or "failed") and, where ok, `peak_memory_bytes` (over forward,
        backward and optimizer), `step_memory_bytes` (what the step added to the model at rest),
        `reserved_memory_bytes` (CUDA) and `saved_for_backward_bytes`; where oom,
        `requested_bytes` and `oom_phase`; and the same with `cached_` in front for a cached method.
        On CUDA also `phases`: by phase, its own `peak_memory_bytes` (allocated) and
        `reserved_memory_bytes`, each from a device that was given back all that it could be.
    """
    figures = _measure_in_process(request)
    if METHODS[request.method].is_cached:
        cached = _measure_in_process(replace(request, cached=True))
        phases = figures.pop("phases", {}) | cached.pop("phases", {})
        figures |= {f"cached_{name}": value for name, value in cached.items()}
        if phases:
            figures["phases"] = phases
    return figures


def _measure_in_process(request: MemoryRequest) -> dict[str, Any]:
    device_type = choose_device(request.config.device).type
    return measure_in_own_process(_measure_here, request, device_type)


def _measure_here(request: MemoryRequest) -> dict[str, Any]:
    torch.set_num_threads(request.threads)
    config = request.config
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    try:
        with fitting("weights"):
            base = load_base(config.model, device, weights_dtype(precision), config.seed)
        settings = resolve_method(request.method, request.blocks, config, base.config)
        with fitting("model"):
            work = build_workload(
                settings, base, config, device, precision, with_cache=request.cached
            )
        return _measure_steps(work, device)
    except DoesNotFitError as error:
        return error.describe()


def _measure_steps(work: Workload, device: torch.device) -> dict[str, Any]:
    reset_peak_memory(device)
    before = read_memory(device)
    for _ in range(_STEPS):
        work.take_step(nullcontext, cached=work.is_cached)
    peak, reserved = read_peak_memory(device), read_reserved_memory(device)
    with fitting("saved_for_backward"):
        saved = work.count_saved_bytes(cached=work.is_cached)
    figures = {
        "status": "ok",
        "peak_memory_bytes": peak,
        "step_memory_bytes": max(0, peak - before),
        "reserved_memory_bytes": reserved,
        "saved_for_backward_bytes": saved,
    }
    if device.type == "cuda":  # a resident size is that of the whole process, in every phase
        figures["phases"] = _measure_phases(work, device)
    return figures


def _measure_phases(work: Workload, device: torch.device) -> dict[str, dict[str, int | None]]:
    """Peaks of each phase by itself, of its largest portion; after the steps.

    The optimizer's state is there from the first phase on.
    """
    phases: dict[str, dict[str, int | None]] = {}

    @contextmanager
    def measured(phase: str) -> Iterator[None]:
        reset_peak_memory(device)
        yield
        peak, reserved = read_peak_memory(device), read_reserved_memory(device)
        before = phases.get(phase, {})
        phases[phase] = {
            "peak_memory_bytes": max(peak, before.get("peak_memory_bytes") or 0),
            "reserved_memory_bytes": None
            if reserved is None
            else max(reserved, before.get("reserved_memory_bytes") or 0),
        }

    if not work.is_cached:
        with fitting("forward"), measured("forward"):
            work.forward()
    work.take_step(measured, cached=work.is_cached)
    if work.is_cached:
        del phases["optimizer"]  # the same step as the uncached one's
    return phases
