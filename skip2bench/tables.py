"""The figures of the report's tables, derived from run summaries: no words and no rounding.

Rows are dictionaries that the templates read; a figure that was not measured is None. A reduction
is 1 - figure / LoRA's figure: positive is less than LoRA, negative is more, None for LoRA itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from skip2bench.config import MethodName
from skip2bench.results import Run
from skip2bench.stats import Ratio

METHOD_ORDER = get_args(MethodName)
WORSE_LOSS_RATIO = 0.05
"""A final loss above LoRA's by more than this share gets the guide's advice on accuracy."""
SPEED_GAP_RATIO = 0.1
"""A measured reduction this far below the one by FLOPs gets the guide's advice on speed."""

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
    return next((summary for summary in summaries if summary.get("method") == "lora"), None)


def build_bench_rows(run: Run) -> list[Row]:
    """One row a configuration of a bench run, each compared with the run's LoRA.

    Paired ratios are read only where LoRA is the run's first configuration: they are against that.
    """
    configurations: list[Mapping[str, Any]] = run.summary.get("configurations") or []
    baseline = find_baseline(configurations)
    is_paired = bool(configurations) and configurations[0] is baseline
    rows = []
    for configuration in sorted(configurations, key=order_key):
        other = {} if configuration is baseline or baseline is None else baseline
        row: Row = {key: configuration.get(key) for key in ("label", "method", "blocks", "target")}
        row |= _parameter_figures(configuration, other)
        row |= _time_figures(configuration, other, is_paired=is_paired)
        row |= _flops_figures(configuration, other)
        row["memory"] = _memory_figures(configuration, other)
        rows.append(row)
    return rows


def build_train_rows(runs: Sequence[Run]) -> list[Row]:
    """One row a train run, in the order given, each compared with the LoRA run among them."""
    summaries = [run.summary for run in runs]
    baseline = find_baseline(summaries)
    return [
        _train_row(summary, {} if summary is baseline or baseline is None else baseline)
        for summary in summaries
    ]


def find_advice(bench_rows: Sequence[Row], train_rows: Sequence[Row]) -> dict[str, list[str]]:
    """Labels of the rows that call for the guide's advice (section 10).

    Returns:
        `memory`: autograd saves no less than with LoRA. `accuracy`: the final loss is above LoRA's
        by more than WORSE_LOSS_RATIO. `speed`: the measured backward reduction, at the best end of
        its interval, is below the one by FLOPs by more than SPEED_GAP_RATIO.
    """
    advice: dict[str, list[str]] = {"memory": [], "accuracy": [], "speed": []}
    for row in bench_rows:
        saved = row["memory"]["saved_reduction"]
        if saved is not None and saved <= 0:
            advice["memory"].append(row["label"])
        measured, by_flops = row["backward_reduction"], row["backward_flops_reduction"]
        if measured and by_flops is not None:
            # a shortfall is claimed only where even the best end of the interval falls short
            best = measured.value if measured.high is None else measured.high
            if by_flops - best > SPEED_GAP_RATIO:
                advice["speed"].append(row["label"])
    for row in train_rows:
        if row["loss_change_ratio"] is not None and row["loss_change_ratio"] > WORSE_LOSS_RATIO:
            advice["accuracy"].append(row["label"])
    return advice


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
    """Median seconds of phases and steps; reductions paired for phases, of medians for steps."""
    row: Row = {
        f"{phase}_seconds": _median_seconds(configuration, phase)
        for phase in ("forward", "train_forward", "backward", "optimizer")
    }
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
        "step_reduction": _less(own.get("step_memory_bytes"), base.get("step_memory_bytes")),
        "saved_bytes": saved,
        "saved_reduction": _less(saved, base_saved),
        "cached_saved_bytes": cached,
        "cached_saved_reduction": _less(cached, base_saved),
    }


def _train_row(summary: Mapping[str, Any], base: Mapping[str, Any]) -> Row:
    """Figures of one run; `base` is LoRA's summary, empty for LoRA itself or without one."""
    seconds, steps = summary.get("train_seconds"), summary.get("steps")
    initial, final = summary.get("initial_val_loss"), summary.get("final_val_loss")
    names = (
        "label",
        "method",
        "blocks",
        "target",
        "rank",
        "learning_rate",
        "micro_batch_size",
        "tokens",
    )
    row: Row = {name: summary.get(name) for name in names}
    row |= _parameter_figures(summary, base)
    return row | {
        "steps": steps,
        "train_seconds": seconds,
        "train_reduction": _less(seconds, base.get("train_seconds")),
        "train_share": _divide(seconds, base.get("train_seconds")),
        # LoRA and Skip-LoRA have no cache: "-" says so, zero seconds would not
        "cache_build_seconds": summary.get("cache_build_seconds") or None,
        "cache_bytes": summary.get("cache_bytes") or None,
        "steps_per_second": _divide(steps, seconds),
        "tokens_per_second": _divide(summary.get("tokens"), seconds),
        "peak_bytes": summary.get("peak_memory_bytes"),
        "peak_reduction": _less(summary.get("peak_memory_bytes"), base.get("peak_memory_bytes")),
        "initial_val_loss": initial,
        "final_val_loss": final,
        "best_val_loss": summary.get("best_val_loss"),
        "best_step": summary.get("best_step"),
        "loss_change_ratio": _negated(_less(final, base.get("final_val_loss"))),
        "loss_per_step": _divide(_add(final, _negated(initial)), steps),
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


def _negated(value: float | None) -> float | None:
    return None if value is None else -value
