"""Which charts a report has, and their numbers: those that its tables show."""

from collections.abc import Mapping, Sequence
from typing import Any

from skip2bench import charts
from skip2bench.config import Language
from skip2bench.curves import LossCurve

Entry = Mapping[str, Any]
_PHASES = ("forward", "backward", "cached_backward", "optimizer")
_COST_EPOCHS = 10
MAX_SHOWN = 16
"""Configurations on a chart; with more, nobody tells one line from another."""


def draw_charts(
    bench_rows: Sequence[Mapping[str, Any]],
    entries: Sequence[Entry],
    curves: Mapping[str, Sequence[LossCurve]],
    lang: Language,
) -> dict[str, str]:
    """Every chart that has something to show, as SVG text by name, of the first MAX_SHOWN.

    Args:
        bench_rows: Rows of `tables.build_bench_rows`.
        entries: Configurations, the baseline first.
        curves: Evaluation points of each configuration's runs, by its name.
        lang: Language of the words on the charts.
    """
    drawn = {}
    bench_rows, entries = bench_rows[:MAX_SHOWN], entries[:MAX_SHOWN]
    if any(row["backward_seconds"] is not None for row in bench_rows):
        bars = [_phase_bars(row) for row in bench_rows]
        drawn["phases"] = charts.draw_bars(bars, _PHASES, "milliseconds", lang)
    if any(row["memory"]["peak_bytes"] is not None for row in bench_rows):
        bars = [_memory_bars(row) for row in bench_rows]
        drawn["memory"] = charts.draw_bars(bars, ("peak", "saved"), "mebibytes", lang)
    series = [
        _combine_curves(entry["label"], curves[entry["name"]])
        for entry in entries
        if curves.get(entry["name"])
    ]
    if series:
        drawn["losses"] = charts.draw_losses(series, lang)
    points = [_make_point(entry) for entry in entries if entry["figures"]]
    if len(points) > 1:
        drawn["tradeoff"] = charts.draw_tradeoff(points, lang)
    lines = make_cost_lines(entries)
    if len(lines) > 1:
        epochs = max(_COST_EPOCHS, *(_epochs(entry) for entry in entries if entry["figures"]))
        drawn["costs"] = charts.draw_costs(lines, epochs, lang)
    return drawn


def make_cost_lines(entries: Sequence[Entry]) -> list[charts.CostLine]:
    """What each configuration costs: its cache and its epochs; peers and controls left out."""
    return [
        charts.CostLine(
            label=entry["label"],
            start_seconds=_mean(entry, "cache_build_seconds"),
            epoch_seconds=_mean(entry, "epoch_seconds"),
        )
        for entry in entries
        if not entry["peer"] and not entry["is_aa"] and "epoch_seconds" in entry["figures"]
    ]


def _phase_bars(row: Mapping[str, Any]) -> charts.Bars:
    phases = [row[phase] or {} for phase in _PHASES]
    return charts.Bars(
        label=row["label"],
        values=[_times(phase.get("median_seconds"), 1000) for phase in phases],
        errors=[_times(phase.get("std_seconds"), 1000) for phase in phases],
    )


def _memory_bars(row: Mapping[str, Any]) -> charts.Bars:
    memory = row["memory"]
    sizes = (memory["peak_bytes"], memory["saved_bytes"])
    return charts.Bars(
        label=row["label"],
        values=[_times(size, 2**-20) for size in sizes],
        errors=[None] * len(sizes),
    )


def _combine_curves(label: str, curves: Sequence[LossCurve]) -> charts.LossSeries:
    """Means over the runs, point by point, of those that evaluated at the same steps.

    Of very many points some are left out, at equal distances, but never the first and the last.
    """
    same = [curve for curve in curves if curve.steps == curves[0].steps]
    last = len(curves[0].steps) - 1
    shown = [*range(0, last, max(1, last // charts.MAX_POINTS)), last]
    val = [[curve.val_losses[i] for curve in same] for i in shown]
    return charts.LossSeries(
        label=label,
        steps=[curves[0].steps[i] for i in shown],
        seconds=[_mean_of([curve.train_seconds[i] for curve in same]) for i in shown],
        val=[_mean_of(values) for values in val],
        val_low=[min(values) for values in val],
        val_high=[max(values) for values in val],
        train=[_mean_of([curve.train_losses[i] for curve in same]) for i in shown],
    )


def _mean_of(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _make_point(entry: Entry) -> charts.Point:
    seconds, loss = entry["figures"]["train_seconds"], entry["figures"]["final_val_loss"]
    return charts.Point(
        label=entry["label"],
        seconds=seconds["mean"],
        loss=loss["mean"],
        seconds_error=seconds["std"],
        loss_error=loss["std"],
    )


def _epochs(entry: Entry) -> int:
    return round(_mean(entry, "epochs"))


def _mean(entry: Entry, name: str) -> float:
    figure = entry["figures"].get(name)
    return float(figure["mean"]) if figure else 0.0


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
