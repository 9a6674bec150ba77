"""What the runs of a report ran on and with, and in what they differ."""

from collections.abc import Iterable, Sequence
from typing import Any

from skip2bench.config.options import CONDITIONS
from skip2bench.io.record import Record
from skip2bench.machine.environment_record import CheckpointRecord, DataRecord
from skip2bench.report.markdown import HASH_LENGTH
from skip2bench.report.selection import Selection, list_shown
from skip2bench.results.comparison_records import ComparedConfiguration
from skip2bench.results.conditions import group_switches, read_switches
from skip2bench.results.reading import AnyRun


def collect_environment(selection: Selection) -> dict[str, Any]:
    """What the runs ran on and with.

    Returns:
        By name, the distinct values among the runs that are compared, in the order of the tables;
        `highest_load` is a number or None. Sizes are bytes; hashes are cut to HASH_LENGTH.
    """
    # a sweep has a section of its own, which says in what it differs from the rest
    runs = selection.compared or selection.runs
    environments = [run.environment for run in runs]
    names = (
        *("processor", "cpu_count", "memory_bytes", "platform", "gpu", "threads"),
        *("python", "torch", "litgpt", "skip2bench"),
    )
    found: dict[str, Any] = {
        name: _distinct(_plain(getattr(it, name)) for it in environments) for name in names
    }
    for name in ("model", "device", "precision"):
        found[name] = _distinct(getattr(run.summary, name) for run in runs)
    for name in ("data", "checkpoint"):
        found[name] = _distinct(_with_short_hash(getattr(it, name)) for it in environments)
    found["commit"] = _distinct(
        (it.commit[:HASH_LENGTH], bool(it.dirty)) for it in environments if it.commit
    )
    found["started_at"] = sorted(
        {run.summary.started_at for run in (*runs, *selection.shown.runs.values())} - {None}
    )
    loads = [it.load_average[0] for it in environments if it.load_average]
    found["highest_load"] = max(loads, default=None)
    found["commands"] = _distinct(run.environment.command for run in selection.runs)
    return found


def collect_setup(
    selection: Selection, entries: Sequence[ComparedConfiguration]
) -> dict[str, list[Any]] | None:
    """Batch, samples and seeds of the training runs; their switches where one was on."""
    found = [run.summary for run in selection.shown.runs.values()]
    results = selection.results
    if not found or results is None:
        return None
    names = ("global_batch_size", "micro_batch_size", "train_samples", "val_samples")
    shown = selection.shown.runs
    own = {e.label: [shown[it] for it in list_shown(results, e) if it in shown] for e in entries}
    switches = group_switches({label: runs for label, runs in own.items() if runs})
    seeds = sorted({seed for entry in entries for seed in entry.seeds})
    return {
        **{name: _distinct(getattr(summary, name) for summary in found) for name in names},
        "seed": seeds,
        **({"switches": switches} if switches else {}),
    }


def find_mismatches(selection: Selection) -> list[str]:
    """Names of what benchmark and training do not share: model, device, precision, switches."""
    others: list[AnyRun] = [*selection.train[:1]]
    others = others or [run for run in (selection.comparison,) if run]
    if not (selection.bench and others):
        return []
    bench, train = selection.bench.summary, others[0].summary
    found = [
        name
        for name in ("model", "device", "precision")
        if getattr(bench, name) != getattr(train, name)
    ]
    own = read_switches(selection.bench, CONDITIONS)
    theirs = [read_switches(run, CONDITIONS) for run in selection.shown.runs.values()]
    return found + [name for name in own if any(it[name] != own[name] for it in theirs)]


def _distinct(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value is not None and value not in found:
            found.append(value)
    return found


def _plain(value: Any) -> Any:
    return value.to_plain() if isinstance(value, Record) else value


def _with_short_hash(value: DataRecord | CheckpointRecord | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {**value.to_plain(), "sha256": value.sha256[:HASH_LENGTH] if value.sha256 else "-"}
