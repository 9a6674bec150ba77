"""`lm_eval.json`: what EleutherAI's lm-evaluation-harness found of a comparison's models."""

from pathlib import Path

from skip2bench.io.record import Count, Record, Seconds, SignedNumber, Spread, Text, Texts
from skip2bench.results.plain import read_optional
from skip2bench.results.run_records import Versioned

HARNESS_FILE = "lm_eval.json"


class HarnessMetric(Record):
    """A figure of a task."""

    task: Text
    metric: Text
    """As the harness names it, with its filter behind a comma."""
    value: SignedNumber
    standard_error: Spread | None
    samples: Count | None


class HarnessEntry(Record):
    """What the harness found of a configuration."""

    run: Text
    """The cell whose model was asked: the first seed at the best learning rate."""
    key: Text
    """Hash of the run, the tasks' files and how many samples: evaluated again under another one."""
    seconds: Seconds
    """Of the harness's process, loading included."""
    metrics: tuple[HarnessMetric, ...]


class HarnessResults(Versioned):
    """Everything that the harness found so far."""

    tasks: Texts
    limit: Count | None
    """Samples of each task, at most."""
    version: Text | None
    """Of lm_eval."""
    configurations: dict[str, HarnessEntry]
    """By name."""
    left_out: dict[str, Text]
    """By name of a configuration, why it was not asked."""


def read_harness(folder: Path) -> HarnessResults | None:
    """What lies in a comparison's folder; None where nothing was asked.

    Raises:
        DamagedFileError: the file cannot be read or trusted.
    """
    return read_optional(HarnessResults, folder / HARNESS_FILE)
