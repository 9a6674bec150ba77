"""A sweep of `tune` in the report, in its charts, and on the terminal."""
# ruff: noqa: E501 - a case stands in one line where it can

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from skip2bench.cli.tune_screen import print_tune
from skip2bench.config.commands import ReportConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import stdout
from skip2bench.report import run as report
from skip2bench.report.charts.drawing import COLOURS
from skip2bench.report.charts.sweep import (
    WORDS,
    draw_frontier,
    draw_sensitivity,
    draw_tune_charts,
    find_frontier,
)
from skip2bench.report.run import render_report
from skip2bench.report.tables.tune_columns import (
    EXPLORED_SCREEN,
    FINALIST_SCREENS,
    TUNE_TABLES,
    show_blocks,
)
from skip2bench.results.reading import check_tune, read_run
from skip2bench.results.tune_records import GAIN_SHARES, TuneResult, TuneResults

DATA = Path(__file__).parents[1] / "data"
Change = Callable[[dict[str, Any]], object]
HEADINGS = {
    "en": "## Choosing a configuration (skip2bench tune)",
    "ja": "## 設定の選択 (skip2bench tune)",
}


@pytest.fixture(autouse=True)
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without charts, which take most of their time; charts have tests of their own."""
    monkeypatch.setattr(report, "draw_charts", lambda *_: {})
    monkeypatch.setattr(report, "draw_tune_charts", lambda *_: {})


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """The folder of a finished sweep; nothing else lies below results."""
    shutil.copytree(DATA / "tuned" / "tune", tmp_path / "results" / "tune")
    (folder,) = (tmp_path / "results" / "tune").iterdir()
    return folder


@pytest.fixture
def results(sweep: Path) -> Path:
    """The results folder of the same, with the committed benchmark and runs."""
    root = sweep.parents[1]
    for kind in ("bench", "train"):
        shutil.copytree(DATA / "results" / kind, root / kind)
    return root


def edit(path: Path, change: Change) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def render(root: Path, lang: str = "en", **more: Any) -> str:
    return render_report(
        ReportConfig(results=root, lang=lang, plots_dir=root / "plots", **more)  # type: ignore[arg-type]
    )


def section(text: str, lang: str = "en") -> str:
    return re.split(r"^## ", text.split(f"{HEADINGS[lang]}\n")[1], flags=re.MULTILINE)[0]


def load(change: Change | None = None) -> TuneResults:
    content = json.loads(next((DATA / "tuned").rglob("tune.json")).read_text(encoding="utf-8"))
    if change:
        change(content)
    return check_tune(content)


def texts_of(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(e.itertext()).strip() for e in root.iter() if e.tag.endswith("text")]


def test_the_section_stands_beside_other_runs_and_compares_nothing_with_them(results: Path) -> None:
    text = render(results)
    found = section(text)
    others = text.replace(found, "")
    assert "Skip2-LoRA (6 blocks)" not in found
    assert "accurate-r64-lr0.001" not in others
    # an older data set than the sweep's, on another machine
    line = next(it for it in found.splitlines() if "not to be compared with the runs above" in it)
    assert "data set (sha256) 51a8e015bd12 (above: " in line
    assert "hardware Intel(R) Xeon(R) Processor (above: " in line
    assert "model" not in line
    # the environment is that of what is compared, the commands are everybody's
    assert "51a8e015bd12" not in others
    assert "\nskip2bench tune --budget 10\n" in others


def test_without_a_sweep_there_is_no_section(results: Path, sweep: Path) -> None:
    shutil.rmtree(sweep)
    for lang, heading in HEADINGS.items():
        assert heading not in render(results, lang)


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_a_command_stands_once_with_all_that_it_is_for(sweep: Path, lang: str) -> None:
    found = section(render(sweep.parents[1], lang), lang)
    commands = re.findall(r"```bash\n(.*)\n```", found)
    assert [command.split("--skip-r ")[1][:2] for command in commands] == ["16", "64"]
    for share in ("fastest", "balanced"):
        assert f"{round(100 * GAIN_SHARES[share])} %" in found
    words = {"en": "**Fastest, Balanced**: ", "ja": "**速度重視、バランス型**: "}
    assert words[lang] + "accurate-r16-lr0.003" in found


def test_the_same_figures_in_both_languages(sweep: Path) -> None:
    def figures(lang: str) -> list[list[str]]:
        text = section(render(sweep.parents[1], lang), lang)
        words = {
            **{"秒": "s", "ノイズを超える差なし": "no difference beyond the noise"},
            **{"（": "; from ", " 以上の差なら検出）": " it would have shown"},
        }
        for word, english in words.items():
            text = text.replace(word, english)
        rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
        return [[cell for cell in row if re.search(r"\d", cell)] for row in rows]

    assert figures("ja") == figures("en")
    assert sum(map(len, figures("en"))) > 150


def test_the_json_has_the_same_tables(sweep: Path) -> None:
    data = json.loads(render(sweep.parents[1], json=True))
    tables = data["tables"]
    assert set(TUNE_TABLES) <= set(tables)
    found = load()
    finalist = tables["tune_finalists"][1]
    own = found.finalists[1]
    assert finalist["best_val_loss"]["mean"] == own.figures["best_val_loss"].mean
    assert finalist["best_val_loss_ratio"]["low"] == own.against_baseline["best_val_loss"].low
    assert tables["tune_finalists"][0]["best_val_loss_ratio"] is None
    assert [row["label"] for row in tables["tune_explored"]] == [
        one.name for one in found.configurations
    ]
    assert tables["tune_explored"][-1]["status"] == "diverged"
    assert [row["rung"] for row in tables["tune_rungs"]] == [1, 2, 3]
    assert len(tables["tune_sensitivity"]) == len(found.sensitivity)
    assert data["runs"] == [sweep.as_posix()]
    assert data["tune"]["diverged"] == ["accurate-r64-lr0.1"]


def test_the_rest_of_a_long_ranking_is_counted(sweep: Path) -> None:
    def multiply(content: dict[str, Any]) -> None:
        last = content["configurations"][-1]
        content["configurations"] += [last | {"name": f"more-{n}"} for n in range(7)]

    edit(sweep / "tune.json", multiply)
    found = section(render(sweep.parents[1]))
    assert "\n4 more are in tune.csv" in found
    assert "| more-2 |" in found
    assert "| more-3 |" not in found
    assert "Diverged, and left: accurate-r64-lr0.1, more-0, " in found


def test_without_finalists_nothing_counts_as_tested(sweep: Path) -> None:
    def take_away(content: dict[str, Any]) -> None:
        content.update(finalists=[], finalist_names=[])
        for pick in content["picks"]:
            pick["is_tested"] = False

    edit(sweep / "tune.json", take_away)
    edit(sweep / "summary.json", lambda it: it.pop("finalists_seconds"))
    root = sweep.parents[1]
    found = section(render(root))
    assert "which `skip2bench tune` does without `--finalists 0`" in found
    assert found.count("One seed of the exploration: not tested.") == 2
    assert "Validation loss 3.5258 (exploration)" in found
    assert "The cost is the FLOPs of a cached step." in found
    assert "探索の 1 シードのみで、単独での再学習では確認していません。" in section(
        render(root, "ja"), "ja"
    )


def test_finalists_by_one_seed_are_not_tested(sweep: Path) -> None:
    def thin_out(content: dict[str, Any]) -> None:
        for entry in content["finalists"]:
            entry["seeds"] = entry["seeds"][:1]

    edit(sweep / "tune.json", thin_out)
    found = section(render(sweep.parents[1]))
    assert found.count("One seed, alone: not tested.") == 2
    assert "Tested:" not in found


def test_finalists_that_all_failed_have_no_figures(sweep: Path) -> None:
    def fail(content: dict[str, Any]) -> None:
        for entry in content["finalists"]:
            entry.update(figures={}, against_baseline={}, seeds=[], learning_rate=None)

    edit(sweep / "tune.json", fail)
    for lang in ("en", "ja"):
        found = section(render(sweep.parents[1], lang), lang)
        assert "| accurate-r64-lr0.001 | 0 | - | - | - | - | 196,608 |" in found


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("summary.json", lambda it: it.update(status="interrupted"), "not finished (status: interrupted)"),
        ("summary.json", lambda it: it.update(status="failed", error="x"), "not finished (status: failed): x"),
        ("tune.json", lambda it: it.update(rungs=1), "cannot be read: tune.json: rungs is 1, where a list was expected"),
        ("tune.json", None, "cannot be read: tune.json is a link to nothing, or missing"),
        ("summary.json", lambda it: it.update(seed="a"), "cannot be read: summary.json: seed is 'a', where a whole number was expected"),
    ],
)  # fmt: skip
def test_a_sweep_that_is_no_use_is_named_among_those_left_out(
    results: Path, sweep: Path, file: str, change: Change | None, reason: str
) -> None:
    if change:
        edit(sweep / file, change)
    else:
        (sweep / file).unlink()
    text = render(results)
    assert HEADINGS["en"] not in text
    row = next(line for line in text.splitlines() if line.startswith(f"| tune/{sweep.name} |"))
    assert row.endswith(f" | {reason} |")
    for kind in ("bench", "train"):
        shutil.rmtree(results / kind)
    with pytest.raises(Skip2BenchError, match=r"no (finished )?run below "):
        render(results)


def test_the_newest_sweep_that_can_be_read_is_shown(sweep: Path) -> None:
    root, newer, damaged = sweep.parents[1], sweep.with_name("newer"), sweep.with_name("damaged")
    for copy, day in ((newer, "29"), (damaged, "30")):
        shutil.copytree(sweep, copy)
        started = f"2026-11-{day}T00:00:00+00:00"
        edit(copy / "summary.json", lambda it, at=started: it.update(started_at=at))
    edit(newer / "summary.json", lambda it: it.update(configurations=77))
    (damaged / "tune.json").write_text("{", encoding="utf-8")
    text = render(root)
    assert "- **Tried**: 77 configurations" in section(text)
    assert f"| tune/{sweep.name} | tune --budget 10 | of another set of runs; " in text
    assert "| tune/damaged | - | cannot be read: " in text
    chosen = render(root, run=(Path("tune") / sweep.name,))
    assert "- **Tried**: 12 configurations" in section(chosen)


def test_the_finalists_comparison_is_not_the_reports(results: Path, sweep: Path) -> None:
    for root in (results, sweep.parent, sweep):
        data = json.loads(render(root, json=True))
        folders = [*data["runs"], *(item["folder"] for item in data["left_out"])]
        assert "finalists" not in [Path(folder).name for folder in folders]
    alone = json.loads(render(sweep / "finalists", json=True))
    assert alone["entries"][0]["label"] == "balanced-r64-lr0.003"


def test_text_of_the_files_is_text_in_the_page(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    hostile = "<script>alert(1)</script>|`x`](y)"

    def rename(content: dict[str, Any]) -> None:
        for one in (content["configurations"][0], content["picks"][2]):
            one["name" if "name" in one else "configuration"] = hostile
        content["finalist_names"][1] = content["finalists"][1]["label"] = hostile
        content["picks"][2]["command"] = f"```\n{hostile}"
        content["sensitivity"][0].update(factor=hostile, value=hostile)
        content["configurations"][2].update(origin=hostile, status=hostile)

    edit(sweep / "tune.json", rename)
    for lang in ("en", "ja"):
        page = render(sweep.parents[1], lang, format="html")
        assert "<script" not in page
        assert "alert(1)" in page


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_the_charts_are_svg_with_the_words_of_the_language(lang: Any) -> None:
    drawn = draw_tune_charts(load(), lang)
    assert list(drawn) == ["frontier", "sensitivity"]
    words = WORDS[lang]
    frontier = texts_of(drawn["frontier"])
    for name in ("parameters", "flops", "val_loss", "finished", "left", "front"):
        assert words[name] in frontier
    assert {"accurate-r64-lr0.001 (n=3)", words["base"].format(loss="4.6217")} <= set(frontier)
    assert {words["best"], words["median"], "fast (n=2)"} <= set(texts_of(drawn["sensitivity"]))
    for svg in drawn.values():
        assert "currentColor" in svg
        assert not re.search(r"#000000|#010203|fill: #ffffff|fill: white", svg)
    assert WORDS["ja"].keys() == WORDS["en"].keys()


def test_the_same_sweep_draws_the_same_charts() -> None:
    assert draw_tune_charts(load(), "en") == draw_tune_charts(load(), "en")


def test_a_base_model_far_above_stands_in_a_strip_and_a_near_one_does_not() -> None:
    far, near = load(), load(lambda it: it.update(initial_val_loss=3.7))
    drawn = [draw_frontier(found, "en") for found in (far, near)]
    assert [len(re.findall(r'id="axes_\d+"', svg)) for svg in drawn] == [4, 2]
    assert "4.6217" in texts_of(drawn[0])
    assert "3.7000" not in texts_of(drawn[1])
    assert "Base model: 3.7000" in texts_of(drawn[1])


def test_what_is_worse_than_the_base_model_is_counted() -> None:
    svg = draw_frontier(load(lambda it: it.update(initial_val_loss=3.6)), "en")
    assert "Worse than the base model, not shown: 3" in texts_of(svg)


def test_long_labels_are_cut_and_finalists_are_told_apart() -> None:
    def lengthen(content: dict[str, Any]) -> None:
        for number, entry in enumerate(content["finalists"]):
            entry["label"] = f"{number}日本語の設定" * 30
        content["sensitivity"][0]["value"] = "0,1,2," * 30

    found = load(lengthen)
    svg = draw_frontier(found, "ja")
    labels = [text for text in texts_of(svg) if text.endswith("(n=3)")]
    assert len(set(labels)) == 3
    assert all("…" in text and len(text) < 80 for text in labels)
    for colour in COLOURS[:3]:
        assert colour.lower() in svg
    assert any(
        text.startswith("0,1,2,") and len(text) < 40
        for text in texts_of(draw_sensitivity(found.sensitivity, "ja"))
    )


def test_a_sweep_with_nothing_to_draw_draws_nothing() -> None:
    def take_away(content: dict[str, Any]) -> None:
        content.update(finalists=[], finalist_names=[], sensitivity=[], picks=[])
        for one in content["configurations"]:
            one.update(status="diverged", best_val_loss=None)

    assert draw_tune_charts(load(take_away), "en") == {}


def test_the_frontier_has_what_no_other_beats_in_both() -> None:
    found = load()
    finished = [one for one in found.configurations if one.status == "finished"]
    front = find_frontier(finished, lambda one: one.trainable_parameters)
    assert [one.name for one in front] == [
        "accurate-r16-lr0.003",
        "3_5_6_7-r64-lr0.001",
        "accurate-r64-lr0.001",
    ]


@pytest.mark.parametrize(
    ("blocks", "text"),
    [((0, 1, 2, 3), "0-3"), ((3, 5, 6, 7), "3, 5-7"), ((7,), "7"), ((2, 0), "0, 2"), ((), "")],
)
def test_blocks_in_a_row_are_a_range(blocks: tuple[int, ...], text: str) -> None:
    assert show_blocks(blocks) == text


def test_the_terminals_columns_are_the_reports() -> None:
    keys = {
        name: {column.key for column in TUNE_TABLES[name].columns}
        for name in ("tune_explored", "tune_finalists")
    }
    assert {column.key for column in EXPLORED_SCREEN} <= keys["tune_explored"]
    shown = [column for columns in FINALIST_SCREENS.values() for column in columns]
    assert {column.key for column in shown} <= keys["tune_finalists"]


def test_the_terminal_is_readable_at_80_columns(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdout, "_width", 80)
    run = read_run(sweep)
    print_tune(TuneResult.of(run.summary, found=load(), folder="results/tune/x"))
    text = capsys.readouterr().out
    tables = [line for line in text.splitlines() if line.startswith(("│", "┃"))]
    assert max(map(len, tables)) <= 80
    rows = [line for line in tables if "accurate-r16-lr0.003" in line]
    assert [len(re.findall("│", row)) - 1 for row in rows] == [5, 4, 4, 2]
    assert "│ 0.995 [0.992, 0.998] │" in rows[1]
    last = text.rstrip().splitlines()
    assert last[-2:] == ["Run folder: results/tune/x", "Chart: results/tune/x/frontier.svg"]
    assert sum(line.startswith("fastest, balanced: skip2bench train ") for line in last) == 1
