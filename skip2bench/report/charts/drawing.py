"""The look of all charts: figures, labels, legends, and the SVG text that is made of them.

Text stays text in the SVG, so that a browser draws Japanese with the reader's own fonts; black is
`currentColor`, so that a chart inside a page follows its light or dark scheme. Okabe and Ito's
colours, markers and hatches tell configurations apart without colour and in print. Drawn straight
on matplotlib's canvas: pyplot would double the start-up time and keep global state.
"""

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, Any

from skip2bench.io.units import format_tick
from skip2bench.report.markdown import shorten, to_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""Okabe and Ito's palette, grey in place of black."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "--", "oo")
LABEL_LENGTH = 80
"""Of a label beside an axis."""
LINE_WIDTH = 80
"""Of a line in a legend, Japanese letters counted twice."""
MAX_LINES = 3
"""Of a label in a legend; the table has the whole of what is longer."""
_LINE_HEIGHT, _USUAL_LINES = 0.21, 4
LEGEND_LENGTH = 44
"""Of a label, Japanese letters counted twice, up to which two stand side by side in a legend."""
_UNMEASURED_EM = 0.45
"""What a Japanese letter is wider than matplotlib takes it for."""
INK = "#010203"
"""Stands for the colour of text until the SVG is written."""
MAX_SHOWN = 16
"""Configurations on a chart; with more, nobody tells one line from another."""


def make_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches, that places its parts so that none covers another."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def line_style(number: int, label: str) -> dict[str, Any]:
    """Colour, marker and label of a configuration, by its number."""
    return {
        "marker": MARKERS[number % len(MARKERS)],
        "color": COLOURS[number % len(COLOURS)],
        "label": legend_label(label),
        "markersize": 4.5,
        "linewidth": 1.6,
    }


def plain_label(label: str, length: int = LABEL_LENGTH) -> str:
    """A label as matplotlib draws it word for word, and as XML can hold it."""
    return _as_drawn(shorten(to_line(label), length))


def legend_label(label: str) -> str:
    """The same for a legend: a long one in several lines, broken between words where it can be."""
    lines = list(_break_lines(to_line(label)))
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], f"{lines[MAX_LINES - 1][:-1].rstrip()}…"]
    return _as_drawn("\n".join(lines))


def _break_lines(text: str) -> Iterator[str]:
    """Lines of at most `LINE_WIDTH`."""
    while (end := _find_end(text)) < len(text):
        places = (i for i in range(end, end // 2, -1) if _may_break(text[i - 1], text[i]))
        place = next(places, end)
        yield text[:place].rstrip()
        text = text[place:].lstrip()
    yield text


def _may_break(before: str, after: str) -> bool:
    """True between words, and between Japanese letters but before a mark that ends something."""
    if " " in (before, after):
        return True
    return (_is_wide(before) or _is_wide(after)) and after not in "、。，．）」』】・ー"


def _find_end(text: str) -> int:
    """How many letters a line has room for."""
    widths = accumulate(2 if _is_wide(letter) else 1 for letter in text)
    return sum(1 for _ in takewhile(lambda width: width <= LINE_WIDTH, widths))


def _as_drawn(text: str) -> str:
    text = text.replace("$", r"\$")  # which would start mathematics
    text = re.sub("[\ufdd0-\ufdef\ufffe\uffff]", "\ufffd", text)
    return f" {text}" if text.startswith("_") else text  # which would leave it out of the legend


def finish(axes: "Axes") -> None:
    """Give axes a grid, and lines and words in the page's own ink."""
    axes.grid(True, alpha=0.35)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.tick_params(which="both", colors=INK)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_color(INK)


def add_legend(figure: "Figure", axes: "Axes") -> None:
    """A legend above the figure, in two columns where the labels leave room for them.

    The figure grows with a long one.
    """
    handles, labels = axes.get_legend_handles_labels()
    figure.set_figheight(figure.get_figheight() + _legend_room(labels))
    wide = max((_count_wide(line) for line in _list_lines(labels)), default=0)
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=count_columns(labels),
        # matplotlib's font has no Japanese: it measures too little for what a browser will draw
        columnspacing=2.0 + _UNMEASURED_EM * wide,
        frameon=False,
        labelcolor=INK,
    )


def count_columns(labels: Sequence[str]) -> int:
    """How many labels stand side by side in a legend."""
    longest = max((len(line) + _count_wide(line) for line in _list_lines(labels)), default=0)
    return 2 if longest <= LEGEND_LENGTH else 1


def _legend_room(labels: Sequence[str]) -> float:
    """Inches that a legend of these labels takes beyond the few lines that a figure has room for.

    Args:
        labels: As `legend_label` gives them.
    """
    rows = -(-len(_list_lines(labels)) // count_columns(labels))
    return _LINE_HEIGHT * max(0, rows - _USUAL_LINES)


def _list_lines(labels: Sequence[str]) -> list[str]:
    return [line for label in labels for line in label.split("\n")]


def _count_wide(text: str) -> int:
    return sum(map(_is_wide, text))


def _is_wide(letter: str) -> bool:
    return unicodedata.east_asian_width(letter) in "WF"


def to_svg(figure: "Figure") -> str:
    """The figure as SVG text: transparent, the same for the same figures, ink as currentColor."""
    import matplotlib as mpl

    buffer = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": "skip2bench", "font.size": 11}
    with warnings.catch_warnings(), mpl.rc_context(settings):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return re.sub(INK, "currentColor", text[text.index("<svg") :], flags=re.IGNORECASE)


def on_paper(svg: str) -> str:
    """A chart as a file of its own, where no page gives it a background and a colour of text."""
    return svg.replace("<svg ", '<svg style="background:#ffffff;color:#1c1e21" ', 1)


def scale_costs(axes: "Axes", costs: Sequence[float]) -> None:
    """Logarithmic where costs differ much, with numbers as the tables write them."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    if costs and min(costs) > 0 and max(costs) > 10 * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: format_tick(value))
