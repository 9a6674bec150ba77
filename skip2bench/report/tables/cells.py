"""Columns and tables: a figure, its titles and its format, said once for every output.

The terminal, the Markdown in both languages and the JSON are made of the same columns. Which there
are is the business of `columns`, and of `tune_columns` for a sweep; this page knows how their cells
are written, and has the columns that both need.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from skip2bench.io import units
from skip2bench.io.record import Record
from skip2bench.io.units import Language
from skip2bench.report.markdown import escape_markdown
from skip2bench.report.tables.bench_rows import Reduction
from skip2bench.results.bench_records import PhaseRatio, PhaseTimes
from skip2bench.results.comparison_records import FigureRatio, FigureSummary

Output = Literal["en", "ja", "screen"]
"""Where a cell is shown: the report in a language, or the terminal, which is English."""
Row = Mapping[str, Any] | Record
"""Of a benchmark a mapping, of a comparison a record."""
Format = Callable[[Any, Output], str]
"""Text of a figure that is there; a column writes "-" for one that is not."""

DISTURBED_SIGN = "‡"
"""Behind a figure that was measured while something else used the processor."""
_SIZE_UNIT = re.compile(rf"\d ({'|'.join(units.BINARY_UNITS)})\b")
_LOST = re.compile(r"\b0\.0\d* [KMGT]iB")
"""A size that a unit is too large for."""
_NO_DIFFERENCE = {"en": "no difference beyond the noise", "ja": "ノイズを超える差なし"}
_CORRECTED = {
    "en": "{}, not established once corrected (p = {:.2g})",
    "ja": "{}（補正後は有意差なし、p = {:.2g}）",
}
_DETECTABLE = {"en": "{}; from {} it would have shown", "ja": "{}（{} 以上の差なら検出）"}
_UNDETECTABLE = {
    "en": "{}; nor would a tenfold one have shown",
    "ja": "{}（10 倍の差でも検出できない）",
}
_ANY_RATIO, _MOST_RATIO = 1 + 1e-6, 10.0
"""Where figures do not scatter, any difference would have shown; too few pairs show hardly any."""
_BY_MEAN = frozenset(
    (
        *("initial_val_loss", "final_val_loss", "best_val_loss"),
        *("loss_change_per_step", "forgetting"),
    )
)
"""Figures over runs that are shown as mean ± standard deviation: they scatter evenly, and not by
much, where times and sizes may lie far to one side."""
_ONE_ROUND = {"en": " (one round, no interval)", "ja": "（1 ラウンドのみ、区間なし）"}
_MISFIT = {"en": "out of memory (oom)", "ja": "メモリ不足 (oom)"}
_ASKED_FOR = {"en": ": {} asked for", "ja": "、要求 {}"}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A figure of a row, and how it is shown."""

    key: str
    """Its name in the JSON."""
    en: str
    ja: str
    figure: Callable[[Row], Any]
    """The figure in base units; None where it does not apply or was not measured."""
    show: Format
    short: str | None = None
    """Title on the terminal, where that of the report is too wide or says less there."""
    is_text: bool = False
    """Words: to the left."""
    is_optional: bool = False
    """Left out of the Markdown where no row has the figure."""
    is_timed: bool = False
    """A benchmark's time, or made of times."""

    def title(self, output: Output) -> str:
        """Its head."""
        if output == "screen":
            return self.short or self.en
        return self.ja if output == "ja" else self.en

    def cell(self, row: Row, output: Output) -> str:
        """Its text in a row."""
        figure = self.figure(row)
        text = "-" if figure is None else self.show(figure, output)
        is_marked = self.is_timed and text != "-" and read(row, "is_disturbed")
        return f"{text} {DISTURBED_SIGN}" if is_marked else text


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A figure of the benchmark, and whether its configuration fits into memory."""

    value: Any
    status: str
    """`ok`, or `oom`."""
    requested_bytes: int | None = None


def read(row: Row, key: str) -> Any:
    """What a row keeps by a key."""
    return getattr(row, key) if isinstance(row, Record) else row[key]


def choose_columns(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """The columns without optional ones that no row has a figure for."""
    return [
        column
        for column in columns
        if not column.is_optional or any(column.figure(row) is not None for row in rows)
    ]


def render_markdown(columns: Sequence[Column], rows: Sequence[Row], lang: Language) -> str:
    """The table in Markdown, without an end of line."""
    shown = choose_columns(columns, rows)
    # as wide as the English title in both languages: nobody sees it once it is rendered
    rules = [
        "-" * (len(column.en) + 2) if column.is_text else "-" * (len(column.en) + 1) + ":"
        for column in shown
    ]
    cells = [render_cells(column, rows, lang) for column in shown]
    lines = [[column.title(lang) for column in shown], *map(list, zip(*cells, strict=True))]
    head, *body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, f"|{'|'.join(rules)}|", *body])


def render_cells(column: Column, rows: Sequence[Row], output: Output) -> list[str]:
    """A column's text in every row; sizes are in one unit, unless it is too large for some."""
    texts = [column.cell(row, output) for row in rows]
    found = set(_SIZE_UNIT.findall(" ".join(texts)))
    if len(found) < 2:
        return texts
    with units.sizes_from(max(found, key=units.BINARY_UNITS.index)):
        same = [column.cell(row, output) for row in rows]
    return texts if any(_LOST.search(text) for text in same) else same


def to_plain(columns: Sequence[Column], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The table as JSON can hold it: a mapping a row, figures in base units."""
    return [{column.key: _to_plain(column.figure(row)) for column in columns} for row in rows]


def _to_plain(figure: Any) -> Any:
    if isinstance(figure, Fit):
        figure = figure.value
    if isinstance(figure, Record):
        return figure.to_plain()
    return asdict(figure) if isinstance(figure, Reduction) else figure


def plain(render: Callable[[Any], str]) -> Format:
    """A format that is the same everywhere."""
    return lambda figure, _: render(figure)


def show_label(label: str, output: Output) -> str:
    """A configuration's name."""
    return label if output == "screen" else escape_markdown(label)


def show_duration(seconds: float, output: Output) -> str:
    """A long time in the words of the output's language."""
    return units.format_duration(seconds, "ja" if output == "ja" else "en")


def over_runs(show: Format, *, is_brief: bool = False, by_mean: bool = False) -> Format:
    """Of a figure over runs: its middle and how it scatters, on a brief terminal the middle alone.

    Args:
        show: The format of a value.
        is_brief: The terminal has room for one value.
        by_mean: Mean ± standard deviation, in place of median [quartiles].
    """

    def show_figure(figure: FigureSummary, output: Output) -> str:
        if output == "screen" and is_brief:
            is_mean = by_mean or figure.median is None
            return _mark(show(figure.mean if is_mean else figure.median, output), figure)
        render = show_spread if by_mean else show_middle
        return render(figure, lambda value: show(value, output))

    return show_figure


def show_spread(figure: FigureSummary, render: Callable[[float], str]) -> str:
    """Mean ± standard deviation, with a ± only where the figure varied."""
    mean = render(figure.mean)
    if figure.n == 1 or figure.std == 0:
        return _mark(mean, figure)
    return _mark(f"{mean} ± {render(figure.std).removeprefix('+')}", figure)


def _mark(text: str, figure: FigureSummary | FigureRatio) -> str:
    return f"{text} {DISTURBED_SIGN}" if figure.is_disturbed else text


def show_middle(figure: FigureSummary, render: Callable[[float], str]) -> str:
    """Median [quartiles], of few values [lowest, highest]; the median alone where all are alike."""
    if figure.median is None:
        return show_spread(figure, render)
    bounds = (figure.lower_quartile, figure.upper_quartile)
    if None in bounds:
        bounds = (figure.min, figure.max)
    return _mark(_with_bounds(figure.median, *bounds, render), figure)


def _with_bounds(
    middle: float, low: float | None, high: float | None, render: Callable[[float], str]
) -> str:
    text = render(middle)
    if low is None or high is None or render(low) == render(high):
        return text
    return f"{text} {_interval(low, high, render)}"


def show_ratio(ratio: FigureRatio, output: Output) -> str:
    """A paired ratio with its interval, or that there is no difference, and what would show."""
    return _mark(_say_ratio(ratio, output), ratio)


def _say_ratio(ratio: FigureRatio, output: Output) -> str:
    middle = units.format_significant(ratio.ratio)
    if ratio.low is None or ratio.high is None:
        return middle
    interval = _interval(ratio.low, ratio.high, units.format_significant)
    if ratio.is_difference:
        return f"{middle} {interval}"
    if output == "screen":
        return f"≈ {middle} {interval}"
    is_corrected = not ratio.low <= 1 <= ratio.high
    p_value = ratio.adjusted_p_value if is_corrected else None
    if p_value is not None:  # uncorrected, it has shown
        return _CORRECTED[output].format(f"{middle} {interval}", p_value)
    return _say_no_difference(interval, ratio.paired.detectable_ratio, output)


def _say_no_difference(interval: str, smallest: float | None, lang: Language) -> str:
    """That there is none, with its interval and the smallest ratio above 1 that would show."""
    words = f"{_NO_DIFFERENCE[lang]} {interval}"
    if smallest is None or smallest < _ANY_RATIO:
        return words
    if smallest > _MOST_RATIO:
        return _UNDETECTABLE[lang].format(words)
    return _DETECTABLE[lang].format(words, units.format_percent(smallest - 1))


def show_closeness(ratio: FigureRatio, _: Output) -> str:
    """A paired ratio with its interval, whether that is a difference or not."""
    middle = units.format_significant(ratio.ratio)
    if ratio.low is not None and ratio.high is not None:
        middle = f"{middle} {_interval(ratio.low, ratio.high, units.format_significant)}"
    return _mark(middle, ratio)


def show_reduction(reduction: Reduction, output: Output) -> str:
    """A paired reduction with its interval, or that there is no difference."""
    words = "en" if output == "screen" else output
    middle = units.format_percent(reduction.value)
    if reduction.low is None or reduction.high is None:
        return f"{middle}{_ONE_ROUND[words]}"
    interval = _interval(reduction.low, reduction.high, units.format_percent)
    if reduction.is_difference:
        return f"{middle} {interval}"
    is_corrected = not reduction.low <= 0 <= reduction.high
    p_value = reduction.adjusted_p_value if is_corrected else None
    if p_value is not None:
        return _CORRECTED[words].format(f"{middle} {interval}", p_value)
    return _say_no_difference(interval, reduction.detectable_ratio, words)


def show_speedup(ratio: PhaseRatio, _: Output) -> str:
    """Baseline's time over this one's, with its interval: the inverse of the stored ratio."""
    if not ratio.ratio:
        return "-"
    low, high = ratio.low, ratio.high
    middle = units.format_significant(1 / ratio.ratio)
    if low is None or high is None:
        return middle
    sign = "≈ " if low <= 1 <= high else ""
    return f"{sign}{middle} {_interval(1 / high, 1 / low, units.format_significant)}"


def show_phase(phase: Fit, output: Output) -> str:
    """A phase's median; the terminal says "oom" in every cell, the report in one of the row."""
    if output == "screen":
        if phase.value:
            return units.format_seconds(phase.value.median_seconds)
        return "oom" if phase.status == "oom" else "-"
    return show_median(phase.value)


def show_median(phase: PhaseTimes | None) -> str:
    """Median [quartiles] of a phase, of few times [lowest, highest], in milliseconds."""
    if phase is None or phase.median_seconds is None:
        return "-"
    return _with_bounds(phase.median_seconds, *find_bounds(phase), units.format_milliseconds)


def find_bounds(phase: PhaseTimes) -> tuple[float | None, float | None]:
    """Quartiles of a phase in seconds; the lowest and highest of few times."""
    if phase.lower_quartile_seconds is None or phase.upper_quartile_seconds is None:
        return phase.min_seconds, phase.max_seconds
    return phase.lower_quartile_seconds, phase.upper_quartile_seconds


def show_first_phase(phase: Fit, output: Output) -> str:
    """As `show_phase`, in the column where the report says that memory ran out."""
    return "oom" if phase.status == "oom" else show_phase(phase, output)


def show_size(size: Fit, output: Output) -> str:
    """A size in memory; the terminal says "oom" in every cell, the report in one of the row."""
    if size.value is not None:
        return units.format_bytes(size.value)
    return size.status if output == "screen" and size.status != "ok" else "-"


def show_peak(size: Fit, output: Output) -> str:
    """As `show_size`, in the column where the report says that memory ran out, and by how much."""
    if output == "screen" or size.status != "oom":
        return show_size(size, output)
    if size.requested_bytes is None:
        return _MISFIT[output]
    asked = _ASKED_FOR[output].format(units.format_bytes(size.requested_bytes))
    return f"{_MISFIT[output]}{asked}"


LOSS, COUNT = plain(units.format_loss), plain(units.format_count)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: its columns, and its rows among the data that it is made from."""

    columns: tuple[Column, ...]
    rows: Callable[[Any], Sequence[Row]] = list


def own(key: str, en: str, ja: str, show: Format, **more: Any) -> Column:
    """What a row keeps by the column's key."""
    return Column(key=key, en=en, ja=ja, figure=lambda row: read(row, key), show=show, **more)


def is_by_mean(name: str) -> bool:
    """True for a figure over runs that is shown as mean ± standard deviation."""
    return name in _BY_MEAN


def centre(figure: FigureSummary, name: str) -> float:
    """A figure over runs as tables show it: its mean, or its median."""
    return figure.mean if is_by_mean(name) or figure.median is None else figure.median


def figure_over_runs(name: str, en: str, ja: str, show: Format, **more: Any) -> Column:
    """A figure over a configuration's runs, as `stats.Summary` has it."""
    shown = over_runs(show, by_mean=is_by_mean(name))
    return Column(
        key=name,
        en=en,
        ja=ja,
        figure=lambda entry: read(entry, "figures").get(name),
        show=shown,
        **more,
    )


def ratio(name: str) -> Column:
    """Paired ratio to the baseline of a figure over runs; the baseline has none to itself."""
    return Column(
        key=f"{name}_ratio",
        en="Ratio",
        ja="比",
        short="×",
        figure=lambda entry: (
            None if read(entry, "is_baseline") else read(entry, "against_baseline").get(name)
        ),
        show=show_ratio,
    )


LABEL = own("label", "Configuration", "設定", show_label, is_text=True)
RUNS = Column(
    key="n", en="n", ja="n", figure=lambda entry: len(read(entry, "seeds")), show=plain(str)
)
PAIRS = Column(
    key="pairs",
    en="Pairs",
    ja="対",
    figure=lambda entry: _count_pairs(entry),
    show=plain(str),
    is_optional=True,
)
"""Of the ratios, where they are fewer than the runs: of seeds that the baseline has too."""
TRAINABLE = own("trainable_parameters", "Trainable", "学習パラメータ", COUNT)
RATE = own("learning_rate", "Learning rate", "学習率", plain("{:g}".format), short="Rate")
TRAIN_SECONDS = replace(
    figure_over_runs("train_seconds", "Training time", "学習時間", show_duration),
    show=over_runs(show_duration, is_brief=True),
)


def _count_pairs(entry: Row) -> int | None:
    found = read(entry, "against_baseline").get("train_seconds")
    is_fewer = found is not None and found.n is not None and found.n < len(read(entry, "seeds"))
    return found.n if found is not None and is_fewer else None


def _interval(low: float, high: float, render: Callable[[float], str]) -> str:
    return f"[{render(low)}, {render(high)}]"
