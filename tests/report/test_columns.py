"""What a column is, in every output that is made of it."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from made_records import make_configuration

from skip2bench.cli.compare_screen import print_compare
from skip2bench.cli.screens import print_bench
from skip2bench.config.commands import ReportConfig
from skip2bench.io import units
from skip2bench.report.run import render_report
from skip2bench.report.tables.cells import (
    PAIRS,
    Column,
    Fit,
    over_runs,
    plain,
    render_cells,
    render_markdown,
    show_peak,
    show_ratio,
    to_plain,
)
from skip2bench.report.tables.columns import (
    BENCH_SCREENS,
    BEST_BATCH_SCREEN,
    COMPARE_SCREENS,
    LABEL,
    TABLES,
)
from skip2bench.results.bench_records import BenchResult
from skip2bench.results.comparison_records import ComparisonResult, FigureRatio, FigureSummary
from skip2bench.results.reading import read_run
from skip2bench.results.stats import paired_ratio

ROOT = Path(__file__).parents[2]
FAILED = ROOT / "tests" / "data" / "failed"
REFERENCE = ROOT / "results" / "reference" / "cpu"
STEPS = Column(
    key="doubled_steps",
    en="Steps, doubled",
    ja="ステップ数の倍",
    short="2 steps",
    figure=lambda entry: 2 * entry.figures["steps"].mean if entry.figures else None,
    show=plain("{:.0f}".format),
)


def json_of(folder):
    return json.loads(render_report(ReportConfig(results=folder, json=True)))


def test_a_column_said_once_is_in_every_output(monkeypatch, capsys, tmp_path):
    speed = TABLES["speed"]
    monkeypatch.setitem(TABLES, "speed", replace(speed, columns=(*speed.columns, STEPS)))
    monkeypatch.setitem(COMPARE_SCREENS, "Time", (*COMPARE_SCREENS["Time"], STEPS))
    for lang, title in (("en", "Steps, doubled"), ("ja", "ステップ数の倍")):
        text = render_report(ReportConfig(results=FAILED, lang=lang, plots_dir=tmp_path))
        head = next(line for line in text.splitlines() if line.endswith(f" | {title} |"))
        rows = text.split(head)[1].splitlines()[2:]
        assert rows[0].startswith("| Traditional LoRA | 1 | ")
        assert re.fullmatch(r".* \| \d+ \|", rows[0])
        assert rows[1].endswith(" | - |")
    row = json_of(FAILED)["tables"]["speed"][0]
    steps = row["doubled_steps"]
    assert rows[0].endswith(f" | {steps:.0f} |")
    path = next(FAILED.rglob("comparison_results.json"))
    stored = json.loads(path.read_text(encoding="utf-8"))
    print_compare(ComparisonResult(**stored, folder="x"))
    text = capsys.readouterr().out
    assert "2 steps" in text
    assert f" {steps:.0f} " in text


def test_the_json_has_each_tables_figures_in_base_units():
    data = json_of(REFERENCE)
    assert set(data["tables"]) == set(TABLES)
    speed, entry = data["tables"]["speed"][1], data["entries"][1]
    assert speed["label"] == entry["label"]
    assert speed["train_seconds"] == entry["figures"]["train_seconds"]
    assert speed["train_seconds_ratio"] == entry["against_baseline"]["train_seconds"]
    bench, row = data["tables"]["bench_speed"][1], data["bench"][1]
    assert bench["backward"]["median_seconds"] == row["backward"]["median_seconds"]
    assert bench["backward_reduction"] == row["backward_reduction"]
    assert data["tables"]["bench_memory"][1]["peak_bytes"] == row["memory"]["peak_bytes"]


@pytest.mark.parametrize("name", TABLES)
def test_a_tables_columns_have_keys_of_their_own(name):
    keys = [column.key for column in TABLES[name].columns]
    assert len(set(keys)) == len(keys)


def test_a_figure_that_is_missing_or_did_not_fit():
    size = replace(STEPS, key="size", figure=lambda row: row["size"], show=show_peak)
    optional = replace(STEPS, key="more", figure=lambda row: row["more"], is_optional=True)
    oom = Fit(value=None, status="oom", requested_bytes=2**30)
    rows = [
        {"label": "a|b", "size": Fit(value=2**20, status="ok"), "more": None},
        {"label": "c", "size": oom, "more": None},
    ]
    columns = (LABEL, size, optional)
    assert render_markdown(columns, rows, "en").splitlines()[2:] == [
        r"| a\|b | 1.0 MiB |",
        "| c | out of memory (oom): 1.00 GiB asked for |",
    ]
    assert render_markdown(columns, rows, "ja").endswith("| c | メモリ不足 (oom)、要求 1.00 GiB |")
    assert [size.cell(row, "screen") for row in rows] == ["1.0 MiB", "oom"]
    assert to_plain(columns, rows)[1] == {"label": "c", "size": None, "more": None}


SKEWED = {"mean": 127.0, "std": 364.0, "median": 2.0, "min": 1.0, "max": 1600.0}
QUARTILES = {"lower_quartile": 1.5, "upper_quartile": 3.0}


@pytest.mark.parametrize(
    ("figure", "text", "brief", "by_mean"),
    [
        (FigureSummary(n=20, **SKEWED, **QUARTILES), "2.0 [1.5, 3.0]", "2.0", "127.0 ± 364.0"),
        (FigureSummary(n=3, **SKEWED), "2.0 [1.0, 1600.0]", "2.0", "127.0 ± 364.0"),
        (FigureSummary(n=3, mean=2.0, std=0.0, median=2.0, min=2.0, max=2.0), *["2.0"] * 3),
    ],
)
def test_a_figure_that_scatters_to_one_side(figure, text, brief, by_mean):
    show = plain("{:.1f}".format)
    assert over_runs(show)(figure, "en") == over_runs(show)(figure, "screen") == text
    assert over_runs(show, is_brief=True)(figure, "screen") == brief
    assert over_runs(show, by_mean=True)(figure, "ja") == by_mean


def ratio_of(values, adjusted=None):
    """A ratio to a baseline of 1, as a comparison writes it."""
    paired = paired_ratio(values, [1.0] * len(values))
    is_difference = paired.is_difference if adjusted is None else adjusted < 0.05
    known = {"adjusted_p_value": adjusted, "is_difference": is_difference}
    return FigureRatio(**asdict(paired), **known)


@pytest.mark.parametrize(
    ("ratio", "text", "on_screen"),
    [
        (ratio_of([0.5, 0.51, 0.49], 0.01), "0.500 [0.476, 0.525]", "0.500 [0.476, 0.525]"),
        (
            ratio_of([0.99, 1.0, 1.01], 1.0),
            "no difference beyond the noise [0.975, 1.03]; from 3.3 % it would have shown",
            "≈ 1.00 [0.975, 1.03]",
        ),
        (
            ratio_of([0.95, 0.96, 0.97], 0.081),
            "0.960 [0.935, 0.985], not established once corrected (p = 0.081)",
            "≈ 0.960 [0.935, 0.985]",
        ),
        (ratio_of([0.5]), "0.500", "0.500"),
    ],
)
def test_no_difference_says_what_would_have_shown(ratio, text, on_screen):
    assert show_ratio(ratio, "en") == text
    assert show_ratio(ratio, "screen") == on_screen
    if "corrected" in text:
        assert show_ratio(ratio, "ja") == "0.960 [0.935, 0.985]（補正後は有意差なし、p = 0.081）"


def test_pairs_are_counted_where_they_are_fewer_than_the_runs():
    ratio = {"train_seconds": {"ratio": 1.0, "n": 3}}
    more = make_configuration(seeds=tuple(range(10)), against_baseline=ratio)
    assert [PAIRS.figure(it) for it in (more, make_configuration(against_baseline=ratio))] == [
        3,
        None,
    ]


@pytest.mark.parametrize(
    ("figure", "is_brief", "text", "on_screen"),
    [
        (FigureSummary(n=1, mean=2.0, std=0.0), False, "2.0", "2.0"),
        (FigureSummary(n=3, mean=2.0, std=0.5), False, "2.0 ± 0.5", "2.0 ± 0.5"),
        (FigureSummary(n=3, mean=2.0, std=0.5), True, "2.0 ± 0.5", "2.0"),
    ],
)
def test_a_figure_over_runs(figure, is_brief, text, on_screen):
    show = over_runs(plain("{:.1f}".format), is_brief=is_brief)
    assert show(figure, "en") == show(figure, "ja") == text
    assert show(figure, "screen") == on_screen


def test_the_terminals_columns_of_a_comparison_are_the_reports():
    """All but the terminal's own of the benchmark, which compares with another baseline."""
    known = {column.key for table in TABLES.values() for column in table.columns}
    shown = [column for columns in COMPARE_SCREENS.values() for column in columns]
    assert {column.key for column in (*shown, *BEST_BATCH_SCREEN)} <= known


def test_the_terminals_tables_of_a_benchmark(capsys):
    run = next(iter(REFERENCE.rglob("measurements.csv"))).parent
    print_bench(BenchResult.of(read_run(run).summary, folder="x"))
    text = capsys.readouterr().out
    places = [text.index(title) for title in BENCH_SCREENS]
    assert places == sorted(places)
    cached = text.split("With Skip-Cache")[1].split("Memory Usage")[0]
    assert "Skip2-LoRA" in cached
    assert "Traditional LoRA" not in cached  # it has no cache


@pytest.mark.parametrize(
    ("sizes", "texts"),
    [
        ([500 * 2**20, 3 * 2**30], ["0.49 GiB", "3.00 GiB"]),
        ([500 * 2**20, 900 * 2**20], ["500.0 MiB", "900.0 MiB"]),
        ([3 * 2**20, 3 * 2**30, None], ["3.0 MiB", "3.00 GiB", "-"]),  # the small one would be lost
    ],
)
def test_sizes_of_a_column_are_in_one_unit_where_that_says_them_all(sizes, texts):
    column = Column(
        key="a", en="A", ja="A", figure=lambda row: row["a"], show=plain(units.format_bytes)
    )
    assert render_cells(column, [{"a": size} for size in sizes], "en") == texts
