"""Raw bench measurements -> one entry and one CSV row a configuration; pure functions.

Measuring and writing are `run`'s, the statistics are `results.stats`'.
"""

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
    phases = {}
    for phase in PHASES:
        values = [value for by_round in _by_round(rows, settings, phase) for value in by_round]
        if values:
            summary = asdict(summarise(values))
            n = summary.pop("n")
            seconds = {f"{key}_seconds": value for key, value in summary.items()}
            phases[phase] = PhaseTimes(n=n, **seconds)
    return phases


def compare_phases(
    rows: Rows, settings: MethodSettings, baseline: MethodSettings
) -> dict[str, PhaseRatio]:
    """Ratio of each phase to the baseline's.

    Numerator is the configuration's median of a round, denominator the baseline's of the same
    round; see `results.stats.paired_ratio`.
    """
    ratios = {}
    for phase in PHASES:
        rounds = _by_round(rows, settings, phase)
        if rounds:
            base_rounds = _by_round(rows, baseline, _BASELINE_PHASE.get(phase, phase))
            medians = [summarise(values).median for values in rounds]
            base_medians = [summarise(values).median for values in base_rounds]
            ratios[phase] = PhaseRatio(**asdict(paired_ratio(medians, base_medians)))
    return ratios


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


def _by_round(rows: Rows, settings: MethodSettings, phase: str) -> list[list[float]]:
    """Seconds of one configuration's phase, one list a round."""
    key = (settings.method.name, blocks_text(settings.blocks), phase)
    rounds: dict[int, list[float]] = {}
    for row in rows:
        if (row["method"], row["blocks"], row["phase"]) == key:
            rounds.setdefault(row["round"], []).append(row["seconds"])
    return list(rounds.values())
