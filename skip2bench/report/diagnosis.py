"""A diagnosis of the figures: section 10 of the guide, rules that speak when they apply.

A finding names its rule, and the templates say the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from skip2bench.config.methods import find_method
from skip2bench.report.verdicts import is_measured
from skip2bench.results.comparison_records import ComparedConfiguration

Row = Mapping[str, Any]
Subject = TypeVar("Subject")

WORSE_LOSS_RATIO = 0.05
"""A final loss above the baseline's by more than this share calls for advice."""
OVERFITTING_RATIO = 0.02
"""A final loss above the lowest on the way by more than this share calls for advice."""
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
    bench_rows: Sequence[Row],
    entries: Sequence[ComparedConfiguration],
    highest_load: float | None,
    n_cores: int,
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
        _find("accuracy", [e for e in entries if _is_skip(e)], _loses_accuracy),
        _find("accuracy_of_others", [e for e in entries if not _is_skip(e)], _loses_accuracy),
        _find("above_start", entries, _ends_above_its_start),
        _find("overfits", entries, has_overfitted),
        _find("edge", entries, lambda e: e.learning_rate_at_edge),
        _find("speed", bench_rows, _is_slower_than_flops),
        _find("small_batch", bench_rows, _has_small_steps),
        _find("uncached", entries, _needs_a_cache),
        _find("overhead", entries, _is_dominated_by_overhead),
        _find("unstable", entries, _is_unstable),
        _find("few_runs", entries, lambda e: 0 < len(e.seeds) < 3),
    ]
    if highest_load is not None and highest_load > 1.5 * n_cores:
        found.append(Finding(rule="busy", labels=(), figures={"load": highest_load}))
    return [finding for finding in found if finding is not None]


def _find(
    rule: str, subjects: Sequence[Subject], applies: Callable[[Subject], bool]
) -> Finding | None:
    found: list[Any] = [it for it in subjects if applies(it)]
    labels = [it.label if isinstance(it, ComparedConfiguration) else it["label"] for it in found]
    return Finding(rule=rule, labels=labels) if labels else None


def _saves_no_memory(row: Row) -> bool:
    saved = row["memory"]["saved_reduction"]
    return find_method(row["method"]).is_skip and saved is not None and saved <= 0


def _loses_accuracy(entry: ComparedConfiguration) -> bool:
    ratio = entry.against_baseline.get("final_val_loss")
    return ratio is not None and ratio.ratio > 1 + WORSE_LOSS_RATIO


def has_overfitted(entry: ComparedConfiguration) -> bool:
    """True where the mean validation loss ends clearly above the mean of its lowest."""
    lowest, last = (entry.figures.get(name) for name in ("best_val_loss", "final_val_loss"))
    if lowest is None or last is None:
        return False
    return bool(last.mean > (1 + OVERFITTING_RATIO) * lowest.mean)


def _is_skip(entry: ComparedConfiguration) -> bool:
    return find_method(entry.method).is_skip


def _ends_above_its_start(entry: ComparedConfiguration) -> bool:
    """The mean validation loss is higher at the end than before the first step."""
    first, last = (entry.figures.get(name) for name in ("initial_val_loss", "final_val_loss"))
    return first is not None and last is not None and last.mean > first.mean


def _is_slower_than_flops(row: Row) -> bool:
    measured, by_flops = row["backward_reduction"], row["backward_flops_reduction"]
    if not measured or by_flops is None or row["is_disturbed"]:
        return False
    # a shortfall is claimed only where even the best end of the interval falls short
    best = measured.value if measured.high is None else measured.high
    return bool(by_flops - best > SPEED_GAP_RATIO)


def _has_small_steps(row: Row) -> bool:
    seconds = row["backward_seconds"]
    is_small = seconds is not None and seconds < SMALL_STEP_SECONDS and not row["is_disturbed"]
    return find_method(row["method"]).is_traditional and is_small


def _needs_a_cache(entry: ComparedConfiguration) -> bool:
    method = find_method(entry.method)
    return method.is_skip and not method.serves_rows


def _is_dominated_by_overhead(entry: ComparedConfiguration) -> bool:
    """Data and optimizer take more than half of a cached run's steps."""
    figures = entry.figures
    names = ("data_seconds", "forward_seconds", "backward_seconds", "optimizer_seconds")
    is_cached = find_method(entry.method).serves_rows
    if not is_cached or not all(is_measured(entry, name) for name in names):
        return False
    means = {name: figures[name].mean for name in names}
    overhead = means["data_seconds"] + means["optimizer_seconds"]
    return bool(overhead > DOMINATED_RATIO * sum(means.values()))


def _is_unstable(entry: ComparedConfiguration) -> bool:
    figure = entry.figures.get("train_seconds")
    is_known = figure is not None and not figure.is_disturbed
    return figure is not None and is_known and figure.std > UNSTABLE_RATIO * figure.mean
