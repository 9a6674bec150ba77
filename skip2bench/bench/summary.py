"""Raw bench measurements -> one entry and one CSV row a configuration; pure functions.

Measuring and writing are `run`'s, the statistics are `results.stats`'.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from skip2bench.models.methods import MethodSettings
from skip2bench.results.bench_records import (
    BenchConfiguration,
    MemoryFigures,
    PhaseRatio,
    PhaseTimes,
)
from skip2bench.results.run_folder import PHASES
from skip2bench.results.stats import paired_ratio, summarise

# A cached phase is compared with the baseline's phase that it replaces.
_BASELINE_PHASE = {"cached_forward": "train_forward", "cached_backward": "backward"}

FITS: dict[str, Any] = {"status": "ok", "requested_bytes": None, "oom_phase": None}
"""What stands in place of `out_of_memory.describe_misfit` where memory did not run out."""

Rows = list[dict[str, Any]]
"""Raw measurements: one row a phase and iteration, with `MEASUREMENT_COLUMNS` as keys."""


def summarise_phases(rows: Rows, settings: MethodSettings) -> dict[str, PhaseTimes]:
    """Summary of each phase that was measured, over the iterations of all rounds.

    Returns:
        By phase, as in `results.stats.Summary`.
    """
    by_phase = {phase: by_round(rows, **_phase(settings, phase)) for phase in PHASES}
    return {phase: summarise_rounds(rounds) for phase, rounds in by_phase.items() if rounds}


def compare_phases(
    rows: Rows, settings: MethodSettings, baseline: MethodSettings
) -> dict[str, PhaseRatio]:
    """Ratio of each phase to the baseline's.

    Numerator is the configuration's median of a round, denominator the baseline's of the same
    round; see `results.stats.paired_ratio`.
    """
    ratios = {}
    for phase in PHASES:
        rounds = by_round(rows, **_phase(settings, phase))
        if rounds:
            replaced = _phase(baseline, _BASELINE_PHASE.get(phase, phase))
            ratios[phase] = compare_rounds(rounds, by_round(rows, **replaced))
    return ratios


def summarise_rounds(rounds: Sequence[Sequence[float]]) -> PhaseTimes:
    """Summary over the iterations of all rounds."""
    summary = asdict(summarise([value for values in rounds for value in values]))
    n = summary.pop("n")
    return PhaseTimes(n=n, **{f"{key}_seconds": value for key, value in summary.items()})


def compare_rounds(
    rounds: Sequence[Sequence[float]], base_rounds: Sequence[Sequence[float]]
) -> PhaseRatio:
    """Ratio of the medians of each round to those of the baseline, paired."""
    own, base = ([summarise(values).median for values in it] for it in (rounds, base_rounds))
    return PhaseRatio(**asdict(paired_ratio(own, base)))


def by_round(rows: Rows, **like: str) -> list[list[float]]:
    """Seconds of the rows that are like this, one list a round."""
    rounds: dict[int, list[float]] = {}
    for row in rows:
        if all(row[name] == value for name, value in like.items()):
            rounds.setdefault(row["round"], []).append(row["seconds"])
    return list(rounds.values())


def find_misfit(memory: MemoryFigures) -> dict[str, Any] | None:
    """`status`, `requested_bytes` and `oom_phase`, if a configuration's memory process ran out."""
    for prefix in ("", "cached_"):
        if getattr(memory, f"{prefix}status") == "oom":
            return {key: getattr(memory, f"{prefix}{key}") for key in FITS}
    return None


def flatten_entry(configuration: BenchConfiguration) -> dict[str, Any]:
    """Bring a configuration's entry to one CSV row.

    Phases become backward_median_seconds, …; ratios backward_ratio, backward_ratio_low, …; memory
    by phase backward_peak_memory_bytes, ….
    """
    entry = configuration.to_plain()
    row = {key: value for key, value in entry.items() if not isinstance(value, dict)}
    row["blocks"] = blocks_text(configuration.blocks)
    for phase, figures in entry["phases"].items():
        row |= {f"{phase}_{key}": value for key, value in figures.items()}
    for phase, ratio in entry.get("ratios", {}).items():
        row |= {f"{phase}_ratio": ratio["ratio"], f"{phase}_ratio_low": ratio["low"]}
        row[f"{phase}_ratio_high"] = ratio["high"]
    memory = {
        ("memory_status" if key == "status" else key): value
        for key, value in entry["memory"].items()
        if key != "phases"
    }
    for phase, figures in entry["memory"].get("phases", {}).items():
        memory |= {f"{phase}_{key}": value for key, value in figures.items()}
    return {**row, **entry["flops"], **memory}


def blocks_text(blocks: tuple[int, ...] | list[int] | None) -> str:
    """Blocks as one CSV cell: "0 1 2 3"; empty for methods without."""
    return " ".join(map(str, blocks or ()))


def _phase(settings: MethodSettings, phase: str) -> dict[str, str]:
    """What the rows of one configuration's phase have."""
    blocks = blocks_text(settings.blocks)
    return {"method": settings.method.name, "blocks": blocks, "phase": phase}
