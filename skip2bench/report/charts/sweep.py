"""Charts of a sweep, in the look of `drawing`: what losses cost, and what a choice makes of them.

Exploration, one seed, is pale or hollow; results, the finalists trained alone, are solid with bars.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from skip2bench.io.units import Language, format_loss
from skip2bench.report.charts.drawing import (
    COLOURS,
    INK,
    MARKERS,
    MAX_SHOWN,
    add_legend,
    finish,
    legend_label,
    make_figure,
    plain_label,
    scale_costs,
    to_svg,
)
from skip2bench.report.tables.tune_columns import name_in_words
from skip2bench.results.comparison_records import ComparedConfiguration
from skip2bench.results.tune_records import Explored, Sensitivity, TuneResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "val_loss": "Validation loss",
        "parameters": "Trainable parameters",
        "flops": "FLOPs of a cached step, a supervised position",
        "finished": "Exploration, one seed: trained to the end",
        "left": "Exploration: left at a rung, fewer updates",
        "front": "Pareto front of those trained to the end",
        "base": "Base model: {loss}",
        "worse": "Worse than the base model, not shown: {n}",
        "first_rung": "Validation loss after the first rung (exploration)",
        "best": "Best",
        "median": "Median",
    },
    "ja": {
        "val_loss": "検証損失",
        "parameters": "学習パラメータ数",
        "flops": "キャッシュ済み step の FLOPs（教師あり位置あたり）",
        "finished": "探索（1 シード）: 最後まで学習",
        "left": "探索: 途中で脱落（更新回数が少ない）",
        "front": "最後まで学習した設定のパレート境界",
        "base": "ベースモデル: {loss}",
        "worse": "ベースモデルより悪く、範囲外: {n}",
        "first_rung": "最初の段 (rung) の後の検証損失（探索）",
        "best": "最良",
        "median": "中央値",
    },
}
_PALE = "#7F7F7F"
_COLOURS = tuple(colour for colour in COLOURS if colour != _PALE)
_VALUE_LENGTH = 28
_MAX_VALUES = 60
"""On the chart of sensitivity; with more, it would be a wall."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A sweep as the frontier shows it; losses above the base model's are kept out."""

    finished: Sequence[Explored]
    left: Sequence[Explored]
    finalists: Sequence[tuple[Explored, ComparedConfiguration]]
    """What each is, and its results."""
    base: float | None
    worse: int

    @property
    def losses(self) -> list[float]:
        """All that must be on the chart, but for the base model's."""
        own = [_loss(one) for one in (*self.finished, *self.left)]
        for _, entry in self.finalists:
            figure = entry.figures["best_val_loss"]
            own += [figure.mean - figure.std, figure.mean + figure.std]
        return own

    @property
    def is_base_far(self) -> bool:
        """True where the base model on the same axis would press all others together."""
        low, high = min(self.losses), max(self.losses)
        return self.base is not None and self.base - high > 0.4 * (high - low)


def draw_tune_charts(found: TuneResults, lang: Language) -> dict[str, str]:
    """The charts of a sweep that have something to show, as SVG text by name."""
    drawn = {}
    if _sort_out(found).losses:
        drawn["frontier"] = draw_frontier(found, lang)
    if 0 < len(found.sensitivity) <= _MAX_VALUES:
        drawn["sensitivity"] = draw_sensitivity(found.sensitivity, lang)
    return drawn


def draw_frontier(found: TuneResults, lang: Language) -> str:
    """Validation loss against trainable parameters, and against the FLOPs of a cached step.

    The base model's loss stands in a strip of its own where it is far above the others.
    """
    words, shown = WORDS[lang], _sort_out(found)
    is_far = bool(shown.losses) and shown.is_base_far
    figure = make_figure(9.6, 5.4)
    rows = figure.subplots(
        1 + is_far,
        2,
        sharex="col",
        sharey="row",
        squeeze=False,
        height_ratios=(1, 9) if is_far else None,
    )
    for axes, cost in zip(rows[-1], (_parameters, _flops), strict=True):
        _draw_explored(axes, shown, cost, words)
        _draw_finalists(axes, shown, cost)
        if shown.base is not None and not is_far:
            _draw_base(axes, shown.base, words)
        scale_costs(axes, [cost(one) for one in (*shown.finished, *shown.left)])
    rows[-1][0].set(xlabel=words["parameters"], ylabel=words["val_loss"])
    rows[-1][1].set(xlabel=words["flops"])
    if is_far and shown.base is not None:
        _draw_strip(rows, shown.base, words)
    if shown.worse:
        rows[-1][0].plot([], [], " ", label=words["worse"].format(n=shown.worse))
    for axes in rows.flat:
        finish(axes)
    add_legend(figure, rows[-1][0])
    return _number_clips(to_svg(figure))


def _number_clips(svg: str) -> str:
    """The chart with its clip paths numbered as they come.

    Their names are hashes of places whose last bits the solver of the layout leaves to chance.
    """
    known: dict[str, str] = {}
    return re.sub(
        r"\bp[0-9a-f]{10}\b", lambda it: known.setdefault(it[0], f"clip{len(known)}"), svg
    )


def draw_sensitivity(rows: Sequence[Sensitivity], lang: Language) -> str:
    """Best and median loss by the value of each choice, a panel a choice, on one scale."""
    words = WORDS[lang]
    grouped = [(name, list(own)) for name, own in groupby(rows, key=lambda row: row.factor)]
    heights = [len(own) + 0.6 for _, own in grouped]
    figure = make_figure(9.6, 1.3 + 0.27 * sum(heights) + 0.3 * len(grouped))
    panels = figure.subplots(len(grouped), 1, sharex=True, squeeze=False, height_ratios=heights)
    for axes, (name, own) in zip(panels.flat, grouped, strict=True):
        places = range(len(own))
        best = [row.best_val_loss for row in own]
        medians = [row.median_val_loss for row in own]
        axes.hlines(places, best, medians, color=_PALE, linewidth=1)
        axes.plot(best, places, "o", color=COLOURS[0], label=words["best"])
        axes.plot(
            *(medians, places, "o"), color=COLOURS[1], fillstyle="none", label=words["median"]
        )
        labels = [f"{plain_label(row.value, _VALUE_LENGTH)} (n={row.n:,})" for row in own]
        axes.set_yticks(places, labels)
        axes.set_ylim(len(own) - 0.4, -0.6)
        title = plain_label(name_in_words("factor", name, lang), _VALUE_LENGTH)
        axes.set_title(title, loc="left", fontsize="medium", color=INK)
        finish(axes)
    panels[-1][0].set_xlabel(words["first_rung"])
    add_legend(figure, panels[0][0])
    return _number_clips(to_svg(figure))


def _sort_out(found: TuneResults) -> _Found:
    base = found.initial_val_loss
    tried = [
        one
        for one in found.configurations
        if one.status != "diverged" and one.best_val_loss is not None
    ]
    kept = [one for one in tried if base is None or _loss(one) <= base]
    by_name = {one.name: one for one in found.configurations}
    finalists = [
        (by_name[name], entry)
        for name, entry in zip(found.finalist_names, found.finalists, strict=True)
        if "best_val_loss" in entry.figures
    ]
    return _Found(
        finished=[one for one in kept if one.status == "finished"],
        left=[one for one in kept if one.status != "finished"],
        finalists=finalists[:MAX_SHOWN],
        base=base,
        worse=len(tried) - len(kept),
    )


def _loss(one: Explored) -> float:
    return one.best_val_loss or 0.0


def _parameters(one: Explored) -> float:
    return one.trainable_parameters


def _flops(one: Explored) -> float:
    return one.flops_per_position


_Cost = Callable[[Explored], float]


def _draw_explored(axes: "Axes", shown: _Found, cost: _Cost, words: dict[str, str]) -> None:
    for name, own in (("finished", shown.finished), ("left", shown.left)):
        if own:
            axes.plot(
                [cost(one) for one in own],
                [_loss(one) for one in own],
                "o",
                color=_PALE,
                alpha=0.75,
                markersize=6,
                fillstyle="full" if name == "finished" else "none",
                label=words[name],
            )
    front = find_frontier(shown.finished, cost)
    if len(front) > 1:
        axes.plot(
            [cost(one) for one in front],
            [_loss(one) for one in front],
            drawstyle="steps-post",
            color=INK,
            linewidth=1,
            zorder=1,
            label=words["front"],
        )


def find_frontier(entries: Sequence[Explored], cost: Callable[[Explored], float]) -> list[Explored]:
    """Configurations that no other beats in both cost and loss, the cheapest first."""
    front: list[Explored] = []
    for one in sorted(entries, key=lambda it: (cost(it), _loss(it))):
        if not front or _loss(one) < _loss(front[-1]):
            front.append(one)
    return front


def _draw_finalists(axes: "Axes", shown: _Found, cost: _Cost) -> None:
    for number, (one, entry) in enumerate(shown.finalists):
        figure = entry.figures["best_val_loss"]
        axes.errorbar(
            [cost(one)],
            [figure.mean],
            yerr=[figure.std],
            marker=MARKERS[number % len(MARKERS)],
            color=_COLOURS[number % len(_COLOURS)],
            linestyle="",
            markersize=8,
            capsize=3,
            zorder=3,
            label=_label(entry),
        )


def _label(entry: ComparedConfiguration) -> str:
    return f"{legend_label(entry.label)} (n={len(entry.seeds):,})"


def _draw_base(axes: "Axes", base: float, words: dict[str, str]) -> None:
    label = words["base"].format(loss=format_loss(base))
    axes.axhline(base, linestyle="--", color=INK, linewidth=1, label=label)


def _draw_strip(rows: Any, base: float, words: dict[str, str]) -> None:
    """The base model's loss above the panels, and in their legend."""
    label = words["base"].format(loss=format_loss(base))
    rows[-1][0].plot([], [], linestyle="--", color=INK, linewidth=1, label=label)
    for upper, lower in zip(*rows, strict=True):
        _draw_base(upper, base, words)
        upper.set(ylim=(base - 1, base + 1), yticks=[base], yticklabels=[format_loss(base)])
        upper.tick_params(which="both", bottom=False)
        upper.spines.bottom.set_linestyle((0, (2, 4)))
        lower.spines.top.set_visible(False)
