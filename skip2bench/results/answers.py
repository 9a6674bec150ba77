"""Answers to held-out records and their scores: `answers.jsonl`, and what they come to.

A question is a record. Every run is asked the same ones, so what scatters from record to record is
common to all configurations: differences are paired by question. Seeds answer the same questions
anew; a record's scores are averaged over them first, so that errors count records and not answers
(a standard error clustered by record).
"""

import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from skip2bench.io.record import Count, PlainNumber, Record, Text, explain
from skip2bench.io.whole import write_bytes
from skip2bench.results.comparison_records import ComparedScore, ScoreDifference
from skip2bench.results.plain import DamagedFileError, parse_json, read_text
from skip2bench.results.reading import TrainRun
from skip2bench.results.run_folder import ANSWERS_FILE
from skip2bench.results.run_records import TrainSummary
from skip2bench.results.stats import student_t

Scores = dict[int, float]
"""By a record's id, its score."""


class AnswerRecord(Record):
    """A line of `answers.jsonl`: what a run answered to one held-out record.

    Its texts are None where they were withheld: scores can be shown where data cannot.
    """

    id: Count
    """The record's place among those that validate, from 0."""
    prompt: Text | None = None
    """Instruction and input."""
    reference: Text | None = None
    """The record's output."""
    answer: Text | None = None
    score: PlainNumber
    """From 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """Scores of one run's answers, and how it was asked."""

    metric: str
    max_new_tokens: int | None
    scores: Scores

    @classmethod
    def of(cls, summary: TrainSummary, answers: Sequence[AnswerRecord]) -> "ScoredRun | None":
        """The scores among a run's answers; None where it has none."""
        if not answers:
            return None
        return cls(
            metric=summary.score_metric or "-",
            max_new_tokens=summary.score_max_new_tokens,
            scores={answer.id: answer.score for answer in answers},
        )

    @property
    def terms(self) -> tuple[str, int | None]:
        """What must be equal for scores to be compared."""
        return self.metric, self.max_new_tokens


def write_answers(folder: Path, answers: Iterable[AnswerRecord]) -> None:
    """Write a run's answers, a line each, whole or not at all.

    Raises:
        OSError: they cannot be written.
    """
    lines = (json.dumps(answer.to_plain(), ensure_ascii=False) for answer in answers)
    write_bytes(folder / ANSWERS_FILE, "".join(f"{line}\n" for line in lines).encode())


def read_answers(run: TrainRun) -> list[AnswerRecord]:
    """What a run answered, in the order of its file; nothing where it was not asked.

    Raises:
        DamagedFileError: the file cannot be read, or holds what cannot be trusted.
    """
    path = run.folder / ANSWERS_FILE
    if run.summary.score is None or not os.path.lexists(path):
        return []
    answers = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line:
            name = f"{ANSWERS_FILE}, line {number},"
            try:
                answers.append(AnswerRecord.read(parse_json(name, line)))
            except ValidationError as error:
                raise DamagedFileError(f"{name}: {explain(error)}") from error
    if len({answer.id for answer in answers}) < len(answers):
        raise DamagedFileError(f"{ANSWERS_FILE} has two answers to one record")
    return answers


def standard_error(values: Sequence[float]) -> float | None:
    """Of a mean of values: their sample standard deviation / sqrt(n); None for a single one."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def summarise_scores(
    own: Mapping[int, ScoredRun], baseline: Mapping[int, ScoredRun]
) -> ComparedScore | None:
    """What a configuration's answers came to, beside the baseline's.

    Args:
        own: Its runs by seed.
        baseline: Those of the baseline; none where there is nothing to compare with.

    Returns:
        None where there are no answers, or its runs were asked in different ways.
    """
    if not own or len({run.terms for run in own.values()}) > 1:
        return None
    means = list(_average([run.scores for run in own.values()]).values())
    if not means:
        return None
    (metric, _) = next(iter(own.values())).terms
    return ComparedScore(
        metric=metric,
        mean=statistics.fmean(means),
        standard_error=standard_error(means),
        questions=len(means),
        runs=len(own),
        difference=compare_scores(own, baseline),
    )


def compare_scores(
    own: Mapping[int, ScoredRun], baseline: Mapping[int, ScoredRun]
) -> ScoreDifference | None:
    """The mean difference of two configurations, with a 95 % interval of Student's t.

    Pairs are answers to the same record after runs of the same seed. A record's differences are
    averaged over the seeds; the interval is that of the mean over records.

    Returns:
        None where nothing pairs, or the two were asked in different ways.
    """
    pairs = [(own[seed], baseline[seed]) for seed in sorted(own.keys() & baseline.keys())]
    if not pairs or len({run.terms for pair in pairs for run in pair}) > 1:
        return None
    differences = [
        {id_: mine.scores[id_] - other.scores[id_] for id_ in mine.scores.keys() & other.scores}
        for mine, other in pairs
    ]
    values = list(_average(differences).values())
    if not values:
        return None
    mean, error = statistics.fmean(values), standard_error(values)
    half = None if error is None else student_t(len(values) - 1) * error
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return ScoreDifference(
        difference=mean,
        low=low,
        high=high,
        standard_error=error,
        questions=len(values),
        is_difference=low is not None and high is not None and not low <= 0 <= high,
    )


def _average(runs: Sequence[Scores]) -> Scores:
    """Of every record that all runs answered, the mean over them, by its id."""
    common = set(runs[0]).intersection(*runs)
    return {id_: statistics.fmean(scores[id_] for scores in runs) for id_ in sorted(common)}
