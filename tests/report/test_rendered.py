"""Whole reports of committed results, in both languages and both forms, against committed ones.

The sets: the reference results (measured), a comparison with cells that failed and ran out of
memory, a single run, and a sweep of `tune` alone. After a wanted change,
`python tests/report/test_rendered.py` writes them anew; read the difference.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from skip2bench.config.commands import ReportConfig
from skip2bench.report.run import render_report
from skip2bench.results.reading import RESULTS_FILE

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


@pytest.fixture
def edited(tmp_path):
    """Renders the reference comparison with its results changed."""

    def run(lang, change):
        folder = tmp_path / "results"
        if not folder.exists():
            shutil.copytree(SETS["reference"], folder, ignore=shutil.ignore_patterns("cells"))
        original = json.loads((SETS["reference"] / RESULTS_FILE).read_text(encoding="utf-8"))
        change(original)
        (folder / RESULTS_FILE).write_text(json.dumps(original), encoding="utf-8")
        return render_report(ReportConfig(results=folder, lang=lang, plots_dir=tmp_path))

    return run


@pytest.mark.parametrize(
    ("lang", "is_reported", "text"),
    [
        (
            "en",
            True,
            "seed 1337 alone, by the final validation loss; the whole grid stands below. ",
        ),
        ("en", True, "That seed is among those shown, although the choice has favoured its loss"),
        ("en", False, "The figures and ratios leave that seed out"),
        ("ja", True, "このシードの損失は選択によって有利になっていますが"),
        ("ja", False, "選択の影響を避けるため、このシードは数値と比に含めていません。"),
    ],
)
def test_a_search_of_rates_says_what_became_of_its_seed(edited, lang, is_reported, text):
    def search(content):
        content["rate_search"] = {"seed": 1337, "is_reported": is_reported}
        content["config"]["seeds"] = "auto"

    assert text in edited(lang, search)
    words = {"en": "with at least 3 seeds, those with", "ja": "各設定を 3 個以上、"}
    assert words[lang] in edited(lang, search)


@pytest.mark.parametrize(
    ("lang", "low", "high", "text"),
    [
        (
            "en",
            0.9,
            0.995,
            "-7.4 % [-10.0 %, -0.50 %], not established once corrected for ",
        ),
        ("en", 0.98, 1.02, "beyond the noise [-2.0 %, +2.0 %]; one of 2.7 % would have shown"),
        (
            "ja",
            0.9,
            0.995,
            "（3 件の比較に対する補正後は有意差なし、p = 0.13）",
        ),
        ("ja", 0.98, 1.02, "ノイズの範囲内の差 [-2.0 %, +2.0 %]（2.7 % 以上の差なら検出）"),
    ],
)
def test_the_conclusion_says_what_would_have_shown(edited, lang, low, high, text):
    def widen(content):
        entry = next(it for it in content["configurations"] if it["method"] == "skip2")
        entry["against_baseline"]["final_val_loss"] |= {"low": low, "high": high}

    conclusion = edited(lang, widen).split("\n## ")[1]
    assert conclusion.startswith({"en": "Conclusion\n", "ja": "結論\n"}[lang])
    assert text in conclusion


if __name__ == "__main__":
    for name in SETS:
        for lang in ("ja", "en"):
            for form in ("md", "html"):
                output = SETS[name] / f"report.{lang}.{form}"
                output.write_text(render(name, lang, form), encoding="utf-8")
                sys.stdout.write(f"{output}\n")
