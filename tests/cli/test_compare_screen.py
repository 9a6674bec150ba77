import pytest

from skip2bench.cli.compare_screen import _describe_warning
from skip2bench.results.comparison_records import ComparisonWarning


@pytest.mark.parametrize(
    ("warning", "text"),
    [
        (
            {"kind": "busy", "cells": ["a", "b"]},
            "something else used the processor during a, b",
        ),
        (
            {"kind": "resumed", "cells": ["a", "b"]},
            "stopped and resumed, each step counted once: a, b",
        ),
        (
            {"kind": "few_runs", "label": "x", "n": 2},
            "x: n = 2; an interval needs at least 3 runs",
        ),
        (
            {"kind": "edge", "label": "x", "learning_rate": 1e-3},
            "x: its best learning rate 0.001 is at the edge of the grid; a wider one, as "
            "--learning-rates auto makes it, may do better",
        ),
        (
            {"kind": "aa", "label": "x", "figure": "train_seconds"},
            "x: train_seconds differs from the baseline's, and both are the same run",
        ),
    ],
)
def test_every_kind_of_warning_has_its_words(warning, text):
    assert _describe_warning(ComparisonWarning(**warning)) == text
