"""Properties of reading and rendering, whatever the results: text or a Skip2BenchError, no more.

Figures, statuses, labels and files are random; what is asserted holds for all of them.
"""

import json
import re
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skip2bench.config.commands import ReportConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.units import Language
from skip2bench.report import run as report
from skip2bench.report.run import render_report
from skip2bench.results.curves import parse_curve
from skip2bench.results.plain import DamagedFileError, read_json, read_yaml
from skip2bench.results.reading import (
    check_comparison,
    check_environment,
    check_summary,
    check_tune,
)

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "cpu"
bounded = settings(deadline=None, max_examples=60, derandomize=True)

HOSTILE = (
    *("<script>alert(1)</script>", "a|b", "`x`", "```", "line\nbreak", "](javascript:alert(1))"),
    *(
        "=1+1",
        "@x",
        "-1",
        "# h",
        "\u202egpj",
        "\x1b[31m",
        "$x$",
        "_x",
        "-->",
        "&lt;",
        "]]>",
        "\x00",
    ),
)
texts = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20))
odd = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), texts, st.just([]), st.just({})),
    *(st.just("3 min"), st.just(-1), st.just(10**40), st.lists(st.integers(), max_size=2)),
)
seconds = st.floats(1e-6, 1e6)
losses = st.floats(0.0, 50.0)


@st.composite
def train_summaries(draw: st.DrawFn, is_sound: bool = False) -> dict[str, Any]:
    """A run's summary: sound, or with some keys missing and some values odd."""
    method = draw(st.sampled_from(["lora", "skip", "skip2", "full"]))
    train_seconds = draw(seconds)
    summary = {
        "schema_version": 1,
        "kind": "train",
        "status": draw(st.sampled_from(["ok"] * 5 + ["running", "failed", "done"])),
        "started_at": f"2026-01-0{draw(st.integers(1, 9))}T00:00:00+00:00",
        "label": draw(texts),
        "method": method,
        "blocks": [0, 1] if method.startswith("skip") else None,
        "rank": draw(st.integers(1, 4)),
        "seed": draw(st.integers(0, 3)),
        "learning_rate": draw(st.sampled_from([1e-3, 1e-2])),
        "model": "m",
        "error": draw(st.none() | texts),
        "steps": draw(st.integers(1, 100)),
        "epochs": draw(st.floats(0, 5)),
        "tokens": draw(st.integers(0, 10**9)),
        "train_seconds": train_seconds,
        "cache_build_seconds": draw(st.sampled_from([0.0, train_seconds / 2, train_seconds])),
        "cache_kept": draw(st.booleans()),
        "peak_memory_bytes": draw(st.integers(0, 2**40)),
        "saved_for_backward_bytes": draw(st.integers(0, 2**40)),
        "total_parameters": 10**9,
        "trainable_parameters": draw(st.integers(0, 10**9)),
        "train_samples": draw(st.integers(1, 1000)),
        "global_batch_size": draw(st.integers(1, 64)),
        "initial_val_loss": draw(losses),
        "final_val_loss": draw(losses),
        "best_val_loss": draw(losses),
        "forgetting": draw(st.floats(-5, 5)),
    }
    if is_sound:
        return summary | {"status": "ok"}
    for name in draw(st.lists(st.sampled_from([*summary]), max_size=2)):
        summary.pop(name, None)
    if draw(st.integers(0, 3)) == 0:
        summary[draw(st.sampled_from([*summary]))] = draw(odd)
    return summary


@st.composite
def bench_summaries(draw: st.DrawFn) -> dict[str, Any]:
    def phase() -> Any:
        return draw(
            st.one_of(
                st.fixed_dictionaries(
                    {}, optional={"median_seconds": seconds, "std_seconds": seconds}
                ),
                odd,
            )
        )

    return {
        "schema_version": 1,
        "kind": "bench",
        "status": "ok",
        "configurations": [
            {
                "label": draw(texts),
                "method": method,
                "blocks": [0] if method == "skip2" else None,
                "total_parameters": 100,
                "trainable_parameters": draw(st.integers(0, 100)),
                "phases": {"forward": phase(), "backward": phase()},
                "ratios": {"backward": {"ratio": draw(seconds), "low": None, "high": None}},
                "flops": {"backward_flops": draw(st.integers(0, 10**15))},
                "memory": draw(
                    st.fixed_dictionaries({}, optional={"peak_memory_bytes": st.integers(0, 2**40)})
                ),
            }
            for method in draw(st.lists(st.sampled_from(["lora", "skip2"]), max_size=3))
        ],
    }


@st.composite
def metrics(draw: st.DrawFn) -> str:
    """The text of a metrics file, often sound."""
    header = draw(
        st.sampled_from(["step,train_seconds,train_loss,val_loss"] * 4 + ["step,loss", ""])
    )
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, 99), seconds, losses, losses | st.just("nan")), max_size=4
        )
    )
    if draw(st.booleans()):
        rows = sorted(rows, key=lambda row: row[0])
    text = "".join(f"{','.join(map(str, row))}\n" for row in [(header,), *rows])
    return text[: draw(st.sampled_from([len(text)] * 3 + [len(text) // 2]))]


sound_metrics = st.lists(st.tuples(losses, losses), max_size=4).map(
    lambda rows: (
        "step,train_seconds,train_loss,val_loss\n"
        + "".join(f"{step},{step},{train},{val}\n" for step, (train, val) in enumerate(rows))
    )
)
runs = st.lists(st.tuples(train_summaries(), st.none() | metrics()), max_size=4)


@contextmanager
def written(
    train: list[tuple[dict[str, Any], str | None]], bench: dict[str, Any] | None
) -> Iterator[Path]:
    """The results as files."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for number, (summary, text) in enumerate(train):
            folder = root / "train" / str(number)
            (folder / "logs/version_0").mkdir(parents=True)
            # ASCII, so that halves of surrogate pairs reach the reader; and NaN, as some write it
            (folder / "summary.json").write_text(json.dumps(summary))
            if text is not None:
                (folder / "logs/version_0/metrics.csv").write_text(text, encoding="utf-8")
        if bench is not None:
            (root / "bench/x").mkdir(parents=True)
            (root / "bench/x/summary.json").write_text(json.dumps(bench))
        (root / "empty").mkdir()
        yield root


def check_is_one_line(error: Exception) -> None:
    assert "\n" not in str(error)
    assert str(error)


def check_is_harmless(text: str) -> None:
    """No figure that is none, no element from a label, nothing that a terminal obeys."""
    text.encode()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    for line in text.splitlines():
        if line.startswith("|"):
            for cell in re.split(r"(?<!\\)\|", line):
                assert not re.fullmatch(r"\s*[-+]?(nan|inf)( .*)?", cell), line


@pytest.mark.parametrize("lang", ["en", "ja"])
@settings(bounded, max_examples=25)
@given(train=runs, bench=st.none() | bench_summaries())
def test_any_results_become_text_or_one_error(
    lang: Language, train: list[tuple[dict[str, Any], str | None]], bench: dict[str, Any] | None
) -> None:
    with written(train, bench) as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_charts", lambda *_: {})  # the next test draws them
        try:
            markdown = render_report(ReportConfig(results=root, lang=lang))
        except Skip2BenchError as error:
            check_is_one_line(error)
            return
        check_is_harmless(markdown)
        outside_code = re.sub(r"```.*?\n```|(`+).*?\1", "", markdown, flags=re.DOTALL)
        assert "<script" not in outside_code
        page = render_report(ReportConfig(results=root, lang=lang, format="html"))
        check_is_harmless(page)
        assert "<script" not in page
        assert "javascript:" not in "".join(re.findall(r"<[^>]*>", page))
        plain = render_report(ReportConfig(results=root, lang=lang, json=True))
        check_is_harmless(plain)
        json.loads(plain, parse_constant=pytest.fail)


@settings(bounded, max_examples=12)
@given(
    train=st.lists(
        st.tuples(train_summaries(is_sound=True), sound_metrics), min_size=2, max_size=4
    ),
    bench=st.none() | bench_summaries(),
    label=st.sampled_from(HOSTILE),
)
def test_any_chart_is_xml_without_script(
    train: list[tuple[dict[str, Any], str | None]], bench: dict[str, Any] | None, label: str
) -> None:
    for summary, _ in train:
        summary["label"] = label
    with written(train, bench) as root:
        try:
            render_report(ReportConfig(results=root, plots_dir=root / "figures"))
        except Skip2BenchError:
            return
        for path in root.glob("figures/*.svg"):
            tree = ET.fromstring(path.read_text(encoding="utf-8"))
            names = {element.tag.rpartition("}")[2].lower() for element in tree.iter()}
            assert not names & {"script", "foreignobject", "image", "a", "iframe"}
            for element in tree.iter():
                assert not [key for key in element.attrib if key.lower().startswith("on")]


@bounded
@given(text=st.one_of(st.text(), metrics()))
def test_any_metrics_are_a_curve_or_one_reason(text: str) -> None:
    try:
        curve = parse_curve(text)
    except DamagedFileError as error:
        check_is_one_line(error)
        return
    if curve:
        figures = [*curve.train_seconds, *curve.val_losses, *curve.train_losses]
        assert all(0 <= figure < 1e13 for figure in figures)
        assert curve.steps == sorted(set(curve.steps))


values = st.recursive(
    odd, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner)
)


@bounded
@given(
    content=st.one_of(
        st.binary(), st.text().map(str.encode), values.map(json.dumps).map(str.encode)
    )
)
def test_any_bytes_are_content_or_one_reason(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "file"
        path.write_bytes(content)
        for read, checks in (
            (read_json, (check_summary, check_environment, check_comparison, check_tune)),
            (read_yaml, ()),
        ):
            try:
                found = read(path)
            except DamagedFileError as error:
                check_is_one_line(error)
                continue
            json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
            for check in checks:
                try:
                    check(found)
                except DamagedFileError as error:
                    check_is_one_line(error)


def list_places(content: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys to every value below `content`."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield (*keys, key)
        if isinstance(value, dict | list):
            yield from list_places(value, (*keys, key))


RESULTS = json.loads((REFERENCE / "comparison_results.json").read_text(encoding="utf-8"))
SUMMARY = (REFERENCE / "summary.json").read_text(encoding="utf-8")
PLACES = sorted(list_places(RESULTS), key=lambda keys: (len(keys), str(keys)))


@settings(bounded, max_examples=40)
@given(keys=st.sampled_from(PLACES), value=odd, is_removed=st.booleans())
def test_a_comparison_with_one_odd_value_becomes_text_or_one_error(
    keys: tuple[Any, ...], value: Any, is_removed: bool
) -> None:
    content = json.loads(json.dumps(RESULTS))
    place = content
    for key in keys[:-1]:
        place = place[key]
    if is_removed:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_charts", lambda *_: {})
        root = Path(name)
        (root / "summary.json").write_text(SUMMARY)
        (root / "comparison_results.json").write_text(json.dumps(content))
        try:
            text = render_report(ReportConfig(results=root, lang="en"))
        except Skip2BenchError as error:
            check_is_one_line(error)
            return
        check_is_harmless(text)
