"""What scored answers come to: by question, over seeds, and against a baseline."""

import math
import statistics
from pathlib import Path

import pytest

from skip2bench.machine.environment_record import Environment
from skip2bench.results.answers import (
    AnswerRecord,
    ScoredRun,
    compare_scores,
    read_answers,
    summarise_scores,
    write_answers,
)
from skip2bench.results.plain import DamagedFileError
from skip2bench.results.reading import Run
from skip2bench.results.run_records import TrainSummary


def scored(*scores, metric="f1", most=256, first=0):
    by_id = dict(enumerate(scores, start=first))
    return ScoredRun(metric=metric, max_new_tokens=most, scores=by_id)


def make_run(folder, score=0.5):
    summary = TrainSummary(schema_version=1, status="ok", kind="train", score=score)
    return Run(folder=folder, summary=summary, environment=Environment(), config={})


def test_a_mean_is_over_questions_and_its_error_clustered_by_record():
    """Seeds that answer alike add nothing to what is known: the error is that of one of them."""
    one = summarise_scores({1: scored(1, 0, 0, 1, 1)}, {})
    same = summarise_scores({seed: scored(1, 0, 0, 1, 1) for seed in range(4)}, {})
    assert one == same.model_copy(update={"runs": 1})
    assert (one.mean, one.questions, one.difference) == (0.6, 5, None)
    assert one.standard_error == pytest.approx(statistics.stdev([1, 0, 0, 1, 1]) / math.sqrt(5))
    two = summarise_scores({1: scored(1, 0, 0), 2: scored(0, 0, 1)}, {})
    assert two.mean == pytest.approx(1 / 3)
    assert two.standard_error == pytest.approx(statistics.stdev([0.5, 0, 0.5]) / math.sqrt(3))


def test_differences_are_paired_by_question_and_seed():
    """What is hard for both is no noise of the difference."""
    base = {1: scored(0.1, 0.9, 0.2, 0.8), 2: scored(0.3, 0.7, 0.2, 0.8), 3: scored(0, 0, 0, 0)}
    own = {1: scored(0.2, 1.0, 0.3, 0.9), 2: scored(0.4, 0.8, 0.5, 0.9)}
    it = compare_scores(own, base)
    values = [0.1, 0.1, 0.2, 0.1]
    error = statistics.stdev(values) / 2
    assert it.difference == pytest.approx(0.125)
    assert it.standard_error == pytest.approx(error)
    assert it.low == pytest.approx(0.125 - 3.182 * error)
    assert it.high == pytest.approx(0.125 + 3.182 * error)
    assert it.is_difference
    assert it.questions == 4
    assert compare_scores(own, own).difference == 0
    assert not compare_scores(own, own).is_difference


def test_only_questions_that_both_were_asked_in_the_same_way_pair():
    own = {1: scored(1, 1, 0)}
    assert compare_scores(own, {1: scored(0, 0, first=2)}).questions == 1
    assert compare_scores(own, {2: scored(1, 1, 0)}) is None
    assert compare_scores(own, {1: scored(1, 1, 0, metric="exact")}) is None
    assert compare_scores(own, {1: scored(1, 1, 0, most=10)}) is None
    assert compare_scores(own, {1: scored(1, first=9)}) is None
    assert summarise_scores({1: scored(1), 2: scored(1, metric="exact")}, {}) is None
    assert summarise_scores({}, own) is None


def test_one_question_has_no_interval():
    found = summarise_scores({1: scored(1)}, {1: scored(0)})
    assert found.standard_error is None
    assert (found.difference.low, found.difference.high) == (None, None)
    assert not found.difference.is_difference


ANSWERS = [
    AnswerRecord(id=3, prompt="a\nb", reference="\u2028", answer='"<&|\x1b', score=0.25),
    AnswerRecord(id=5, prompt="日本", reference="", answer="", score=0.0),
]


def test_answers_are_read_back_as_they_were_written(tmp_path):
    write_answers(tmp_path, ANSWERS)
    assert read_answers(make_run(tmp_path)) == ANSWERS
    found = ScoredRun.of(make_run(tmp_path).summary, ANSWERS)
    assert found.scores == {3: 0.25, 5: 0.0}


def test_a_run_without_a_score_has_no_answers_whatever_lies_there(tmp_path):
    write_answers(tmp_path, ANSWERS)
    assert read_answers(make_run(tmp_path, score=None)) == []
    assert read_answers(make_run(Path("nowhere"))) == []
    assert ScoredRun.of(make_run(tmp_path).summary, []) is None


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{\n", "line 1, is no JSON"),
        ("[]\n", "line 1,: it is a list"),
        ('{"id": 1}\n', "line 1,: "),
        ('{"id": -1, "prompt": "", "reference": "", "answer": "", "score": 0}\n', "id is -1"),
        ('{"id": 1, "prompt": "", "reference": "", "answer": "", "score": NaN}\n', "NaN"),
        ('{"id": 1, "prompt": "", "reference": "", "answer": "", "score": 0}\n' * 2, "two answers"),
    ],
)
def test_a_damaged_file_is_named_with_its_reason(tmp_path, text, error):
    (tmp_path / "answers.jsonl").write_text(text)
    with pytest.raises(DamagedFileError, match=error) as caught:
        read_answers(make_run(tmp_path))
    assert str(caught.value).startswith("answers.jsonl")
