"""`comparison_results.json`: what a comparison found, or train runs brought to the same form."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ValidationInfo, model_validator

from skip2bench.io.record import (
    Count,
    Counts,
    Flag,
    Middle,
    PlainNumber,
    Record,
    Seconds,
    Share,
    SignedNumber,
    Spread,
    Text,
    Texts,
    describe,
    is_count,
    is_number,
    is_read,
    one_of,
    refusal,
    sentence,
    shown,
)
from skip2bench.results.run_records import Versioned
from skip2bench.results.stats import Ratio

MATCHES = ("params", "memory", "time")
"""In what configurations can be made equal."""
ANY_SIGN = frozenset(("loss_change_per_step", "forgetting"))
"""Figures that may be negative."""


def _check_signs(figures: dict[str, float], info: ValidationInfo) -> dict[str, float]:
    for name, value in figures.items() if is_read(info) else ():
        if value < 0 and name not in ANY_SIGN:
            raise refusal(f"is {describe(value)}, where a number was expected", name)
    return figures


Figures = Annotated[dict[str, SignedNumber], AfterValidator(_check_signs)]
"""Figures of a cell by name; one that does not apply is not there."""


class FigureSummary(Record):
    """Of a figure over the seeds: see `results.stats.Summary`."""

    n: Spread
    median: SignedNumber | None = None
    mean: Middle
    min: SignedNumber | None = None
    max: SignedNumber | None = None
    std: Spread
    lower_quartile: SignedNumber | None = None
    """None of few values: see `results.stats.QUARTILES_FROM`."""
    upper_quartile: SignedNumber | None = None
    is_disturbed: Flag | None = None
    """True where something else used the processor during a run that is in it."""


class FigureRatio(Record):
    """A figure over the baseline's, paired by seed: see `stats.Ratio`."""

    ratio: PlainNumber
    low: PlainNumber | None
    high: PlainNumber | None
    n: Count | None = None
    is_difference: Flag
    """True where `adjusted_p_value` is below 0.05; without one, where the interval leaves 1 out."""
    p_value: Share | None = None
    """Of the paired t test on the logarithms, two-sided."""
    adjusted_p_value: Share | None = None
    """By Holm's correction over the configurations whose ratios of this figure stand together."""
    comparisons: Count | None = None
    """How many those are."""
    detectable_ratio: PlainNumber | None = None
    """The smallest ratio above 1 that such pairs would have shown at 5 %, with a power of 80 %."""
    is_disturbed: Flag | None = None
    """True where a figure of either side is."""

    @property
    def paired(self) -> Ratio:
        """The same without what follows from other rows."""
        return Ratio(ratio=self.ratio, low=self.low, high=self.high, n=self.n or 0)

    @model_validator(mode="before")
    @classmethod
    def _check_ratio(cls, content: Any, info: ValidationInfo) -> Any:
        if is_read(info) and isinstance(content, dict) and not content.get("ratio"):
            raise refusal("is no ratio of a figure")
        return content


class ScoreDifference(Record):
    """A score less the baseline's, paired by question; see `answers.compare_scores`."""

    difference: SignedNumber
    low: SignedNumber | None
    high: SignedNumber | None
    standard_error: Spread | None
    """Clustered by record: over the records, of their means over seeds."""
    questions: Count
    is_difference: Flag
    """True where a t test on it does, corrected by Holm over the configurations of the table."""


class ComparedScore(Record):
    """What a configuration's answers to held-out records came to."""

    metric: Text
    mean: PlainNumber
    """Over questions and seeds."""
    standard_error: Spread | None
    """Clustered by record; None for a single question."""
    questions: Count
    runs: Count
    """Runs that were asked; each has another seed."""
    difference: ScoreDifference | None = None
    """None for the baseline, and where the two were asked otherwise."""


class GridRow(Record):
    """A learning rate of a configuration, and what its seeds came to."""

    learning_rate: PlainNumber
    runs: Count
    ok: Count
    """Runs that ended well."""
    mean_final_val_loss: PlainNumber | None
    std_final_val_loss: PlainNumber | None

    @model_validator(mode="after")
    def _check_mean(self, info: ValidationInfo) -> "GridRow":
        if not is_read(info):
            return self
        if self.ok and self.mean_final_val_loss is None:
            raise refusal("is missing", "mean_final_val_loss")
        return self


class Described(Record):
    """What a configuration is."""

    name: Text
    """In names of files; unique."""
    label: Text
    method: Text | None
    blocks: Counts | None
    rank: Count | None
    target: Text | None
    peer: Text | None
    is_aa: Flag
    """True for the baseline under another name."""
    trainable_parameters: Count | None


class Measured(Record):
    """Figures of a configuration at its best learning rate, beside the baseline's at its own."""

    learning_rate: PlainNumber | None
    """The best one; None where no cell ended well."""
    learning_rate_at_edge: Flag
    grid: tuple[GridRow, ...]
    seeds: Counts
    """Of the cells that count."""
    failed: Texts = ()
    """Names of cells that did not end well."""
    target_loss: PlainNumber | None = None
    target_reached: Count
    """Cells whose validation loss came to the target."""
    target_tried: Count | None = None
    """Cells that had a target: those of the baseline's seeds, unless it is fixed."""
    figures: dict[str, FigureSummary]
    against_baseline: dict[str, FigureRatio]
    score: ComparedScore | None = None
    """None where no answers were asked for."""

    @model_validator(mode="after")
    def _check_figures(self, info: ValidationInfo) -> "Measured":
        if not is_read(info):
            return self
        for name, figure in self.figures.items():
            if figure.mean < 0 and name not in ANY_SIGN:
                says = f"is {describe(figure.mean)}, where a number of a sensible size was expected"
                raise refusal(says, "figures", name, "mean")
        for name in ("train_seconds", "final_val_loss"):
            if self.figures and name not in self.figures:
                raise refusal("is missing", "figures", name)
        for name, ratio in self.against_baseline.items():
            if name not in self.figures:
                raise refusal("is no ratio of a figure", "against_baseline", name)
            if (ratio.low is None) != (ratio.high is None):
                raise refusal("has half an interval", "against_baseline", name)
        return self


LIMITS = ("baseline", "peer", "no_rank", "lowest", "highest", "failed", "unknown")
Limit = Annotated[
    Literal["baseline", "peer", "no_rank", "lowest", "highest", "failed", "unknown"],
    one_of(LIMITS),
]


class Matched(Record):
    """What a configuration was given so that it equals the baseline in one thing."""

    rank: Count | None = None
    epochs: Count | None = None
    train_samples: Count | None = None
    ratio: PlainNumber | None = None
    """Expected: its parameters, projected peak or training clock / the baseline's."""
    limit: Limit | None = None
    """Why it comes no closer; None where it is as close as whole numbers allow."""
    is_disturbed: Flag | None = None
    """True where it rests on a time that something else disturbed."""


class Matching(Record):
    """`matching.json`: what was decided, and from what."""

    match: Text
    """`memory` or `time`."""
    key: Text
    """Hash of the configurations, data, weights, versions and machine."""
    configurations: dict[str, Matched]
    """By their names."""


class ComparedConfiguration(Measured, Described):
    """A configuration and its figures."""

    is_baseline: Flag
    extra_parameters: int | None = None
    """Trainable ones, less the baseline's."""
    differences: Texts
    """What a peer does otherwise."""
    micro_batch_size: Count | None = None
    """Samples in a forward pass, as the runs have recorded it."""
    matched: Matched | None = None


class ComparedCell(Record):
    """A run of the matrix."""

    configuration: Text
    role: Text
    learning_rate: PlainNumber | None
    seed: Count
    status: Text
    error: Text | None
    other_cpu_cores: PlainNumber | None = None
    """Cores that others kept busy meanwhile."""
    decides_rate: Flag | None = None
    """True where the rate of its configuration was searched for with its seed alone."""
    has_diverged: Flag | None = None
    """True where its loss ended it, which is an answer to a search of rates."""
    is_left_out: Flag | None = None
    """True for a run that has helped to choose a rate and is in no figure therefore."""
    host: Text | None = None
    """Of the worker that ran it."""
    beside: Count | None = None
    """How many other runs had cores of the same machine meanwhile, at the most."""
    figures: Figures


class RateSearch(Record):
    """How the learning rates were chosen that were searched for."""

    seed: Count
    """The one that chose each configuration's."""
    is_reported: Flag
    """True where the figures hold its runs too, which the choice has favoured."""


class ComparisonWarning(Record):
    """What a reader must know before believing the figures.

    Kinds: "busy" (`cells` during which others used the processor), "disturbed" (`cells` in whose
    timed parts they did, so that figures are marked), "resumed" (`cells` that were stopped in
    between), "beside" (`cells` that ran beside others on pinned cores of one machine), "few_runs"
    (`label`, `n`), "edge" (`label`, `learning_rate`: the best one is at the grid's end) and "aa"
    (`label`, `figure`: the same run twice differs beyond the noise).
    """

    kind: Text
    label: Text | None = None
    n: Count | None = None
    learning_rate: PlainNumber | None = None
    figure: Text | None = None
    cells: Texts = ()

    @model_validator(mode="after")
    def _check_kind(self, info: ValidationInfo) -> "ComparisonWarning":
        if not is_read(info):
            return self
        of_cells = dict.fromkeys(("busy", "disturbed", "resumed", "beside"), ("cells",))
        needed = {**of_cells, "aa": ("label", "figure")}
        for name in needed.get(self.kind, ()):
            if name not in self.model_fields_set or getattr(self, name) is None:
                raise refusal("is missing", name)
        return self


class BenchOutcome(Record):
    """How the micro-benchmark of a comparison ended."""

    status: Text
    error: Text | None = None


def _is_number_of_seeds(value: Any) -> bool:
    return value == "auto" or is_count(value)


def _check_config(config: dict[str, Any]) -> dict[str, Any]:
    wanted = {
        "seeds": (_is_number_of_seeds, "a whole number"),
        "match_params": (lambda it: isinstance(it, bool), "true or false"),
        "target_loss": (is_number, "a number"),
        "match": (MATCHES.__contains__, f"one of {', '.join(MATCHES)}"),
    }
    for name, (fits, kind) in wanted.items():
        if name not in config and name != "match":  # which older ones have not
            raise refusal("is missing", name)
        if config.get(name) is not None and not fits(config[name]):
            raise refusal(f"is {describe(config[name])}, where {kind} was expected", name)
    return config


def _check_names(cells: Any) -> Any:
    for name in cells if isinstance(cells, dict) else ():  # the report reads a folder of this name
        if name in ("", ".", "..") or any(letter in name for letter in "/\\\0"):
            raise sentence(f"the cell {shown(name)} is not named as a folder can be")
    return cells


class ComparisonResults(Versioned):
    """Everything that a comparison found so far."""

    written_at: Text | None = None
    command: Text | None = None
    config: Annotated[dict[str, Any], AfterValidator(_check_config)]
    """The comparison's configuration: `seeds`, `match`, `match_params`, `target_loss` are read."""
    baseline: Text | None = None
    """Name of its configuration."""
    target: Text | None = None
    learning_rates: Text | None
    """`grid` or `fixed`."""
    rate_search: RateSearch | None = None
    """None where every seed ran at every rate of the grid."""
    statuses: dict[str, Count] | None = None
    bench: BenchOutcome | None = None
    warnings: tuple[ComparisonWarning, ...]
    configurations: tuple[ComparedConfiguration, ...]
    best_batch: tuple[ComparedConfiguration, ...] = ()
    """The same with each at its own largest micro-batch, the baseline too."""
    targets: dict[str, PlainNumber] | None = None
    """By seed, the validation loss to reach."""
    cells: Annotated[dict[str, ComparedCell], BeforeValidator(_check_names)]

    @model_validator(mode="after")
    def _check_configurations(self, info: ValidationInfo) -> "ComparisonResults":
        if not is_read(info):
            return self
        if not self.configurations:
            raise sentence("it has no configurations yet")
        names = [entry.name for entry in self.configurations]
        if len(set(names)) < len(names) or sum(it.is_baseline for it in self.configurations) > 1:
            raise sentence("two configurations share a name, or are both the baseline")
        return self

    def cells_of(self, entry: ComparedConfiguration) -> Iterator[tuple[str, ComparedCell]]:
        """The runs that a configuration's figures are of, by name: at its best learning rate."""
        for name, cell in self.cells.items():
            is_run = cell.configuration == entry.name and cell.role == "run"
            counts = cell.status == "ok" and cell.seed in entry.seeds and not cell.is_left_out
            if is_run and counts and cell.learning_rate == entry.learning_rate:
                yield name, cell

    @property
    def matched(self) -> str | None:
        """In what all were made equal: `params`, `memory` or `time`; None where in nothing."""
        return "params" if self.config["match_params"] else self.config.get("match")


class ComparisonResult(ComparisonResults):
    """What `compare` prints: the results, and where they lie."""

    folder: Text
    error: Text | None = None


class DryRun(Record):
    """What `compare --dry-run` prints."""

    dry_run: Flag
    cells: Texts
    """Their names."""
    estimated_seconds: Seconds
