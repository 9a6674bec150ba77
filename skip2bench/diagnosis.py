"""What the results suggest doing, after section 10 of the guide: rules that speak when they apply.

No words: a finding names its rule and what it was found in; the templates say the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
Entry = Mapping[str, Any]

WORSE_LOSS_RATIO = 0.05
"""A final loss above the baseline's by more than this share calls for advice."""
SPEED_GAP_RATIO = 0.1
"""A measured reduction this far below the one by FLOPs calls for advice."""
UNSTABLE_RATIO = 0.1
"""A standard deviation above this share of the mean is called unstable."""
DOMINATED_RATIO = 0.5
"""A part of a cached run's steps beyond this share dominates them."""
SMALL_STEP_SECONDS = 2e-3
"""A backward phase shorter than this is mostly overhead: the batch is too small to compare."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A rule that applies, the configurations it applies to, and the figures it rests on."""

    rule: str
    labels: Sequence[str]
    figures: Mapping[str, Any] = field(default_factory=dict)


def diagnose(
    bench_rows: Sequence[Row], entries: Sequence[Entry], highest_load: float | None, n_cores: int
) -> list[Finding]:
    """All findings, in the order of the guide: memory, loss, speed, then how far to trust it.

    Args:
        bench_rows: Rows of `tables.build_bench_rows`.
        entries: Configurations of a comparison.
        highest_load: Highest load of the machine when a run began.
        n_cores: Cores of the machine.
    """
    found = [
        _find("memory", bench_rows, _saves_no_memory),
        _find("accuracy", entries, _loses_accuracy),
        _find("edge", entries, lambda e: e["learning_rate_at_edge"]),
        _find("speed", bench_rows, _is_slower_than_flops),
        _find("small_batch", bench_rows, _has_small_steps),
        _find("uncached", entries, lambda e: e["method"] == "skip"),
        _find("overhead", entries, _is_dominated_by_overhead),
        _find("unstable", entries, _is_unstable),
        _find("few_runs", entries, lambda e: 0 < len(e["seeds"]) < 3),
    ]
    if highest_load is not None and highest_load > 1.5 * n_cores:
        found.append(Finding(rule="busy", labels=(), figures={"load": highest_load}))
    return [finding for finding in found if finding is not None]


def _find(rule: str, rows: Sequence[Row], applies: Any) -> Finding | None:
    labels = [row["label"] for row in rows if applies(row)]
    return Finding(rule=rule, labels=labels) if labels else None


def _saves_no_memory(row: Row) -> bool:
    saved = row["memory"]["saved_reduction"]
    return row["method"] in ("skip", "skip2") and saved is not None and saved <= 0


def _loses_accuracy(entry: Entry) -> bool:
    ratio = entry["against_baseline"].get("final_val_loss")
    return bool(ratio) and ratio["ratio"] > 1 + WORSE_LOSS_RATIO


def _is_slower_than_flops(row: Row) -> bool:
    measured, by_flops = row["backward_reduction"], row["backward_flops_reduction"]
    if not measured or by_flops is None:
        return False
    # a shortfall is claimed only where even the best end of the interval falls short
    best = measured.value if measured.high is None else measured.high
    return bool(by_flops - best > SPEED_GAP_RATIO)


def _has_small_steps(row: Row) -> bool:
    seconds = row["backward_seconds"]
    return row["method"] == "lora" and seconds is not None and seconds < SMALL_STEP_SECONDS


def _is_dominated_by_overhead(entry: Entry) -> bool:
    """Data and optimizer take more than half of a cached run's steps."""
    figures = entry["figures"]
    names = ("data_seconds", "forward_seconds", "backward_seconds", "optimizer_seconds")
    if entry["method"] != "skip2" or not all(name in figures for name in names):
        return False
    means = {name: figures[name]["mean"] for name in names}
    overhead = means["data_seconds"] + means["optimizer_seconds"]
    return bool(overhead > DOMINATED_RATIO * sum(means.values()))


def _is_unstable(entry: Entry) -> bool:
    figure = entry["figures"].get("train_seconds")
    return bool(figure) and figure["std"] > UNSTABLE_RATIO * figure["mean"]
