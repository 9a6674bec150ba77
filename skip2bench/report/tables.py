"""The benchmark's figures in the report's tables: no words and no rounding.

Rows are dictionaries that the templates read; a figure that was not measured is None. A reduction
is 1 - figure / LoRA's figure: positive is less than LoRA, negative is more, None for LoRA itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skip2bench.config.methods import METHODS, find_method
from skip2bench.results.reading import Run
from skip2bench.results.run_folder import PHASES
from skip2bench.results.stats import Ratio

METHOD_ORDER = tuple(METHODS)
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """1 - ratio of a paired comparison; the bounds are None where one round was measured."""

    value: float
    low: float | None
    high: float | None
    is_difference: bool


def order_key(summary: Mapping[str, Any]) -> tuple[int, int, tuple[int, ...], str]:
    """Sort key of a train summary or a bench configuration: by method, then by blocks."""
    method, blocks = summary.get("method"), tuple(summary.get("blocks") or ())
    place = METHOD_ORDER.index(method) if method in METHOD_ORDER else len(METHOD_ORDER)
    return place, len(blocks), blocks, str(summary.get("target"))


def find_baseline(summaries: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first summary of traditional LoRA, if there is one."""
    return next((it for it in summaries if find_method(it.get("method")).is_traditional), None)


def build_bench_rows(run: Run) -> list[Row]:
    """One row a configuration of a bench run, in their order, each compared with the run's LoRA."""
    configurations: list[Mapping[str, Any]] = run.summary.get("configurations") or []
    return sorted(
        compare_configurations(configurations, find_baseline(configurations)), key=order_key
    )


def compare_configurations(
    configurations: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any] | None
) -> list[Row]:
    """One row a configuration of a benchmark, each compared with one of them, the baseline.

    Paired ratios are read only where that is the first configuration: they are against that.
    """
    is_paired = bool(configurations) and configurations[0] is baseline
    rows = []
    for configuration in configurations:
        other = {} if configuration is baseline or baseline is None else baseline
        row: Row = {key: configuration.get(key) for key in ("method", "blocks", "target", "rank")}
        row["label"] = configuration.get("label") or configuration.get("method") or "-"
        row |= _misfit_figures(configuration)
        row |= _parameter_figures(configuration, other)
        row |= _time_figures(configuration, other, is_paired=is_paired)
        row |= _flops_figures(configuration, other)
        row["ratios"] = configuration.get("ratios") or {}
        row["memory"] = _memory_figures(configuration, other)
        rows.append(row)
    return rows


def _misfit_figures(configuration: Mapping[str, Any]) -> Row:
    """What a configuration asked for that did not fit, and where; it was not timed then."""
    is_oom = configuration.get("status") == "oom"
    return {
        "is_oom": is_oom,
        "requested_bytes": configuration.get("requested_bytes") if is_oom else None,
        "oom_phase": configuration.get("oom_phase") if is_oom else None,
    }


def _parameter_figures(summary: Mapping[str, Any], baseline: Mapping[str, Any]) -> Row:
    total, trainable = summary.get("total_parameters"), summary.get("trainable_parameters")
    return {
        "total_parameters": total,
        "trainable_parameters": trainable,
        "trainable_ratio": _divide(trainable, total),
        "trainable_reduction": _less(trainable, baseline.get("trainable_parameters")),
    }


def _time_figures(
    configuration: Mapping[str, Any], baseline: Mapping[str, Any], *, is_paired: bool
) -> Row:
    """Phases and steps; reductions are paired for phases, of medians for steps."""
    phases = configuration.get("phases") or {}
    names = ("forward", "train_forward", "backward", "optimizer")
    row: Row = {f"{name}_seconds": _median_seconds(configuration, name) for name in names}
    row |= {name: phases.get(name) for name in (*names, "cached_forward", "cached_backward")}
    row["step_seconds"] = _step_seconds(configuration)
    row["cached_step_seconds"] = _step_seconds(configuration, "cached_forward", "cached_backward")
    for name in ("step", "cached_step"):
        row[f"{name}_reduction"] = _less(row[f"{name}_seconds"], _step_seconds(baseline))
    for phase in ("backward", "cached_backward"):
        ratio = (configuration.get("ratios") or {}).get(phase) if baseline and is_paired else None
        row[f"{phase}_reduction"] = _reduction(ratio)
    return row


def _flops_figures(configuration: Mapping[str, Any], baseline: Mapping[str, Any]) -> Row:
    """What the arithmetic allows: reductions of FLOPs for backward, a step and a cached step."""
    own, base = configuration.get("flops") or {}, baseline.get("flops") or {}
    base_step = _add(base.get("train_forward_flops"), base.get("backward_flops"))
    step = _add(own.get("train_forward_flops"), own.get("backward_flops"))
    cached_step = _add(own.get("cached_forward_flops"), own.get("cached_backward_flops"))
    return {
        "has_flops": step is not None,
        "backward_flops_reduction": _less(own.get("backward_flops"), base.get("backward_flops")),
        "step_flops_reduction": _less(step, base_step),
        "cached_step_flops_reduction": _less(cached_step, base_step),
    }


def _memory_figures(configuration: Mapping[str, Any], baseline: Mapping[str, Any]) -> Row:
    own, base = configuration.get("memory") or {}, baseline.get("memory") or {}
    saved, base_saved = own.get("saved_for_backward_bytes"), base.get("saved_for_backward_bytes")
    cached = own.get("cached_saved_for_backward_bytes")
    return {
        "status": own.get("status"),
        "peak_bytes": own.get("peak_memory_bytes"),
        "reserved_bytes": own.get("reserved_memory_bytes"),
        "step_bytes": own.get("step_memory_bytes"),
        "cached_step_bytes": own.get("cached_step_memory_bytes"),
        "step_reduction": _less(own.get("step_memory_bytes"), base.get("step_memory_bytes")),
        "saved_bytes": saved,
        "saved_reduction": _less(saved, base_saved),
        "cached_saved_bytes": cached,
        "cached_saved_reduction": _less(cached, base_saved),
        "requested_bytes": own.get("requested_bytes"),
        "phases": {
            name: {key: (figures or {}).get(f"{key}_memory_bytes") for key in ("peak", "reserved")}
            for name, figures in (own.get("phases") or {}).items()
            if name in PHASES
        },
    }


def _median_seconds(configuration: Mapping[str, Any], phase: str) -> float | None:
    median: float | None = ((configuration.get("phases") or {}).get(phase) or {}).get(
        "median_seconds"
    )
    return median


def _step_seconds(
    configuration: Mapping[str, Any], forward: str = "train_forward", backward: str = "backward"
) -> float | None:
    """Sum of the medians of forward, backward and optimizer."""
    return _add(
        *(_median_seconds(configuration, phase) for phase in (forward, backward, "optimizer"))
    )


def _reduction(ratio: Mapping[str, Any] | None) -> Reduction | None:
    if not ratio or ratio.get("ratio") is None:
        return None
    low, high = ratio.get("low"), ratio.get("high")
    paired = Ratio(ratio=ratio["ratio"], low=low, high=high, n=ratio.get("n") or 0)
    return Reduction(
        value=1 - paired.ratio,
        low=None if high is None else 1 - high,
        high=None if low is None else 1 - low,
        is_difference=paired.is_difference,
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
