"""A run beside the memory and the disk that are free for it, row by row: pure functions."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from skip2bench.machine import Machine
from skip2bench.machine_check import Row, Verdict, format_sold_size, or_unknown
from skip2bench.requirements import MICRO_BATCH_SIZES
from skip2bench.units import format_bytes

if TYPE_CHECKING:  # it imports torch, which may be what is missing
    from skip2bench.projection import CacheProjection, MethodProjection, Projection


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
    needed, free = method.needed_bytes, machine.device_free_bytes
    wanted = method.problem or ""
    if needed is not None and method.saved_for_backward_bytes is not None:
        wanted = (
            f"{format_bytes(needed)}: weights {format_bytes(method.weights_bytes)}, gradients and "
            f"AdamW {format_bytes(method.optimizer_bytes)}, saved for backward "
            f"{format_bytes(method.saved_for_backward_bytes)} ({method.pass_positions:,} positions)"
        )
    return Row(
        section="run",
        what=method.label,
        found=f"{_free_on_device(machine)}; {method.trainable_parameters:,} parameters train",
        wanted=wanted,
        verdict="unknown" if needed is None else _judge_fit(needed, free),
        figures={
            "method": method.method,
            "trainable_parameters": method.trainable_parameters,
            "needed_bytes": needed,
            "free_bytes": free,
        },
    )


def _examine_cache(method: "MethodProjection", cache: "CacheProjection") -> Row:
    found = f"{or_unknown(cache.usable_bytes, format_bytes)} usable"
    if cache.recomputed_samples:
        found += f"; {cache.recomputed_samples:,} samples recomputed every epoch"
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
