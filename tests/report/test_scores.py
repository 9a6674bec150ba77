"""Scored answers in the report: a table in all forms, and sampled questions in the page."""

import json
import re
import shutil
from pathlib import Path

import pytest

from skip2bench.config.commands import ReportConfig
from skip2bench.report.run import render_report
from skip2bench.report.tables.score_columns import SHOWN_QUESTIONS

DATA = Path(__file__).parents[1] / "data"
HOSTILE = "</td><script>alert(1)</script> | `x` [a](javascript:b) ![c](https://d) **e**\n# f"


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Train runs of two configurations, each asked 14 questions."""
    shutil.copytree(DATA / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path / "results" / "bench", ignore_errors=True)
    runs = tmp_path / "results" / "train"
    for label, score in (
        ("20261123T101000Z-pystd-lora", 0),
        ("20261123T101300Z-pystd-skip2-0-1-2-3", 1),
    ):
        summary = json.loads((runs / label / "summary.json").read_text())
        summary |= {"score": score, "score_metric": "f1", "score_max_new_tokens": 9}
        (runs / label / "summary.json").write_text(json.dumps(summary))
        lines = [
            {
                "id": i,
                "prompt": f"Question {i} {HOSTILE}",
                "reference": HOSTILE,
                "answer": f"{'right' if score else 'wrong'} {i} {HOSTILE}",
                "score": score * (0.75 if i else 1),
            }
            for i in range(14)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (runs / label / "answers.jsonl").write_text(text)
    return runs


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_the_table_has_mean_error_and_paired_difference(results, lang):
    text = render_report(ReportConfig(lang=lang))
    assert (
        "| Skip2-LoRA (4 blocks) | f1 | 14 | 1 | 0.768 ± 0.018 | +0.768 [+0.729, +0.806] |" in text
    )
    assert "| Traditional LoRA | f1 | 14 | 1 | 0.000 ± 0.000 | - |" in text
    assert "Question" not in text.split("f1")[1]


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_the_page_shows_the_same_questions_side_by_side_and_obeys_none(results, lang):
    page = render_report(ReportConfig(lang=lang, format="html"))
    assert page == render_report(ReportConfig(lang=lang, format="html"))
    shown = [int(number) for number in re.findall(r"Question (\d+) ", page)]
    assert len(shown) == SHOWN_QUESTIONS
    assert shown == sorted(set(shown))
    for number in shown:
        table = page[page.index(f"Question {number} ") :].split("</table>")[0]
        assert table.index(f"LoRA: wrong {number} ") < table.index(f"right {number} ")
    assert "<script" not in page
    assert "<strong>e</strong>" not in page
    assert "javascript:b" in page
    assert not re.search(r'(href|src)="(?!#|data:,)', page)
    assert "&lt;/td&gt;&lt;script&gt;" in page


def test_json_has_table_and_answers(results):
    content = json.loads(render_report(ReportConfig(json=True)))
    assert [row["questions"] for row in content["tables"]["scores"]] == [14, 14]
    assert len(content["answers"]) == SHOWN_QUESTIONS
    assert [it["label"] for it in content["answers"][0]["answers"]] == [
        "Traditional LoRA",
        "Skip2-LoRA (4 blocks)",
    ]


def test_a_run_whose_answers_are_damaged_is_left_out_with_the_reason(results):
    (results / "20261123T101000Z-pystd-lora" / "answers.jsonl").write_text("{")
    text = render_report(ReportConfig(lang="en"))
    assert "answers.jsonl, line 1, is no JSON" in text


def test_without_answers_there_is_no_section(tmp_path, monkeypatch):
    shutil.copytree(DATA / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    assert "### Answers" not in render_report(ReportConfig(lang="en"))
