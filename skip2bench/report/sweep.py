"""What a report says of the newest sweep of `tune`."""

from typing import Any

from skip2bench.report.selection import Selection
from skip2bench.report.tables.bench_rows import count_comparisons
from skip2bench.report.tables.tune_columns import SHOWN
from skip2bench.results.reading import AnyRun
from skip2bench.results.tune_records import GAIN_SHARES, TuneResults


def collect_sweep(selection: Selection) -> dict[str, Any] | None:
    """What the report says of the newest sweep; None without one.

    Returns:
        By name: `summary` and `rungs`, `sensitivity`, `finalists` as its files have them,
        `comparisons` (tested together, of a figure), `explored` (the first of the ranking),
        `hidden` (how many more there are), `diverged` (their names), `singles` (how many blocks
        were tried alone), `picks` (a command each, with the purposes that it is for), `is_guide`
        (the first finalist has the blocks of the guide's preset), `shares` (of the gain, in
        percent, that a purpose needs), and `differences` from what else is reported: by condition,
        the sweep's value and the other.
    """
    run, found = selection.tune, selection.sweep
    if run is None or found is None:
        return None
    entries = found.configurations
    guide = {one.blocks for one in entries if one.origin == "guide"}
    first = next((one for one in found.finalists if one.is_baseline), None)
    return {
        "summary": run.summary,
        "folder": run.folder.name,
        "planned_steps": found.planned_steps,
        "initial_val_loss": found.initial_val_loss,
        "explored": entries[:SHOWN],
        "hidden": max(0, len(entries) - SHOWN),
        "diverged": [one.name for one in entries if one.status == "diverged"],
        "singles": sum(one.origin == "single" for one in entries),
        "rungs": found.rungs,
        "sensitivity": found.sensitivity,
        "finalists": found.finalists,
        "comparisons": count_comparisons(
            ratio for one in found.finalists for ratio in one.against_baseline.values()
        ),
        "first": first.label if first else None,
        "is_guide": first is not None and first.blocks in guide,
        "picks": _group_picks(found),
        "shares": {name: round(100 * share) for name, share in GAIN_SHARES.items()},
        "differences": _find_sweeps_differences(selection, run),
    }


def _group_picks(found: TuneResults) -> list[dict[str, Any]]:
    """The recommendations, each command once; of an untested one the losses are the sweep's."""
    results = dict(zip(found.finalist_names, found.finalists, strict=True))
    explored = {one.name: one for one in found.configurations}
    grouped: dict[str, dict[str, Any]] = {}
    for pick in found.picks:
        known = grouped.setdefault(pick.command, {"purposes": [], **pick.to_plain()})
        known["purposes"].append(pick.purpose)
        entry, own = results.get(pick.configuration), explored[pick.configuration]
        is_tested = pick.is_tested and entry is not None
        known["n"] = len(entry.seeds) if entry and is_tested else 0
        known["figures"] = entry.figures if entry and is_tested else {}
        known["best_val_loss"] = own.best_val_loss
        known["trainable_parameters"] = own.trainable_parameters
    for known in grouped.values():
        del known["purpose"]
    return list(grouped.values())


def _find_sweeps_differences(selection: Selection, run: AnyRun) -> dict[str, tuple[Any, Any]]:
    others = selection.compared
    if not others:
        return {}
    own, other = _describe_conditions(run), _describe_conditions(others[-1])
    # a benchmark has no data set
    return {
        name: (own[name], other[name])
        for name in own
        if own[name] != other[name] and None not in (own[name], other[name])
    }


def _describe_conditions(run: AnyRun) -> dict[str, Any]:
    summary, environment = run.summary, run.environment
    data, checkpoint, gpu = environment.data, environment.checkpoint, environment.gpu
    return {
        "model": summary.model,
        "checkpoint": checkpoint and checkpoint.sha256,
        "data": data and data.sha256,
        "device": summary.device,
        "precision": summary.precision,
        "hardware": (gpu and gpu.name) or environment.processor,
        "threads": environment.threads,
    }
