"""The report's charts: which there are, from the figures that its tables show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skip2bench.io.units import Language
from skip2bench.report.charts.drawing import (
    COLOURS,
    HATCHES,
    INK,
    MARKERS,
    MAX_SHOWN,
    add_legend,
    finish,
    legend_label,
    line_style,
    make_figure,
    scale_costs,
    to_svg,
)
from skip2bench.report.tables.cells import centre, find_bounds
from skip2bench.report.tables.matching import list_given_samples
from skip2bench.results.bench_records import PhaseTimes
from skip2bench.results.comparison_records import ComparedConfiguration, FigureSummary
from skip2bench.results.curves import LossCurve

MAX_POINTS = 200
"""Of a line; more would be markers upon markers, and megabytes of SVG."""
WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "step": "Step",
        "seconds": "Training time (s)",
        "val_loss": "Validation loss",
        "train_loss": "Training loss",
        "milliseconds": "ms (median; bars: quartiles, of few values their range)",
        "forward": "Forward",
        "backward": "Backward",
        "optimizer": "Optimizer",
        "cached_backward": "Backward, cached",
        "mebibytes": "MiB",
        "peak": "Peak",
        "saved": "Saved for backward",
        "final_loss": "Final validation loss",
        "front": "Pareto front",
        "epochs": "Epochs",
        "cumulative": "Cumulative training time (s)",
    },
    "ja": {
        "step": "ステップ",
        "seconds": "学習時間 (秒)",
        "val_loss": "検証損失",
        "train_loss": "学習損失",
        "milliseconds": "ms (中央値、誤差棒は四分位点、値が少なければ範囲)",
        "forward": "順伝播",
        "backward": "逆伝播",
        "optimizer": "optimizer",
        "cached_backward": "逆伝播 (キャッシュ)",
        "mebibytes": "MiB",
        "peak": "ピーク",
        "saved": "逆伝播用の保存",
        "final_loss": "最終検証損失",
        "front": "パレート境界",
        "epochs": "エポック数",
        "cumulative": "累積学習時間 (秒)",
    },
}


@dataclass(frozen=True, kw_only=True)
class LossSeries:
    """Losses of one configuration over its evaluation points; means over seeds, and their range."""

    label: str
    steps: Sequence[float]
    seconds: Sequence[float]
    val: Sequence[float]
    val_low: Sequence[float]
    val_high: Sequence[float]
    train: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Figures of one configuration, a bar each; None where there is none."""

    label: str
    values: Sequence[float | None]
    bounds: Sequence[tuple[float, float] | None]
    """Ends of the error bars."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One configuration's training time and final loss, and how they scatter."""

    label: str
    seconds: float
    loss: float
    seconds_bounds: tuple[float, float]
    """Quartiles, of few runs the range."""
    loss_error: float
    """Standard deviation."""


@dataclass(frozen=True, kw_only=True)
class CostLine:
    """What a configuration has cost after any number of epochs."""

    label: str
    start_seconds: float
    """Before the first epoch: building the cache."""
    epoch_seconds: float

    def after(self, epochs: float) -> float:
        """Seconds of the training clock after so many epochs."""
        return self.start_seconds + epochs * self.epoch_seconds


def draw_losses(series: Sequence[LossSeries], lang: Language) -> str:
    """Validation loss (above) and training loss (below), over steps and over training time."""
    words = WORDS[lang]
    figure = make_figure(9.6, 7.2)
    grid = figure.subplots(2, 2, sharey="row", sharex="col")
    for number, one in enumerate(series):
        style = line_style(number, one.label)
        for column, xs in enumerate((one.steps, one.seconds)):
            upper, lower = grid[0][column], grid[1][column]
            upper.plot(xs, one.val, **style)
            upper.fill_between(xs, one.val_low, one.val_high, color=style["color"], alpha=0.2, lw=0)
            lower.plot(xs, one.train, **style)
    for row, name in enumerate(("val_loss", "train_loss")):
        grid[row][0].set_ylabel(words[name])
    grid[1][0].set_xlabel(words["step"])
    grid[1][1].set_xlabel(words["seconds"])
    for axes in grid.flat:
        finish(axes)
    add_legend(figure, grid[0][0])
    return to_svg(figure)


def draw_bars(bars: Sequence[Bars], groups: Sequence[str], unit: str, lang: Language) -> str:
    """Grouped horizontal bars: a group a quantity (names of WORDS), a bar a configuration."""
    words = WORDS[lang]
    figure = make_figure(9.6, 1.2 + 0.32 * len(groups) * (len(bars) + 1))
    axes = figure.subplots()
    height = 0.8 / len(bars)
    for number, one in enumerate(bars):
        places = [group + (number - (len(bars) - 1) / 2) * height for group in range(len(groups))]
        known = [i for i, value in enumerate(one.values) if value is not None]
        axes.barh(
            [places[i] for i in known],
            [one.values[i] or 0.0 for i in known],
            height=height * 0.92,
            xerr=_error_bars(one, known),
            label=legend_label(one.label),
            color=COLOURS[number % len(COLOURS)],
            hatch=HATCHES[number % len(HATCHES)],
            edgecolor=INK,
            linewidth=0.4,
            error_kw={"ecolor": INK, "capsize": 2, "lw": 0.9},
        )
    axes.set_yticks(range(len(groups)), [words[group] for group in groups])
    axes.invert_yaxis()
    axes.set_xlabel(words[unit])
    finish(axes)
    add_legend(figure, axes)
    return to_svg(figure)


def _error_bars(bars: Bars, known: Sequence[int]) -> list[list[float]] | None:
    """Distances to the ends of each known bar's error bar; None where there are none."""
    if not any(bars.bounds):
        return None
    pairs = [(bars.values[i] or 0.0, bars.bounds[i]) for i in known]
    ends = [(value, bounds or (value, value)) for value, bounds in pairs]
    both = [_distances(value, [bounds]) for value, bounds in ends]
    return [[one[side][0] for one in both] for side in (0, 1)]


def _distances(middle: float, bounds: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Below and above, as matplotlib takes them."""
    return [
        [max(0.0, middle - low) for low, _ in bounds],
        [max(0.0, high - middle) for _, high in bounds],
    ]


def draw_tradeoff(points: Sequence[Point], lang: Language) -> str:
    """Final loss against training time, one point a configuration, and the Pareto front."""
    words = WORDS[lang]
    figure = make_figure(9.6, 5.0)
    axes = figure.subplots()
    for number, point in enumerate(points):
        axes.errorbar(
            [point.seconds],
            [point.loss],
            xerr=_distances(point.seconds, [point.seconds_bounds]),
            yerr=[point.loss_error],
            marker=MARKERS[number % len(MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            linestyle="",
            markersize=9,
            capsize=3,
            label=legend_label(point.label),
        )
    front = find_front(points)
    axes.plot(
        [point.seconds for point in front],
        [point.loss for point in front],
        linestyle="--",
        color=INK,
        linewidth=1,
        zorder=0,
        label=words["front"],
    )
    scale_costs(axes, [point.seconds for point in points])
    axes.set(xlabel=words["seconds"], ylabel=words["final_loss"])
    finish(axes)
    add_legend(figure, axes)
    return to_svg(figure)


def find_front(points: Sequence[Point]) -> list[Point]:
    """Points that no other beats in both time and loss, the fastest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.seconds, p.loss)):
        if not front or point.loss < front[-1].loss:
            front.append(point)
    return front


def draw_costs(lines: Sequence[CostLine], epochs: int, lang: Language) -> str:
    """Cumulative training time over epochs; the first line is the baseline that others cross."""
    words = WORDS[lang]
    figure = make_figure(9.6, 5.0)
    axes = figure.subplots()
    stride = max(1, epochs // MAX_POINTS)
    xs = [*range(0, epochs, stride), epochs]
    for number, line in enumerate(lines):
        style = line_style(number, line.label)
        axes.plot(xs, [line.after(epoch) for epoch in xs], **style)
        epoch = break_even_epoch(line, lines[0])
        if number and epoch is not None and 0 < epoch <= epochs:
            axes.plot([epoch], [line.after(epoch)], "o", color=INK, ms=11, fillstyle="none")
    axes.set(xlabel=words["epochs"], ylabel=words["cumulative"])
    finish(axes)
    add_legend(figure, axes)
    return to_svg(figure)


def break_even_epoch(line: CostLine, baseline: CostLine) -> float | None:
    """Epochs after which a configuration has cost as little as the baseline; None for never."""
    saved = baseline.epoch_seconds - line.epoch_seconds
    if saved <= 0:
        return None
    return max(0.0, (line.start_seconds - baseline.start_seconds) / saved)


Entry = ComparedConfiguration
_PHASES = ("forward", "backward", "cached_backward", "optimizer")
_COST_EPOCHS = 10


def draw_charts(
    bench_rows: Sequence[Mapping[str, Any]],
    entries: Sequence[Entry],
    curves: Mapping[str, Sequence[LossCurve]],
    lang: Language,
) -> dict[str, str]:
    """Every chart that has something to show, as SVG text by name, of the first MAX_SHOWN.

    Args:
        bench_rows: Rows of `bench_rows.build_bench_rows`.
        entries: Configurations, the baseline first.
        curves: Evaluation points of each configuration's runs, by its name.
        lang: Language of the words on the charts.
    """
    drawn = {}
    bench_rows, entries = bench_rows[:MAX_SHOWN], entries[:MAX_SHOWN]
    if any(row["backward_seconds"] is not None for row in bench_rows):
        bars = [_phase_bars(row) for row in bench_rows]
        drawn["phases"] = draw_bars(bars, _PHASES, "milliseconds", lang)
    if any(row["memory"]["peak_bytes"] is not None for row in bench_rows):
        bars = [_memory_bars(row) for row in bench_rows]
        drawn["memory"] = draw_bars(bars, ("peak", "saved"), "mebibytes", lang)
    series = [
        _combine_curves(entry.label, curves[entry.name])
        for entry in entries
        if curves.get(entry.name)
    ]
    if series:
        drawn["losses"] = draw_losses(series, lang)
    points = [_make_point(entry) for entry in entries if entry.figures]
    if len(points) > 1:
        drawn["tradeoff"] = draw_tradeoff(points, lang)
    lines = make_cost_lines(entries)
    if len(lines) > 1 and lines[0].label == entries[0].label:  # else there is none to cross
        epochs = max(_COST_EPOCHS, *(_epochs(entry) for entry in entries if entry.figures))
        drawn["costs"] = draw_costs(lines, epochs, lang)
    return drawn


def make_cost_lines(entries: Sequence[Entry]) -> list[CostLine]:
    """What each configuration costs: its cache and its epochs; peers and controls left out.

    None where their epochs are not over as many samples.
    """
    if len(list_given_samples(entries)) > 1:
        return []
    return [
        CostLine(
            label=entry.label,
            start_seconds=_centre(entry, "cache_build_seconds"),
            epoch_seconds=_centre(entry, "epoch_seconds"),
        )
        for entry in entries
        if not entry.peer and not entry.is_aa and "epoch_seconds" in entry.figures
    ]


def _phase_bars(row: Mapping[str, Any]) -> Bars:
    phases = [row[phase] or PhaseTimes() for phase in _PHASES]
    return Bars(
        label=row["label"],
        values=[_times(phase.median_seconds, 1000) for phase in phases],
        bounds=[_scale_bounds(find_bounds(phase), 1000) for phase in phases],
    )


def _memory_bars(row: Mapping[str, Any]) -> Bars:
    memory = row["memory"]
    sizes = (memory["peak_bytes"], memory["saved_bytes"])
    return Bars(
        label=row["label"],
        values=[_times(size, 2**-20) for size in sizes],
        bounds=[None] * len(sizes),
    )


def _combine_curves(label: str, curves: Sequence[LossCurve]) -> LossSeries:
    """Means over the runs, point by point, of those that evaluated at the same steps.

    Of very many points some are left out, at equal distances, but never the first and the last.
    """
    same = [curve for curve in curves if curve.steps == curves[0].steps]
    last = len(curves[0].steps) - 1
    shown = [*range(0, last, max(1, last // MAX_POINTS)), last]
    val = [[curve.val_losses[i] for curve in same] for i in shown]
    return LossSeries(
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


def _make_point(entry: Entry) -> Point:
    seconds, loss = entry.figures["train_seconds"], entry.figures["final_val_loss"]
    return Point(
        label=entry.label,
        seconds=centre(seconds, "train_seconds"),
        loss=loss.mean,
        seconds_bounds=_find_ends(seconds),
        loss_error=loss.std,
    )


def _find_ends(figure: FigureSummary) -> tuple[float, float]:
    """Quartiles, of few runs the range; in files without either, the mean ± standard deviation."""
    pairs = ((figure.lower_quartile, figure.upper_quartile), (figure.min, figure.max))
    for low, high in pairs:
        if low is not None and high is not None:
            return low, high
    return figure.mean - figure.std, figure.mean + figure.std


def _scale_bounds(
    bounds: tuple[float | None, float | None], factor: float
) -> tuple[float, float] | None:
    low, high = bounds
    return None if low is None or high is None else (factor * low, factor * high)


def _epochs(entry: Entry) -> int:
    return round(_centre(entry, "epochs"))


def _centre(entry: Entry, name: str) -> float:
    figure = entry.figures.get(name)
    return centre(figure, name) if figure else 0.0


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
