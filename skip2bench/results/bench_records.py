"""`summary.json` of a benchmark: a row a configuration, with times by phase, FLOPs and memory."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationInfo, model_validator

from skip2bench.io.record import (
    Bytes,
    Count,
    Counts,
    Flops,
    FromOne,
    FromZero,
    RatioFigure,
    Record,
    Seconds,
    Share,
    Text,
    is_read,
)
from skip2bench.results.run_records import (
    ProcessorUse,
    RunEnd,
    RunStart,
    Status,
    check_part,
)


class PhaseTimes(Record):
    """Times of one phase of a configuration over the iterations of all rounds."""

    n: FromOne | None = None
    median_seconds: Seconds | None = None
    mean_seconds: Seconds | None = None
    min_seconds: Seconds | None = None
    max_seconds: Seconds | None = None
    std_seconds: Seconds | None = None
    lower_quartile_seconds: Seconds | None = None
    """None of few values: see `results.stats.QUARTILES_FROM`."""
    upper_quartile_seconds: Seconds | None = None


class PhaseRatio(Record):
    """A phase's time over the baseline's, paired by round, with its 95 % interval."""

    ratio: RatioFigure | None = None
    low: RatioFigure | None = None
    high: RatioFigure | None = None
    """The bounds are None for a single round."""
    n: Count | None = None


class FlopsFigures(Record):
    """Floating-point operations of each phase; None where there is no such phase."""

    forward_flops: Flops | None = None
    train_forward_flops: Flops | None = None
    backward_flops: Flops | None = None
    cached_forward_flops: Flops | None = None
    cached_backward_flops: Flops | None = None


class PhasePeaks(Record):
    """Peaks of one phase by itself."""

    peak_memory_bytes: Bytes | None = None
    reserved_memory_bytes: Bytes | None = None


class StepMemory(Record):
    """Memory of whole steps in a process of their own, or why there is none."""

    status: Text | None = None
    """`ok`, `oom` or `failed`."""
    peak_memory_bytes: Bytes | None = None
    """Over forward, backward and optimizer."""
    step_memory_bytes: Bytes | None = None
    """What a step added to the model at rest."""
    reserved_memory_bytes: Bytes | None = None
    saved_for_backward_bytes: Bytes | None = None
    requested_bytes: Bytes | None = None
    """What was asked for in vain."""
    oom_phase: Text | None = None


class MemoryFigures(StepMemory):
    """The same of steps from the cache, with `cached_` before it; on CUDA each phase's peaks."""

    cached_status: Text | None = None
    cached_peak_memory_bytes: Bytes | None = None
    cached_step_memory_bytes: Bytes | None = None
    cached_reserved_memory_bytes: Bytes | None = None
    cached_saved_for_backward_bytes: Bytes | None = None
    cached_requested_bytes: Bytes | None = None
    cached_oom_phase: Text | None = None
    phases: dict[str, PhasePeaks | None] | None = None


class BenchConfiguration(Record):
    """What was measured of one configuration."""

    label: Text | None = None
    method: Text | None = None
    blocks: Counts | None = None
    target: Text | None = None
    rank: Count | None = None
    total_parameters: FromOne | None = None
    trainable_parameters: Count | None = None
    adapter_parameters: Count | None = None
    trainable_ratio: Share | None = None
    """Trainable parameters / all."""
    flops: FlopsFigures | None = None
    memory: MemoryFigures | None = None
    status: Status | None = None
    """`ok` or `oom`; None in results from before there was one."""
    requested_bytes: Bytes | None = None
    oom_phase: Text | None = None
    phases: dict[str, PhaseTimes | None] | None = None
    ratios: dict[str, PhaseRatio | None] | None = None
    """By phase; None for the baseline."""

    @model_validator(mode="after")
    def _check_trainable(self, info: ValidationInfo) -> "BenchConfiguration":
        if not is_read(info):
            return self
        check_part(self, "trainable_parameters", "total_parameters")
        return self


class InferenceFigures(Record):
    """What answers cost in one form of what was trained, or of the base."""

    form: Literal["base", "merged", "adapters", "exported"]
    """Merged LoRA, Skip adapters beside their base, or an ordinary model made of both."""
    label: Text | None = None
    method: Text | None = None
    blocks: Counts | None = None
    rank: Count | None = None
    parameters: FromOne | None = None
    """Of all weights that run, a tied head twice."""
    width: FromOne | None = None
    """Channels of the residual stream."""
    prompt_tokens: Count | None = None
    new_tokens: Count | None = None
    prefill: PhaseTimes | None = None
    """Reading the prompt, up to the first new token."""
    decode: PhaseTimes | None = None
    """One further token."""
    prefill_ratio: PhaseRatio | None = None
    """Its time over the base's, paired by round; None for the base."""
    decode_ratio: PhaseRatio | None = None
    prefill_tokens_per_second: FromZero | None = None
    decode_tokens_per_second: FromZero | None = None
    peak_memory_bytes: Bytes | None = None
    """Of a process of its own that reads a prompt and answers."""
    relative_difference: FromZero | None = None
    """Of an exported model's logits and those of the adapters, as a share of the largest logit."""
    status: Status | None = None


def _read_none(value: Any) -> Any:
    return value or ()  # a run that has just begun has none yet


class BenchFigures(Record):
    """What a benchmark says of itself, and what it measured."""

    kind: Literal["bench"]
    model: Text | None = None
    device: Text | None = None
    precision: Text | None = None
    clock: Text | None = None
    batch_size: FromOne | None = None
    seq_length: Count | None = None
    """Tokens of a sample."""
    rounds: Count | None = None
    iterations: Count | None = None
    """Of a round."""
    seed: Count | None = None
    configurations: Annotated[tuple[BenchConfiguration, ...], BeforeValidator(_read_none)] = ()
    """The baseline first."""
    inference: Annotated[tuple[InferenceFigures, ...], BeforeValidator(_read_none)] = ()
    """The base first; empty where it was not asked for."""
    processor: dict[str, ProcessorUse] | None = None
    """During `timing`, each of its rounds (`round 1`, ...) and `inference`."""
    preparation_seconds: Seconds | None = None
    error: Text | None = None


class BenchSummary(RunEnd, BenchFigures, RunStart):  # the fields of the last base come first
    """`summary.json` of a benchmark."""


class BenchResult(BenchSummary):
    """What `bench` prints: the summary, and where the run lies."""

    folder: Text
