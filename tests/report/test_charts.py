"""Charts as SVG: what is in them, and that nothing in them needs a network or a fixed scheme."""

import re
from xml.etree import ElementTree

import pytest

from skip2bench.report.charts.drawing import legend_label
from skip2bench.report.charts.runs import (
    WORDS,
    Bars,
    CostLine,
    LossSeries,
    Point,
    _error_bars,
    break_even_epoch,
    draw_bars,
    draw_costs,
    draw_losses,
    draw_tradeoff,
    find_front,
)

LABELS = ("Traditional LoRA", "A $1 <b>configuration</b>", "Skip2-LoRA (8 blocks)")


def make_series(label):
    return LossSeries(
        label=label,
        steps=[0, 50],
        seconds=[0.0, 9.0],
        val=[4.0, 3.0],
        val_low=[4.0, 2.9],
        val_high=[4.0, 3.1],
        train=[4.1, 3.2],
    )


def make_point(seconds, loss, label="x"):
    return Point(
        label=label,
        seconds=seconds,
        loss=loss,
        seconds_bounds=(seconds, seconds + 1.0),
        loss_error=0.01,
    )


def draw(kind, lang):
    if kind == "losses":
        return draw_losses([make_series(label) for label in LABELS], lang)
    if kind == "bars":
        bars = [
            Bars(label=label, values=[1.0, None], bounds=[(0.5, 9.0), None]) for label in LABELS
        ]
        return draw_bars(bars, ("forward", "backward"), "milliseconds", lang)
    if kind == "tradeoff":
        return draw_tradeoff([make_point(i + 1.0, 3.0 - i, LABELS[i]) for i in range(3)], lang)
    lines = [
        CostLine(label=label, start_seconds=3.0 * i, epoch_seconds=5.0 - 2 * i)
        for i, label in enumerate(LABELS)
    ]
    return draw_costs(lines, 5, lang)


def test_an_error_bar_reaches_from_quartile_to_quartile():
    """Skewed times: a bar of 127 ms whose quartiles are 100 and 400 ms has none below zero."""
    bars = Bars(label="x", values=[127.0, None, 3.0], bounds=[(100.0, 400.0), None, (2.0, 3.5)])
    assert _error_bars(bars, [0, 2]) == [[27.0, 1.0], [273.0, 0.5]]
    none = Bars(label="x", values=[127.0], bounds=[None])
    assert _error_bars(none, [0]) is None


KINDS = ("losses", "bars", "tradeoff", "costs")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lang", ["en", "ja"])
def test_a_chart_is_an_svg_by_itself(kind, lang):
    svg = draw(kind, lang)
    root = ElementTree.fromstring(svg)  # well formed: labels are escaped
    found = ["".join(e.itertext()).strip() for e in root.iter() if e.tag.endswith("text")]
    assert set(LABELS) <= set(found)
    links = re.findall(r'(?:href|src)="([^"]*)"', svg)
    assert all(link.startswith("#") for link in links)
    assert "<script" not in svg
    # ink follows the page's colour, nothing is drawn in black or on white
    assert "currentColor" in svg
    assert not re.search(r"#000000|#010203|fill: #ffffff|fill: white", svg)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_figures_draw_the_same_chart(kind):
    assert draw(kind, "en") == draw(kind, "en")


def test_words_are_those_of_the_language():
    assert "検証損失" in draw("losses", "ja")
    assert "Validation loss" in draw("losses", "en")
    assert WORDS["ja"].keys() == WORDS["en"].keys()


def test_the_front_has_what_no_other_beats_in_both():
    pairs = ((10, 2.0), (5, 2.5), (7, 2.6), (1, 3.0), (12, 2.0))
    points = [make_point(*pair) for pair in pairs]
    assert [(p.seconds, p.loss) for p in find_front(points)] == [(1, 3.0), (5, 2.5), (10, 2.0)]


@pytest.mark.parametrize(
    ("start", "epoch", "expected"),
    [(10.0, 5.0, 2.0), (0.0, 5.0, 0.0), (10.0, 10.0, None), (10.0, 12.0, None)],
)
def test_the_break_even_epoch(start, epoch, expected):
    baseline = CostLine(label="lora", start_seconds=0.0, epoch_seconds=10.0)
    line = CostLine(label="skip2", start_seconds=start, epoch_seconds=epoch)
    assert break_even_epoch(line, baseline) == expected


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("_hidden", "_hidden"),
        ("a\nb", "a b"),
        ("<script>&", "<script>&"),
        ("]]>-->", "]]>-->"),
        ("$\\frac{1}{0}$ \\$", "$\\frac{1}{0}$ \\$"),
        ("\x00\x1b[31m\ufffe\u202e\ud800", "\ufffd\ufffd[31m\ufffd\ufffd\ufffd"),
        ("x" * 5000, "x" * 79 + "…"),
    ],
)
def test_any_label_is_text_in_the_legend(label, shown):
    svg = draw_losses([make_series(label), make_series("other")], "en")
    texts = [element.text for element in ElementTree.fromstring(svg).iter() if element.text]
    assert shown in [text.strip() for text in texts]


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("Skip2-LoRA (8 blocks)", ["Skip2-LoRA (8 blocks)"]),
        (f"{'a' * 50} {'b' * 40}", ["a" * 50, "b" * 40]),
        ("長" * 39 + "LoRA、後", ["長" * 39, "LoRA、後"]),
        ("長" * 40 + "、後", ["長" * 39, "長、後"]),
        ("x" * 241, ["x" * 80, "x" * 80, "x" * 79 + "…"]),
    ],
)
def test_a_long_label_has_several_lines(label, lines):
    assert legend_label(label).split("\n") == lines
    svg = draw_costs([CostLine(label=label, start_seconds=0.0, epoch_seconds=1.0)], 3, "ja")
    texts = [element.text for element in ElementTree.fromstring(svg).iter() if element.text]
    assert [text for text in texts if text in lines] == lines


def test_a_figure_grows_with_its_legend():
    def height(label):
        lines = [CostLine(label=label, start_seconds=0.0, epoch_seconds=1.0) for _ in range(9)]
        return float(ElementTree.fromstring(draw_costs(lines, 3, "en")).get("height")[:-2])

    assert height("x" * 160) == pytest.approx(height("x") + 72 * 0.21 * (18 - 5), abs=1)


def test_a_line_over_very_many_epochs_has_few_points():
    lines = [
        CostLine(label=label, start_seconds=0.0, epoch_seconds=5.0 - i)
        for i, label in enumerate(LABELS)
    ]
    svg = draw_costs(lines, 1_000_000, "en")
    assert svg.count("<use") < 3 * 210 + 50
