"""Row by row: the machine beside the guide's section 8.1, a run beside the machine; pure functions.

The run is held against the memory and the disk that a snapshot found free.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from skip2bench.doctor.snapshot import Machine
from skip2bench.io.units import format_amount, format_bytes
from skip2bench.machine.guide import (
    GUIDE_CAPABILITY,
    GUIDE_DISK_BYTES,
    GUIDE_GPU,
    GUIDE_GPU_BYTES,
    GUIDE_RAM_BYTES,
    MICRO_BATCH_SIZES,
    has_size,
)
from skip2bench.machine.hardware import Disk
from skip2bench.results.figures import OTHERS_CORES_RATIO

if TYPE_CHECKING:
    from skip2bench.projection.sizes import CacheProjection, MethodProjection, Projection


Verdict = Literal["ok", "below the guide", "will not fit", "cannot run", "unknown"]
Section = Literal["machine", "versions", "run"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that was looked at."""

    section: Section
    what: str
    found: str
    wanted: str
    verdict: Verdict
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The numbers that the verdict rests on, with units in their names."""


def examine_machine(machine: Machine) -> Iterator[Row]:
    """GPU, memory, disks, processor, and who else uses them."""
    yield _examine_gpu(machine)
    if machine.gpu and machine.gpu.cuda:  # Apple's has the machine's memory, and no driver
        yield _examine_gpu_memory(machine)
        driver = machine.gpu.driver
        yield Row(
            section="machine",
            what="GPU driver",
            found=f"{driver or '?'}, torch for CUDA {machine.gpu.cuda}",
            wanted="",
            verdict="ok" if driver else "unknown",
        )
    yield _examine_ram(machine)
    yield _examine_disk("disk, results", machine.results_disk)
    if machine.cache_disk:
        yield _examine_disk("disk, Skip-Cache", machine.cache_disk)
    yield Row(
        section="machine",
        what="processor",
        found=f"{machine.processor}, {or_unknown(machine.cores, str)} cores, "
        f"{or_unknown(machine.threads, str)} threads in torch",
        wanted="",
        verdict="ok",
        figures={"cores": machine.cores, "threads": machine.threads},
    )
    yield _examine_others_cores(machine)
    if machine.device == "cuda":
        yield _examine_gpu_processes(machine)


def examine_versions(machine: Machine) -> Iterator[Row]:
    """What is installed, beside the bounds that this package states."""
    for one in machine.versions:
        is_met = one.is_met
        verdict: Verdict = "ok"
        if is_met is False:
            verdict = "cannot run"
        elif is_met is None and one.name != "skip2bench":
            verdict = "unknown"
        yield Row(
            section="versions",
            what=one.name,
            found=one.found or "not installed",
            wanted=one.wanted or "",
            verdict=verdict,
        )
    if machine.problem and all(one.is_met is not False for one in machine.versions):
        yield Row(
            section="versions",
            what="device and precision",
            found=machine.problem,
            wanted="one that torch can use",
            verdict="cannot run",
        )


def or_unknown(value: int | None, render: Callable[[int], str]) -> str:
    """A figure as text; a question mark where it could not be found out."""
    return "?" if value is None else render(value)


def format_sold_size(size_bytes: int) -> str:
    """A size as hardware is sold by: "64 GB"."""
    return f"{size_bytes // 10**9} GB"


def _examine_gpu(machine: Machine) -> Row:
    gpu = machine.gpu
    found = "none"
    verdict: Verdict = "below the guide"
    if gpu and not gpu.is_usable:
        found = f"{gpu.name}, driver {gpu.driver}; this torch cannot use it"
    elif gpu:
        found = gpu.name
        if gpu.capability:
            found += f", compute capability {gpu.capability[0]}.{gpu.capability[1]}"
        if gpu.capability is None or gpu.total_bytes is None:
            verdict = "unknown"
        elif gpu.capability >= GUIDE_CAPABILITY and has_size(gpu.total_bytes, GUIDE_GPU_BYTES):
            verdict = "ok"
    least = ".".join(map(str, GUIDE_CAPABILITY))
    return Row(
        section="machine",
        what="GPU",
        found=found,
        wanted=f"{GUIDE_GPU} class: compute capability {least}, "
        f"{format_sold_size(GUIDE_GPU_BYTES)}",
        verdict=verdict,
        figures={"capability": list(gpu.capability) if gpu and gpu.capability else None},
    )


def _examine_gpu_memory(machine: Machine) -> Row:
    assert machine.gpu is not None
    total, free = machine.gpu.total_bytes, machine.gpu.free_bytes
    least = min(MICRO_BATCH_SIZES)
    verdict: Verdict = "unknown"
    if total is not None:
        verdict = "ok" if has_size(total, least) else "below the guide"
    return Row(
        section="machine",
        what="GPU memory",
        found=f"{or_unknown(total, format_bytes)}, {or_unknown(free, format_bytes)} free",
        wanted=f"{format_sold_size(least)}, the smallest that the guide names",
        verdict=verdict,
        figures={"total_bytes": total, "free_bytes": free, "guide_bytes": least},
    )


def _examine_ram(machine: Machine) -> Row:
    memory = machine.memory
    found = f"{format_bytes(memory.total_bytes)}, {format_bytes(memory.available_bytes)} available"
    if memory.limit_bytes is not None:
        found += f", {format_bytes(memory.limit_bytes)} by the limit of the control group"
    return Row(
        section="machine",
        what="RAM",
        found=found,
        wanted=format_sold_size(GUIDE_RAM_BYTES),
        verdict="ok" if has_size(memory.usable_bytes, GUIDE_RAM_BYTES) else "below the guide",
        figures=asdict(memory) | {"guide_bytes": GUIDE_RAM_BYTES},
    )


def _examine_disk(what: str, disk: Disk) -> Row:
    verdict: Verdict = "unknown"
    if disk.free_bytes is not None:
        verdict = "ok" if has_size(disk.free_bytes, GUIDE_DISK_BYTES) else "below the guide"
    return Row(
        section="machine",
        what=what,
        found=f"{or_unknown(disk.free_bytes, format_bytes)} free of "
        f"{or_unknown(disk.total_bytes, format_bytes)}, {disk.folder}",
        wanted=f"{format_sold_size(GUIDE_DISK_BYTES)} free, on an SSD",
        verdict=verdict,
        figures=asdict(disk) | {"guide_bytes": GUIDE_DISK_BYTES},
    )


def _examine_others_cores(machine: Machine) -> Row:
    others, cores = machine.others_cores, machine.cores
    found = "?"
    verdict: Verdict = "unknown"
    if others is not None and cores is not None:
        found = f"{others:.1f} of {cores} cores busy"
        verdict = "below the guide" if others > OTHERS_CORES_RATIO * cores else "ok"
    return Row(
        section="machine",
        what="others on the processor",
        found=found,
        wanted="none",
        verdict=verdict,
        figures={"others_cores": others},
    )


def _examine_gpu_processes(machine: Machine) -> Row:
    processes = machine.gpu_processes
    found = "?" if processes is None else "none"
    if processes:
        found = "; ".join(
            f"{one.name} ({one.pid}), {or_unknown(one.used_bytes, format_bytes)}"
            for one in processes
        )
    return Row(
        section="machine",
        what="others on the GPU",
        found=found,
        wanted="none",
        verdict="unknown" if processes is None else "below the guide" if processes else "ok",
    )


def examine_run(machine: Machine, projection: "Projection") -> Iterator[Row]:
    """What the model, its training and its cache would take, beside what is free."""
    free = machine.device_free_bytes
    yield Row(
        section="run",
        what=f"weights, {projection.model}",
        found=_free_on_device(machine),
        wanted=f"{format_bytes(projection.weights_bytes)}: {projection.total_parameters:,} "
        f"parameters, {projection.precision}",
        verdict=_judge_fit(projection.weights_bytes, free),
        figures={
            "total_parameters": projection.total_parameters,
            "needed_bytes": projection.weights_bytes,
            "free_bytes": free,
        },
    )
    yield _examine_micro_batch(machine, projection)
    yield _examine_data(projection)
    for method in projection.methods:
        yield _examine_method(machine, method)
        for cache in method.caches:
            yield _examine_cache(method, cache)


def _examine_micro_batch(machine: Machine, projection: "Projection") -> Row:
    size, total = projection.micro_batch_size, machine.device_total_bytes
    verdict: Verdict = "ok"
    wanted = "train's default: the guide names sizes for GPUs"
    if machine.device == "cuda":
        wanted = ", ".join(
            f"{format_sold_size(key)}: {value}" for key, value in MICRO_BATCH_SIZES.items()
        )
        if total is None:
            verdict = "unknown"
        elif size < min(MICRO_BATCH_SIZES.values()):
            verdict = "below the guide"
    return Row(
        section="run",
        what="micro-batch size",
        found=str(size),
        wanted=wanted,
        verdict=verdict,
        figures={"micro_batch_size": size},
    )


def _examine_data(projection: "Projection") -> Row:
    found = projection.data_problem
    if found is None:
        found = (
            f"{projection.train_samples:,} samples to train, {projection.val_samples:,} to "
            f"validate, the longest of {projection.longest_tokens:,} tokens"
        )
        if projection.tokens_are_estimated:
            found += "; an estimate by the embedded model's tokenizer"
    return Row(
        section="run",
        what=f"data, {projection.data}",
        found=found,
        wanted="a checkpoint folder, for its tokenizer" if projection.tokens_are_estimated else "",
        verdict="unknown" if projection.data_problem or projection.tokens_are_estimated else "ok",
        figures={"longest_tokens": projection.longest_tokens},
    )


def _examine_method(machine: Machine, method: "MethodProjection") -> Row:
    needed, peak, free = method.needed_bytes, method.peak_bytes, machine.device_free_bytes
    wanted = method.problem or ""
    if needed is not None and method.saved_for_backward_bytes is not None:
        wanted = (
            f"{format_bytes(needed)}: weights {format_bytes(method.weights_bytes)}, gradients and "
            f"AdamW {format_bytes(method.optimizer_bytes)}, saved for backward "
            f"{format_bytes(method.saved_for_backward_bytes)} ({method.pass_positions:,} "
            f"positions); about {or_unknown(peak, format_bytes)} at its peak"
        )
    return Row(
        section="run",
        what=method.label,
        found=f"{_free_on_device(machine)}; {method.trainable_parameters:,} parameters train",
        wanted=wanted,
        verdict="unknown" if peak is None else _judge_fit(peak - method.process_bytes, free),
        figures={
            "method": method.method,
            "trainable_parameters": method.trainable_parameters,
            "needed_bytes": needed,
            "peak_bytes": peak,
            "free_bytes": free,
        },
    )


def _examine_cache(method: "MethodProjection", cache: "CacheProjection") -> Row:
    found = f"{or_unknown(cache.usable_bytes, format_bytes)} usable"
    if cache.recomputed_samples:
        found += f"; {format_amount(cache.recomputed_samples, 'sample')} recomputed every epoch"
    return Row(
        section="run",
        what=f"Skip-Cache on {cache.tier}{' (auto)' if cache.is_automatic else ''}",
        found=found,
        wanted=f"{format_bytes(cache.needed_bytes)}: {cache.positions:,} positions of "
        f"{cache.position_bytes:,} bytes",
        verdict=_judge_fit(cache.needed_bytes, cache.usable_bytes),
        figures={
            "method": method.label,
            "tier": cache.tier,
            "needed_bytes": cache.needed_bytes,
            "usable_bytes": cache.usable_bytes,
        },
    )


def _judge_fit(needed_bytes: int, free_bytes: int | None) -> Verdict:
    if free_bytes is None:
        return "unknown"
    return "ok" if needed_bytes <= free_bytes else "will not fit"


def _free_on_device(machine: Machine) -> str:
    where = "on the GPU" if machine.device == "cuda" else "in RAM"
    return f"{or_unknown(machine.device_free_bytes, format_bytes)} free {where}"
