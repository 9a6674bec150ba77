"""What `--score` may be: how answers are compared with references; comparing is `scores`'."""

import re
from typing import Literal

from skip2bench.errors import Skip2BenchError

ScoreName = Literal["exact", "f1", "rouge-l", "choice", "regex"]
_PLAIN: tuple[ScoreName, ...] = ("exact", "f1", "rouge-l", "choice")
_REGEX = "regex:"
SCORES_TEXT = "exact, f1, rouge-l, choice or regex:PATTERN"


def split_score(score: str) -> tuple[ScoreName, re.Pattern[str] | None]:
    """The name of a score, and its pattern where it has one.

    Raises:
        Skip2BenchError: there is no such score, or its pattern is none.
    """
    for name in _PLAIN:
        if score == name:
            return name, None
    if not score.startswith(_REGEX):
        raise Skip2BenchError(f"score is {score!r}; choose from {SCORES_TEXT}")
    try:
        pattern = re.compile(score.removeprefix(_REGEX))
    except (re.error, OverflowError, RecursionError) as error:
        raise Skip2BenchError(
            f"score is {score!r}, whose pattern is no regular expression ({error}); mend it"
        ) from error
    if not pattern.groups:
        raise Skip2BenchError(
            f"score is {score!r}, whose pattern has no group to compare; put what counts into "
            "parentheses, as in regex:####\\s*(-?[\\d,.]+)"
        )
    return "regex", pattern
