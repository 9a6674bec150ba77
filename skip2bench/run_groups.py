"""Single train runs brought to the form of a comparison, so that the report has one form for both.

Runs of one configuration that differ in seed alone are repetitions of it; runs at several learning
rates are its grid.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from skip2bench.comparison import (
    CellResult,
    find_targets,
    find_warnings,
    read_figures,
    summarise_configuration,
)
from skip2bench.config import LORA_TARGETS
from skip2bench.curves import read_loss_curve
from skip2bench.results import Run
from skip2bench.tables import order_key

_ADAPTER_KEYS = ("lora_alpha", "lora_dropout", *LORA_TARGETS)
BASELINE = "lora"
_NEEDED = ("initial_val_loss", "final_val_loss", "train_seconds", "steps")


def identify(run: Run) -> tuple[Any, ...]:
    """What makes two comparable runs the same configuration; sorts as `order_key` does."""
    details = (run.summary.get("rank"), *(run.config.get(name) for name in _ADAPTER_KEYS))
    return (*order_key(run.summary), *map(str, details), str(run.summary.get("peer")))


def combine_runs(runs: Sequence[Run]) -> dict[str, Any]:
    """Comparable train runs in the form of `comparison_results.json`.

    Args:
        runs: Finished runs that agree in all but configuration, seed and learning rate.

    Returns:
        `configurations`, `cells`, `learning_rates`, `warnings` and `config` (its `seeds` None).
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in sorted(runs, key=identify):
        groups.setdefault(identify(run), []).append(run)
    labels = Counter(group[0].summary.get("label") for group in groups.values())
    cells: dict[str, list[CellResult]] = {}
    entries: list[dict[str, Any]] = []
    for number, group in enumerate(groups.values()):
        name = str(number)
        cells[name] = [_make_cell(name, run, group) for run in group]
        entries.append(
            _describe(name, group[0], is_shared=labels[group[0].summary.get("label")] > 1)
        )
    baseline = next((entry for entry in entries if entry["method"] == BASELINE), None)
    base_cells = cells[baseline["name"]] if baseline else []
    for entry in entries:
        entry |= summarise_configuration(cells[entry["name"]], base_cells, None)
        entry["is_baseline"] = entry is baseline
        entry["extra_parameters"] = _less(entry, baseline)
    targets = find_targets(base_cells, None)
    results = [cell for group_cells in cells.values() for cell in group_cells]
    return {
        "config": {"seeds": None, "match_params": False, "target_loss": None},
        "learning_rates": "grid" if any(len(e["grid"]) > 1 for e in entries) else "fixed",
        "configurations": entries,
        "cells": {
            cell.name: {
                "configuration": cell.configuration,
                "role": cell.role,
                "learning_rate": cell.learning_rate,
                "seed": cell.seed,
                "status": cell.status,
                "error": None,
                "figures": read_figures(cell, targets.get(cell.seed))
                if cell.status == "ok"
                else {},
            }
            for cell in results
        },
        "warnings": find_warnings(entries, results, n_cores=1),
    }


def _make_cell(name: str, run: Run, group: Sequence[Run]) -> CellResult:
    summary = run.summary
    curve = read_loss_curve(run)
    return CellResult(
        name=run.folder.name,
        configuration=name,
        role="reused" if _is_reused(run, group) else "run",
        learning_rate=float(summary.get("learning_rate") or 0.0),
        seed=int(summary.get("seed") or 0),
        status="ok" if all(_is_number(summary.get(key)) for key in _NEEDED) else "incomplete",
        wall_seconds=summary.get("wall_seconds"),
        summary=summary,
        curve=[
            {"step": step, "val_loss": loss, "train_seconds": seconds}
            for step, seconds, loss in zip(
                curve.steps, curve.train_seconds, curve.val_losses, strict=True
            )
        ]
        if curve
        else (),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value  # NaN equals nothing


def _is_reused(run: Run, group: Sequence[Run]) -> bool:
    """True for a run that found its cache kept, where the same run has also built it."""
    names = ("seed", "learning_rate")
    return bool(run.summary.get("cache_kept")) and any(
        not other.summary.get("cache_kept")
        and all(other.summary.get(name) == run.summary.get(name) for name in names)
        for other in group
    )


def _describe(name: str, run: Run, *, is_shared: bool) -> dict[str, Any]:
    summary = run.summary
    label = str(summary.get("label") or run.folder.name)
    names = ("method", "blocks", "rank", "target", "trainable_parameters")
    return {
        "name": name,
        "label": _label_with_details(run) if is_shared else label,
        **{key: summary.get(key) for key in names},
        "peer": summary.get("peer"),
        "is_aa": False,
        "differences": list(summary.get("differences") or ()),
    }


def _label_with_details(run: Run) -> str:
    """The label of a run with its adapter's settings."""
    summary, config = run.summary, run.config
    details = {
        "blocks": ",".join(map(str, summary.get("blocks") or ())),
        "target": summary.get("target"),
        "r": summary.get("rank"),
        "alpha": config.get("lora_alpha"),
        "dropout": config.get("lora_dropout"),
    }
    text = "; ".join(f"{key} {value}" for key, value in details.items() if value not in (None, ""))
    return f"{summary.get('label')} [{text}]"


def _less(entry: dict[str, Any], baseline: dict[str, Any] | None) -> int | None:
    own, base = entry["trainable_parameters"], (baseline or {}).get("trainable_parameters")
    return None if own is None or base is None else own - base
