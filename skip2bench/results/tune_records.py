"""`tune.json` and `summary.json` of a sweep over many configurations.

What the sweep itself found is exploration: one seed, half of it cut short. Results are the
finalists' figures alone, which are trained again by themselves, as runs of a comparison.
"""

from typing import Literal

from pydantic import ValidationInfo, model_validator

from skip2bench.io.record import (
    Bytes,
    Count,
    Counts,
    Flag,
    FromOne,
    FromZero,
    Loss,
    Record,
    Seconds,
    Text,
    is_read,
    refusal,
    sentence,
    shown,
)
from skip2bench.results.comparison_records import ComparedConfiguration
from skip2bench.results.run_records import RunEnd, RunStart, Versioned

TUNE_FILE = "tune.json"
FRONTIER_FILE = "frontier.svg"
FINALISTS = "finalists"
"""Folder, below the sweep's, of the comparison of its finalists."""
EXPLORATION = "exploration"
"""The same of its configurations, where each is a whole run."""
GAIN_SHARES = {"fastest": 0.8, "balanced": 0.95, "accurate": 1.0}
"""Of the most accurate one's gain over the base model, what a pick for each purpose must have; of
those that have it, the cheapest is taken."""
TUNE_COLUMNS = (
    *("configuration", "origin", "method", "blocks", "rank", "learning_rate", "alpha", "dropout"),
    *("weight_decay", "features", "share_b", "target", "trainable_parameters"),
    *("epoch", "step", "train_loss", "val_loss", "rung"),
)
"""Of `tune.csv`: a row an evaluation of a configuration."""


class Explored(Record):
    """A configuration of the sweep, and how far it came. Exploration: one seed."""

    name: Text
    origin: Text
    """`drawn`, `guide` (the guide's preset), `single` (one block alone), `screened` (the best
    single blocks together) or `rate` (a learning rate beyond those that were given)."""
    status: Text
    """`finished`, `left` (behind after a rung), `diverged`, or `training`."""
    method: Text
    blocks: Counts
    rank: FromOne
    learning_rate: FromZero
    alpha: FromZero
    dropout: FromZero
    weight_decay: FromZero
    features: Text
    share_b: Flag
    target: Text
    trainable_parameters: FromOne
    flops_per_position: FromZero
    """Of a cached step trained alone, for each supervised position."""
    rung: Count
    """The last one that it was evaluated at."""
    step: Count
    val_loss: Loss | None
    """At its last evaluation."""
    best_val_loss: Loss | None
    best_step: Count | None

    @property
    def label(self) -> str:
        """Its name, in tables."""
        return self.name


class Sensitivity(Record):
    """What a choice made of the losses. Exploration."""

    factor: Text
    """`blocks`, `rank`, `learning_rate`, ..."""
    value: Text
    n: FromOne
    """Configurations that had it in the first rung."""
    best_val_loss: Loss
    """The lowest among them, after the first rung."""
    median_val_loss: Loss


class Rung(Record):
    """A cut: who was there, and who went on."""

    rung: Count
    step: Count
    """Updates that every configuration had made."""
    configurations: FromOne
    kept: Count
    diverged: Count


class Pick(Record):
    """A recommendation."""

    purpose: Text
    """`fastest`, `balanced` or `accurate`, see the guide's section 5.2."""
    configuration: Text
    command: Text
    """Trains it."""
    is_tested: Flag
    """True where it rests on several seeds of runs of their own."""


class TuneStart(Record):
    """What is known of a sweep before it starts."""

    kind: Literal["tune"]
    label: Text | None = None
    model: Text | None = None
    data: Text | None = None
    prompt_style: Text | None = None
    device: Text | None = None
    precision: Text | None = None
    train_samples: FromOne | None = None
    val_samples: Count | None = None
    seed: Count | None = None
    epochs: Count | None = None
    planned_steps: Count | None = None
    budget: Text | None = None
    by_runs: Flag | None = None
    """True where each configuration was a whole run of its own."""
    error: Text | None = None
    preparation_seconds: Seconds | None = None


class TuneFigures(Record):
    """What a sweep took."""

    configurations: Count | None = None
    """All that were trained."""
    diverged: Count | None = None
    initial_val_loss: Loss | None = None
    """Of the base model."""
    best_val_loss: Loss | None = None
    """Lowest of the sweep. Exploration."""
    cache_bytes: Bytes | None = None
    cache_tier: Text | None = None
    cache_kept: Flag | None = None
    cache_build_seconds: Seconds | None = None
    sweep_seconds: Seconds | None = None
    """Steps of all configurations."""
    validation_seconds: Seconds | None = None
    finalists_seconds: Seconds | None = None
    """The comparison of the finalists, by the wall clock."""
    peak_memory_bytes: Bytes | None = None
    steps_of_all: Count | None = None
    """Updates of all configurations together."""


class TuneSummary(RunEnd, TuneFigures, TuneStart, RunStart):
    """`summary.json` of a sweep; what it found is in `tune.json`."""


class TuneResults(Versioned):
    """`tune.json`: everything that a sweep found."""

    written_at: Text | None = None
    command: Text | None = None
    initial_val_loss: Loss | None = None
    """Of the base model, before any update."""
    planned_steps: FromOne
    """Of a whole run."""
    rungs: tuple[Rung, ...]
    configurations: tuple[Explored, ...]
    """The ranking: those that came furthest first, by their lowest validation loss."""
    sensitivity: tuple[Sensitivity, ...]
    finalists: tuple[ComparedConfiguration, ...] = ()
    """Results: each by several seeds, alone. The first one is what the others are compared with."""
    finalist_names: tuple[Text, ...] = ()
    """Of the same, among `configurations`."""
    picks: tuple[Pick, ...] = ()

    @model_validator(mode="after")
    def _check_names(self, info: ValidationInfo) -> "TuneResults":
        """Everything that is spoken of by its name is there, once."""
        if not is_read(info):
            return self
        names = {one.name for one in self.configurations}
        if len(names) < len(self.configurations):
            raise sentence("two configurations share a name")
        if len(self.finalist_names) != len(self.finalists):
            raise refusal("does not name each of the finalists", "finalist_names")
        if sum(one.is_baseline for one in self.finalists) > 1:
            raise sentence("two finalists are what the others are compared with")
        for name in (*self.finalist_names, *(pick.configuration for pick in self.picks)):
            if name not in names:
                raise sentence(f"{shown(name)} is none of its configurations")
        return self


class TuneResult(TuneSummary):
    """What `tune` prints: the summary, what was found, and where it lies."""

    found: TuneResults
    folder: Text
