"""Whole reports of committed results, in both languages and both forms, against committed ones.

The sets: the reference results (measured), a comparison with cells that failed and ran out of
memory, a single run, and a sweep of `tune` alone. After a wanted change,
`python tests/report/test_rendered.py` writes them anew; read the difference.
"""

import re
import sys
from pathlib import Path

import pytest

from skip2bench.config.commands import ReportConfig
from skip2bench.report.run import render_report

ROOT = Path(__file__).parents[2]
SETS = {
    "reference": ROOT / "results" / "reference" / "cpu",
    "failed": ROOT / "tests" / "data" / "failed",
    "single": ROOT / "tests" / "data" / "single",
    "tuned": ROOT / "tests" / "data" / "tuned",
}


def render(name: str, lang: str, form: str, plots_dir: Path | None = None) -> str:
    folder = SETS[name]
    output = folder / f"report.{lang}.{form}"
    return render_report(
        ReportConfig(results=folder, lang=lang, format=form, output=output, plots_dir=plots_dir)
    )


def without_charts(text: str) -> str:
    """Charts differ with matplotlib's version; their links and texts stay."""
    text = re.sub(r"<svg.*?</svg>", "<svg/>", text, flags=re.DOTALL)
    return re.sub(r"\]\([^)]*\.svg\)", "](chart)", text)


@pytest.mark.parametrize("form", ["md", "html"])
@pytest.mark.parametrize("lang", ["ja", "en"])
@pytest.mark.parametrize("name", SETS)
def test_a_report_is_the_committed_one(name, lang, form, tmp_path):
    committed = (SETS[name] / f"report.{lang}.{form}").read_text(encoding="utf-8")
    text = render(name, lang, form, plots_dir=tmp_path)
    assert without_charts(text) == without_charts(committed)


def test_failed_cells_are_in_the_report_and_in_no_figure():
    text = render("failed", "en", "html")
    assert re.search(r"<td>oom</td>", text)
    assert re.search(r"<td>failed</td>", text)


def test_a_single_run_is_compared_with_nothing(tmp_path):
    text = render("single", "en", "md", plots_dir=tmp_path)
    assert "so nothing is said on which is better" in text
    assert "✓" not in text


if __name__ == "__main__":
    for name in SETS:
        for lang in ("ja", "en"):
            for form in ("md", "html"):
                output = SETS[name] / f"report.{lang}.{form}"
                output.write_text(render(name, lang, form), encoding="utf-8")
                sys.stdout.write(f"{output}\n")
