"""Tables of scored answers: their columns, and the answers that the HTML report shows."""

import random
from collections.abc import Mapping
from typing import Any

from skip2bench.io import units
from skip2bench.report.selection import Selection, list_shown
from skip2bench.report.tables.cells import (
    COUNT,
    LABEL,
    Column,
    Output,
    Row,
    Table,
    plain,
    read,
    show_label,
)
from skip2bench.results.answers import AnswerRecord
from skip2bench.results.comparison_records import ComparedScore, ScoreDifference

SHOWN_QUESTIONS = 10
_SEED = 0
"""Of the choice of questions: the same records are shown in every report of the same data."""
_SAME = {
    "en": "no difference beyond the noise ",
    "ja": "ノイズを超える差なし ",
    "screen": "≈ ",
}


def _show_mean(score: ComparedScore, _: Output) -> str:
    """Mean ± standard error, which a single question does not have."""
    error = score.standard_error
    return f"{score.mean:.3f}" if error is None else f"{score.mean:.3f} ± {error:.3f}"


def _show_difference(it: ScoreDifference, output: Output) -> str:
    """A paired difference with its interval, or that there is none."""
    if it.low is None or it.high is None:
        return f"{it.difference:+.3f}"
    interval = f"[{it.low:+.3f}, {it.high:+.3f}]"
    if it.is_difference:
        return f"{it.difference:+.3f} {interval}"
    middle = f"{it.difference:+.3f} " if output == "screen" else ""
    return f"{_SAME[output]}{middle}{interval}"


def _of_score(name: str) -> Any:
    return lambda entry: getattr(read(entry, "score"), name)


SCORE_COLUMNS = (
    Column(
        key="metric",
        en="Score",
        ja="採点方法",
        figure=_of_score("metric"),
        show=show_label,
        is_text=True,
    ),
    Column(key="questions", en="Questions", ja="問題数", figure=_of_score("questions"), show=COUNT),
    Column(key="runs", en="n", ja="n", figure=_of_score("runs"), show=COUNT),
    Column(
        key="score",
        en="Mean ± standard error",
        ja="平均 ± 標準誤差",
        figure=lambda entry: read(entry, "score"),
        show=_show_mean,
        short="Mean ± SE",
    ),
    Column(
        key="difference",
        en="Difference to the baseline",
        ja="基準との差",
        figure=_of_score("difference"),
        show=_show_difference,
        short="Difference",
    ),
)
NEXT_TOKEN = Column(
    key="final_next_token_accuracy",
    en="Next token",
    ja="次トークン正解率",
    figure=lambda entry: read(entry, "figures").get("final_next_token_accuracy"),
    show=plain(lambda figure: units.format_percent(figure.mean)),
    is_optional=True,
)


def list_scored(data: Mapping[str, Any]) -> list[Row]:
    """Configurations whose answers were scored."""
    return [entry for entry in data["entries"] if entry.score is not None]


SCORE_TABLE = Table(rows=list_scored, columns=(LABEL, *SCORE_COLUMNS))


def sample_answers(selection: Selection) -> list[dict[str, Any]]:
    """Questions that every configuration was asked, drawn by a seed, with the answers of each.

    None where their texts were withheld.

    Of a configuration with several runs, the answers are those of the first.
    """
    results, shown = selection.results, selection.shown.answers
    by_label: dict[str, dict[int, AnswerRecord]] = {}
    if results is None:
        return []
    for entry in results.configurations:
        own = next((shown[name] for name in list_shown(results, entry) if name in shown), None)
        if own is not None:
            by_label[entry.label] = {it.id: it for it in own if it.answer is not None}
    if not by_label:
        return []
    first, *others = by_label.values()
    common = sorted(set(first).intersection(*others))
    drawn = random.Random(_SEED).sample(common, min(SHOWN_QUESTIONS, len(common)))
    return [
        {
            "id": id_,
            "prompt": first[id_].prompt,
            "reference": first[id_].reference,
            "answers": [
                {"label": label, "answer": own[id_].answer, "score": own[id_].score}
                for label, own in by_label.items()
            ],
        }
        for id_ in sorted(drawn)
    ]
