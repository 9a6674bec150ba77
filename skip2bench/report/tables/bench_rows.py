"""The benchmark's figures in the report's tables: no words and no rounding.

Rows are dictionaries that the templates read; a figure that was not measured is None. A reduction
is 1 - figure / LoRA's figure: positive is less than LoRA, negative is more, None for LoRA itself.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from skip2bench.config.methods import find_method
from skip2bench.report.groups import order_key
from skip2bench.results.bench_records import (
    BenchConfiguration,
    BenchSummary,
    FlopsFigures,
    MemoryFigures,
    PhaseRatio,
)
from skip2bench.results.disturbance import find_disturbed_timing
from skip2bench.results.reading import BenchRun
from skip2bench.results.run_folder import PHASES
from skip2bench.results.stats import SIGNIFICANCE, Ratio, adjust_p_values

_NONE = BenchConfiguration()
"""Stands for the baseline where there is none to compare with."""
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """1 - ratio of a paired comparison; the bounds are None where one round was measured."""

    value: float
    low: float | None
    high: float | None
    is_difference: bool
    p_value: float | None = None
    """None of one round, as what follows."""
    adjusted_p_value: float | None = None
    """By Holm's correction over the rows of the table."""
    comparisons: int | None = None
    """How many rows those are."""
    detectable_ratio: float | None = None
    """The smallest ratio above 1 that would have shown: see `stats.Ratio`."""


def find_baseline(configurations: Iterable[BenchConfiguration]) -> BenchConfiguration | None:
    """The first configuration of traditional LoRA, if there is one."""
    return next((it for it in configurations if find_method(it.method).is_traditional), None)


def build_bench_rows(run: BenchRun) -> list[Row]:
    """One row a configuration of a bench run, in their order, each compared with the run's LoRA."""
    configurations = run.summary.configurations
    rows = compare_configurations(configurations, find_baseline(configurations))
    is_disturbed = any(name != "inference" for name in find_disturbed_timing(run))
    rows = [row | {"is_disturbed": is_disturbed} for row in rows]
    pairs = sorted(zip(configurations, rows, strict=True), key=lambda pair: order_key(pair[0]))
    return [row for _, row in pairs]


def build_inference_rows(summary: BenchSummary, *, is_disturbed: bool = False) -> list[Row]:
    """One row a form whose answers a benchmark measured, the base first; none where it did not."""
    return [
        {
            "label": entry.label or summary.model or "-",
            "form": entry.form,
            "is_disturbed": is_disturbed,
            "precision": summary.precision,
            **{
                name: getattr(entry, name)
                for name in (
                    *("parameters", "width", "peak_memory_bytes", "relative_difference"),
                    *("prefill_tokens_per_second", "prefill_ratio"),
                    *("decode_tokens_per_second", "decode_ratio"),
                )
            },
        }
        for entry in summary.inference
    ]


def compare_configurations(
    configurations: Sequence[BenchConfiguration], baseline: BenchConfiguration | None
) -> list[Row]:
    """One row a configuration of a benchmark, each compared with one of them, the baseline.

    Paired ratios are read only where that is the first configuration: they are against that.
    """
    is_paired = bool(configurations) and configurations[0] is baseline
    rows = []
    for configuration in configurations:
        other = _NONE if configuration is baseline or baseline is None else baseline
        row: Row = {
            "method": configuration.method,
            "blocks": configuration.blocks,
            "target": configuration.target,
            "rank": configuration.rank,
            "label": configuration.label or configuration.method or "-",
            "is_disturbed": False,
        }
        row |= _misfit_figures(configuration)
        row |= _parameter_figures(configuration, other)
        row |= _time_figures(configuration, other, is_paired=is_paired)
        row |= _flops_figures(configuration, other)
        row["ratios"] = configuration.ratios or {}
        row["memory"] = _memory_figures(configuration, other)
        rows.append(row)
    for phase in ("backward", "cached_backward"):
        _correct_for_rows(rows, f"{phase}_reduction")
    return rows


def _correct_for_rows(rows: Sequence[Row], name: str) -> None:
    """Let the paired reductions of a column be differences only where they hold together."""
    tested = [
        (row, p) for row in rows if row[name] is not None and (p := row[name].p_value) is not None
    ]
    adjusted = adjust_p_values([p for _, p in tested])
    for (row, _), corrected in zip(tested, adjusted, strict=True):
        row[name] = replace(
            row[name],
            is_difference=corrected < SIGNIFICANCE,
            adjusted_p_value=corrected,
            comparisons=len(tested),
        )


def _misfit_figures(configuration: BenchConfiguration) -> Row:
    """What a configuration asked for that did not fit, and where; it was not timed then."""
    is_oom = configuration.status == "oom"
    return {
        "is_oom": is_oom,
        "requested_bytes": configuration.requested_bytes if is_oom else None,
        "oom_phase": configuration.oom_phase if is_oom else None,
    }


def _parameter_figures(own: BenchConfiguration, baseline: BenchConfiguration) -> Row:
    total, trainable = own.total_parameters, own.trainable_parameters
    return {
        "total_parameters": total,
        "trainable_parameters": trainable,
        "trainable_ratio": _divide(trainable, total),
        "trainable_reduction": _less(trainable, baseline.trainable_parameters),
    }


def _time_figures(
    configuration: BenchConfiguration, baseline: BenchConfiguration, *, is_paired: bool
) -> Row:
    """Phases and steps; reductions are paired for phases, of medians for steps."""
    phases = configuration.phases or {}
    names = ("forward", "train_forward", "backward", "optimizer")
    row: Row = {f"{name}_seconds": _median_seconds(configuration, name) for name in names}
    timed = (*names, "cached_forward", "cached_backward")
    row |= {name: phases.get(name) for name in timed}
    row["step_seconds"] = _step_seconds(configuration)
    row["cached_step_seconds"] = _step_seconds(configuration, "cached_forward", "cached_backward")
    for name in ("step", "cached_step"):
        row[f"{name}_reduction"] = _less(row[f"{name}_seconds"], _step_seconds(baseline))
    for phase in ("backward", "cached_backward"):
        can_compare = is_paired and baseline is not _NONE
        ratio = (configuration.ratios or {}).get(phase) if can_compare else None
        row[f"{phase}_reduction"] = _reduction(ratio)
    return row


def _flops_figures(configuration: BenchConfiguration, baseline: BenchConfiguration) -> Row:
    """What the arithmetic allows: reductions of FLOPs for backward, a step and a cached step."""
    own, base = (it.flops or FlopsFigures() for it in (configuration, baseline))
    base_step = _add(base.train_forward_flops, base.backward_flops)
    step = _add(own.train_forward_flops, own.backward_flops)
    cached_step = _add(own.cached_forward_flops, own.cached_backward_flops)
    return {
        "has_flops": step is not None,
        "backward_flops_reduction": _less(own.backward_flops, base.backward_flops),
        "step_flops_reduction": _less(step, base_step),
        "cached_step_flops_reduction": _less(cached_step, base_step),
    }


def _memory_figures(configuration: BenchConfiguration, baseline: BenchConfiguration) -> Row:
    own, base = (it.memory or MemoryFigures() for it in (configuration, baseline))
    saved, base_saved = own.saved_for_backward_bytes, base.saved_for_backward_bytes
    cached = own.cached_saved_for_backward_bytes
    return {
        "status": own.status,
        "peak_bytes": own.peak_memory_bytes,
        "reserved_bytes": own.reserved_memory_bytes,
        "step_bytes": own.step_memory_bytes,
        "cached_step_bytes": own.cached_step_memory_bytes,
        "step_reduction": _less(own.step_memory_bytes, base.step_memory_bytes),
        "saved_bytes": saved,
        "saved_reduction": _less(saved, base_saved),
        "cached_saved_bytes": cached,
        "cached_saved_reduction": _less(cached, base_saved),
        "requested_bytes": own.requested_bytes,
        "phases": {
            name: {
                "peak": peaks and peaks.peak_memory_bytes,
                "reserved": peaks and peaks.reserved_memory_bytes,
            }
            for name, peaks in (own.phases or {}).items()
            if name in PHASES
        },
    }


def _median_seconds(configuration: BenchConfiguration, phase: str) -> float | None:
    times = (configuration.phases or {}).get(phase)
    return None if times is None else times.median_seconds


def _step_seconds(
    configuration: BenchConfiguration, forward: str = "train_forward", backward: str = "backward"
) -> float | None:
    """Sum of the medians of forward, backward and optimizer."""
    return _add(
        *(_median_seconds(configuration, phase) for phase in (forward, backward, "optimizer"))
    )


def _reduction(ratio: PhaseRatio | None) -> Reduction | None:
    if ratio is None or ratio.ratio is None:
        return None
    low, high = ratio.low, ratio.high
    paired = Ratio(ratio=ratio.ratio, low=low, high=high, n=ratio.n or 0)
    return Reduction(
        value=1 - paired.ratio,
        low=None if high is None else 1 - high,
        high=None if low is None else 1 - low,
        is_difference=paired.is_difference,
        p_value=paired.p_value,
        detectable_ratio=paired.detectable_ratio,
    )


def _add(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _divide(value: float | None, by: float | None) -> float | None:
    return None if value is None or not by else value / by


def _less(value: float | None, baseline: float | None) -> float | None:
    """1 - value / baseline, None where either is unknown or the baseline is zero."""
    share = _divide(value, baseline)
    return None if share is None else 1 - share


def count_comparisons(compared: Iterable[Any]) -> int:
    """The most that were tested beside one another, of ratios or reductions; 0 without a test."""
    return max((it.comparisons or 0 for it in compared if it is not None), default=0)
