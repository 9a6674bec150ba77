"""Users' templates: what they may do, and what the sandbox keeps them from."""

import shutil
from pathlib import Path

import pytest

from skip2bench.config.commands import ReportConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.resources import find_resource
from skip2bench.io.units import Language
from skip2bench.report import run as report
from skip2bench.report.run import render_report

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(DATA / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


def render(source: str) -> str:
    """What a template makes, without the time that charts take."""
    Path("own.j2").write_text(source, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_charts", lambda *_: {})
        return render_report(ReportConfig(template=Path("own.j2"), lang="en"))


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_the_shipped_templates_work_as_users_own(lang: Language) -> None:
    own = find_resource("templates") / f"report.{lang}.md.j2"
    assert render_report(ReportConfig(lang=lang, template=own)) == render_report(
        ReportConfig(lang=lang)
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "{% for e in entries %}{{ e.label | markdown }};{% endfor %}",
            "Traditional LoRA;Skip2-LoRA (4 blocks);Skip2-LoRA (6 blocks);",
        ),
        ("{{ selection.runs[0].folder.name }}", "20261123T100000Z-pystd-bench"),
        ("{{ selection.bench.summary.get('rounds') }}", "3"),
        ("{{ 'a,b'.split(',') | join('-') }}{{ 'x'.upper() }}", "a-bX"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
        ("{% for i in range(3) %}{{ loop.cycle('a', 'b') }}{% endfor %}", "aba"),
        ("{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 2 * 3 %}{{ ns.n }}", "6"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(1) }}{{ dict(a=2).a }}", "<1>2"),
        ("{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}", "ab"),
        ("{{ '%.2f' % 1.5 }}{{ 2 ** 10 }}", "1.501024"),
    ],
)
def test_what_a_template_may_do(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.parametrize(
    "source",
    [
        "{{ (FOLDER / 'summary.json').read_text() }}",
        "{{ (FOLDER / 'summary.json').unlink() }}",
        "{{ (FOLDER / 'x').write_text('x') }}",
        "{{ FOLDER.joinpath('x').mkdir() }}",
        "{{ FOLDER.rglob('*') | list }}",
        "{{ FOLDER.iterdir() | list }}",
        "{{ FOLDER.home() }}",
        "{{ [FOLDER] | map(attribute='cwd') | map('first') | list }}",
        "{% set f = FOLDER.rmdir %}{{ f() }}",
        "{% call(x) FOLDER.write_text('x') %}{% endcall %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ entries.append(1) }}",
        "{{ entries[0].update(label='x') }}",
        "{{ selection.__init__.__globals__ }}",
        "{{ selection.runs[0].__class__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ ''['format'] }}{{ ''.format_map({}) }}",
        "{{ lipsum(n=10**6) }}",
        "{{ nothing }}",
        "{{ 1 // 0 }}",
        "{{ [][1] }}",
        "{% for %}",
        "{% include 'report.en.md.j2' %}",
        "{% import 'os' as os %}",
    ],
)
def test_what_a_template_may_not_do(source: str, results: Path) -> None:
    before = sorted(results.rglob("*"))
    with pytest.raises(Skip2BenchError, match=r"^the template 'own.j2' cannot be rendered \("):
        render(source.replace("FOLDER", "selection.runs[0].folder"))
    assert sorted(results.rglob("*")) == before


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{{ 'a' * 10**9 }}", "only numbers can be multiplied"),
        ("{{ [0] * 10**9 }}", "only numbers can be multiplied"),
        ("{{ 10 ** 10 ** 10 }}", "the power is too large"),
        ("{{ '%99999999d' % 1 }}", "the width of a format is too large"),
        ("{{ '%*d' % (99999999, 1) }}", "the width of a format is too large"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        (
            "{% for i in range(9999) %}{% for j in range(9999) %}xxxxx{% endfor %}{% endfor %}",
            "it makes more than 20,000,000 characters",
        ),
        ("{{ 'x' | center(10**9) }}", "No filter named 'center'"),
        ("{{ 'x'.ljust(10**9) }}", "is not safely callable"),
        ("{{ '%(a)-99999d' % {'a': 1} }}", "the width of a format is too large"),
    ],
)
def test_what_would_take_for_ever_or_all_memory_is_refused(source: str, reason: str) -> None:
    with pytest.raises(Skip2BenchError) as caught:
        render(source)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_that_cannot_be_read_says_so() -> None:
    for content in (None, b"\xff"):
        if content:
            Path("own.j2").write_bytes(content)
        with pytest.raises(Skip2BenchError, match=r"the template 'own.j2' cannot be read"):
            render_report(ReportConfig(template=Path("own.j2")))


def test_a_users_template_makes_a_page_too() -> None:
    Path("own.j2").write_text("# T\n\n<script>x</script>\n\n![x](chart:nothing)\n")
    page = render_report(ReportConfig(template=Path("own.j2"), format="html"))
    assert "<script" not in page
    assert "<img" not in page
