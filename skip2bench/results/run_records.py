"""`summary.json` of every kind of run: what they share, a training run's, a comparison's.

A benchmark's is `bench_records`' business. Fields stand in the order in which runs learn them.
"""

from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ValidationInfo, model_validator

from skip2bench.io.record import (
    Bytes,
    Count,
    Counts,
    Flag,
    FromOne,
    FromZero,
    Loss,
    Number,
    Record,
    Seconds,
    Share,
    Text,
    Texts,
    Time,
    describe,
    is_read,
    one_of,
    refusal,
    sentence,
    shown,
)
from skip2bench.io.whole import utc_now

SCHEMA_VERSION: Literal[1] = 1
STATUSES = ("running", "ok", "oom", "failed", "interrupted")
Status = Annotated[
    Literal["running", "ok", "oom", "failed", "interrupted"],
    one_of(STATUSES),
]


class Versioned(Record):
    """A file of the schema that this version reads."""

    schema_version: Literal[1]

    @model_validator(mode="before")
    @classmethod
    def _check_version(cls, content: Any) -> Any:
        """Say first that a file is another version's: the rest follows from that."""
        if isinstance(content, dict):
            _check_version(content.get("schema_version"))
        return content


def _check_version(version: Any) -> None:
    if version is None:
        raise sentence("it has no schema_version, so it is not skip2bench's")
    if not isinstance(version, int) or isinstance(version, bool):
        raise refusal(
            f"is {describe(version)}, where a whole number was expected", "schema_version"
        )
    if version != SCHEMA_VERSION:
        other = "a newer" if version > SCHEMA_VERSION else "an older"
        raise sentence(
            f"it was written by {other} skip2bench (schema_version {shown(version)}, this one "
            f"reads {SCHEMA_VERSION})"
        )


def _check_is_inside(log_folder: str) -> str:
    """A log folder is read, so it may be named only below its run."""
    for path in (PurePosixPath(log_folder), PureWindowsPath(log_folder)):
        if path.anchor or ".." in path.parts or "\0" in log_folder:
            raise refusal(f"{shown(log_folder)} leads out of the run folder")
    return log_folder


LogFolder = Annotated[Text, AfterValidator(_check_is_inside)]


AnyRun = TypeVar("AnyRun", bound="RunStart")


class RunStart(Versioned):
    """What every summary begins with."""

    status: Status
    started_at: Time | None = None

    @classmethod
    def begin(cls: type[AnyRun], known: Record) -> AnyRun:
        """The summary of a run that starts now, with what is known of it."""
        return cls.of(known, schema_version=SCHEMA_VERSION, status="running", started_at=utc_now())


class TrainStart(Record):
    """What is known of a training run before it starts."""

    kind: Literal["train"]
    label: Text | None = None
    method: Text | None = None
    blocks: Counts | None = None
    """None for methods without."""
    target: Text | None = None
    features: Text | None = None
    """What Skip adapters read; None for other methods, and for a run that had no choice: raw."""
    share_b: Flag | None = None
    rank: Count | None = None
    top_blocks: Count | None = None
    """How many of the last blocks LoRA-Top adapts; None for other methods."""
    model: Text | None = None
    data: Text | None = None
    prompt_style: Text | None = None
    begins_prompts: Flag | None = None
    """True where a token of the beginning stands before every prompt."""
    train_samples: FromOne | None = None
    val_samples: Count | None = None
    dropped_samples: Count | None = None
    """Without a supervised token."""
    seed: Count | None = None
    global_batch_size: FromOne | None = None
    micro_batch_size: FromOne | None = None
    learning_rate: FromZero | None = None
    lr_warmup_steps: Count | None = None
    precision: Text | None = None
    gradient_checkpointing: Flag | None = None
    quantize: Text | None = None
    compile: Flag | None = None
    device: Text | None = None
    error: Text | None = None
    peer: Text | None = None
    """Whose program ran it; None for this one."""
    log_folder: LogFolder | None = None
    """Below the run folder."""
    preparation_seconds: Seconds | None = None
    """Checking input, loading and tokenizing data."""


class ProcessorUse(Record):
    """Who used the processor while something was timed; None is what the system does not say."""

    wall_seconds: Seconds | None = None
    cpu_seconds: Seconds | None = None
    """Of the run's process and its children, over all cores."""
    others_cores: FromZero | None = None
    """Mean number of cores that others kept busy."""


class AlgebraCost(Record):
    """Cost of a supervised position in one epoch, averaged over a run."""

    flops_per_position: FromZero | None = None
    bytes_per_position: FromZero | None = None


class ObjectiveFigures(Record):
    """What computes the losses says of itself: cache, algebra, or the micro-batch it found."""

    streamed_blocks: Flag | None = None
    block_bytes: Bytes | None = None
    hidden_states_bytes: Bytes | None = None
    hidden_states_disk_bytes: Bytes | None = None
    cache_bytes: Bytes | None = None
    """Of the training samples; 0 without a cache."""
    val_cache_bytes: Bytes | None = None
    cache_tier: Text | None = None
    cache_dtype: Text | None = None
    cache_kept: Flag | None = None
    """True where an earlier run had built it."""
    shared_prefix_tokens: Count | None = None
    cache_samples: Count | None = None
    recomputed_samples: Count | None = None
    """Samples that did not fit into the cache, computed again every epoch."""
    algebra: Text | None = None
    algebra_costs: dict[str, AlgebraCost] | None = None
    micro_batch_size: FromOne | None = None
    micro_batch_search_seconds: Seconds | None = None


class LoopFigures(Record):
    """What the loop of a training run leaves: clocks, counts, memory."""

    train_seconds: Seconds | None = None
    """Training clock: data, building the cache, calibration, forward, backward, optimizer."""
    data_seconds: Seconds | None = None
    cache_build_seconds: Seconds | None = None
    calibration_seconds: Seconds | None = None
    """Finding what scaled Skip features are divided by."""
    forward_seconds: Seconds | None = None
    backward_seconds: Seconds | None = None
    optimizer_seconds: Seconds | None = None
    validation_seconds: Seconds | None = None
    saving_seconds: Seconds | None = None
    resume_seconds: Seconds | None = None
    processor: dict[str, ProcessorUse] | None = None
    """During `training` (the whole training clock), `cache_build`, `steps` and `validation`."""
    steps: Count | None = None
    """Optimizer updates."""
    planned_steps: Count | None = None
    stopped_early: Flag | None = None
    """True where validation gained nothing for as long as the run had patience."""
    epochs: FromZero | None = None
    """Passes over the training samples."""
    tokens: Count | None = None
    """Without padding."""
    resumed_at_steps: Counts | None = None
    saved_for_backward_bytes: Bytes | None = None
    """What autograd keeps for one step's backward pass."""
    peak_memory_bytes: Bytes | None = None
    """Allocated on a GPU, else resident in the process."""
    steps_peak_memory_bytes: Bytes | None = None
    """Building the cache left out."""
    reserved_memory_bytes: Bytes | None = None


class RateFigures(Record):
    """Which learning rate a run took, and why."""

    learning_rate: FromZero | None = None
    """At its peak."""
    learning_rate_source: Text | None = None
    """`default`, `given`, or `search`: the best of `learning_rates_tried`."""
    learning_rates_tried: dict[str, Loss | None] | None = None
    """By rate, the loss that decided; None where it diverged."""
    rate_search_seconds: Seconds | None = None
    """In no other clock."""


class LossFigures(Record):
    """Validation losses of a run."""

    initial_val_loss: Loss | None = None
    final_val_loss: Loss | None = None
    best_val_loss: Loss | None = None
    best_step: Count | None = None
    kept_step: Count | None = None
    """Whose adapter was saved."""
    kept_val_loss: Loss | None = None
    initial_next_token_accuracy: Share | None = None
    """Supervised validation positions whose target has the highest logit / all of them."""
    final_next_token_accuracy: Share | None = None
    kept_next_token_accuracy: Share | None = None


class ParameterFigures(Record):
    """Parameters of a run's model."""

    total_parameters: FromOne | None = None
    trainable_parameters: Count | None = None

    @model_validator(mode="after")
    def _check_trainable(self, info: ValidationInfo) -> "ParameterFigures":
        if not is_read(info):
            return self
        check_part(self, "trainable_parameters", "total_parameters")
        return self


class RankFigures(Record):
    """A run's ranks. The bytes are what each gives to the collective of a step."""

    world_size: Count | None = None
    strategy: Text | None = None
    communication_bytes_per_step: Count | None = None


class AfterwardsFigures(Record):
    """What is measured once the loop has ended."""

    adapter_bytes: Bytes | None = None
    domain_loss_before: Number | None = None
    """On held-out text of the base model's own domain."""
    domain_loss_after: Number | None = None
    forgetting: Number | None = None
    """`domain_loss_after` less `domain_loss_before`."""
    peak_anonymous_memory_bytes: Bytes | None = None
    """Without mapped files, of a run that streams its blocks."""
    diverged_at_step: Count | None = None


class ScoreFigures(Record):
    """What a run's answers to held-out records came to; none where it was not asked."""

    score_metric: Text | None = None
    """As `--score` has it."""
    score: Share | None = None
    """Mean over the questions, from 0 to 1."""
    score_standard_error: FromZero | None = None
    """Of that mean, over the questions; None for a single one."""
    score_questions: Count | None = None
    score_cut_answers: Count | None = None
    """Answers that ended at `score_max_new_tokens`, not by themselves."""
    score_max_new_tokens: Count | None = None
    score_seconds: Seconds | None = None
    """In no other clock."""


class RunEnd(Record):
    """What every summary ends with."""

    finished_at: Text | None = None
    wall_seconds: Seconds | None = None


# here and below: the fields of the last base come first
class TrainFigures(
    ScoreFigures,
    AfterwardsFigures,
    RankFigures,
    LossFigures,
    RateFigures,
    ObjectiveFigures,
    LoopFigures,
    ParameterFigures,
):
    """All that a training run measures."""

    differences: Texts | None = None
    """What a peer does otherwise."""


class TrainSummary(RunEnd, TrainFigures, TrainStart, RunStart):
    """`summary.json` of a training run."""

    @model_validator(mode="after")
    def _check_agreement(self, info: ValidationInfo) -> "TrainSummary":
        if not is_read(info):
            return self
        check_part(self, "cache_build_seconds", "train_seconds")
        if self.status == "ok":
            for name in ("steps", "train_seconds"):
                if getattr(self, name) == 0:
                    raise refusal("is 0, yet the run says that it ended well", name)
        return self


class TrainResult(TrainSummary):
    """What `train` prints: the summary, and where the run lies."""

    folder: Text


class CompareStart(Record):
    """What a comparison says of itself."""

    kind: Literal["compare"]
    label: Text | None = None
    model: Text | None = None
    data: Text | None = None
    device: Text | None = None
    precision: Text | None = None
    runs: Count | None = None
    error: Text | None = None
    preparation_seconds: Seconds | None = None
    statuses: dict[str, Count] | None = None
    """By status, how many runs."""


class CompareSummary(RunEnd, CompareStart, RunStart):
    """`summary.json` of a comparison; what it found is in `comparison_results.json`."""


def check_part(record: Record, part_name: str, whole_name: str) -> None:
    """Raise where a part is more than the whole."""
    part, whole = getattr(record, part_name), getattr(record, whole_name)
    # the sum of clocks may fall short of one by the rounding of floats
    if part is not None and whole is not None and part > whole * (1 + 1e-9):
        raise refusal(f"is {shown(part)}, more than the {whole_name} of {shown(whole)}", part_name)
