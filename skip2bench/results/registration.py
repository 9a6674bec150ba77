"""`registration.json`: what a comparison was to run and compare, written before its first run.

And whether what it found later follows it. The hash is over the plan alone.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from skip2bench.io.record import Count, Flag, Record, Text, Texts, Time, parse_time, walk
from skip2bench.machine.environment_record import CheckpointRecord, DataRecord
from skip2bench.results.comparison_records import ComparisonResults
from skip2bench.results.plain import DamagedFileError, read_json, read_optional
from skip2bench.results.run_records import Versioned

REGISTRATION_FILE = "registration.json"
_BENCH = "bench"
"""Name of the micro-benchmark among the cells."""
Kind = Literal[
    "hash", "config", "left_out", "failed", "added", "another", "analysis", "late", "no_start"
]


class Analysis(Record):
    """What is to be compared with what."""

    baseline: Text
    """Name of its configuration."""
    target: Text
    """What validation loss is to be reached."""
    configurations: Texts
    """Names of those whose figures are to be compared with the baseline's, paired by seed."""
    seeds: Count | Literal["auto"]
    learning_rate: Text
    """Which run of a configuration counts."""
    interval: Text
    """Of a paired ratio."""
    figures: Texts


class RegisteredPlan(Record):
    """Everything that is decided before the first run."""

    config: dict[str, Any]
    """As in `config.yaml`."""
    model: Text
    checkpoint: CheckpointRecord | None
    data: DataRecord | None
    versions: dict[str, Text | None]
    machine: dict[str, Any]
    cells: dict[str, Text]
    """By name, the key of each run: a hash of all that decides its result. Empty where they follow
    from what others come to."""
    cells_follow: Flag = False
    """True where learning rates or epochs are found by runs, and so decide which others there are;
    the configuration says how."""
    analysis: Analysis


class Registration(Versioned):
    """The plan, and when it was written down."""

    registered_at: Time
    sha256: Text
    """Of the plan, as JSON with sorted keys and without spaces."""
    plan: RegisteredPlan


class CellOutcome(Record):
    """How a cell's process ended, of which few things are read back here."""

    status: Text
    error: Text | None = None
    started_at: Time
    wall_seconds: float | None = None
    other_cpu_cores: float | None = None
    host: Text | None = None
    beside: Count | None = None


class CellEnd(Record):
    """`cells/NAME.json`: how a cell ended, and under which key."""

    key: Text
    outcome: CellOutcome


def hash_plan(plan: Record) -> str:
    """Sha256 of a plan."""
    text = json.dumps(plan.to_plain(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_registration(folder: Path) -> Registration | None:
    """What a comparison's folder has registered; None where nothing.

    Raises:
        DamagedFileError: the file cannot be read, or is none of these.
    """
    return read_optional(Registration, folder / REGISTRATION_FILE)


def read_ends(folder: Path) -> dict[str, CellEnd]:
    """How the cells of a comparison ended, by name, as far as that can be read."""
    found = {}
    for path in sorted((folder / "cells").glob("*.json")):
        if path.name.endswith(".spec.json"):
            continue
        try:
            found[path.stem] = CellEnd.read(read_json(path))
        except (DamagedFileError, ValidationError):
            continue  # a cell without an end that can be read has none
    return found


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """In what results do not follow the plan, and of which cells or words of the analysis."""

    kind: Kind
    names: tuple[str, ...] = ()


def find_deviations(
    registration: Registration, results: ComparisonResults, ends: Mapping[str, CellEnd]
) -> list[Deviation]:
    """In what the results of a comparison do not follow what was registered; empty where they do.

    Args:
        registration: What was registered.
        results: What the comparison found.
        ends: What `read_ends` gives.
    """
    plan = registration.plan
    statuses = {name: cell.status for name, cell in results.cells.items()}
    if results.bench is not None:
        statuses[_BENCH] = results.bench.status
    found_rates = {entry.name for entry in results.configurations if entry.learning_rate}
    answers = [  # of a search of rates, which has found one that holds
        name
        for name, cell in results.cells.items()
        if cell.decides_rate and cell.has_diverged and cell.configuration in found_rates
    ]
    # where runs follow from others, those that there are were to be
    planned = statuses if plan.cells_follow else plan.cells
    found = {
        "config": _find_other_values(plan.config, results.config),
        "left_out": [name for name in planned if statuses.get(name, "waiting") == "waiting"],
        "failed": [
            name
            for name in planned
            if statuses.get(name) not in ("ok", "waiting", None) and name not in answers
        ],
        "added": [] if plan.cells_follow else [it for it in statuses if it not in plan.cells],
        "another": [
            name for name, key in plan.cells.items() if name in ends and ends[name].key != key
        ],
        "analysis": _find_other_analysis(plan.analysis, results),
    }
    deviations = [Deviation(kind="hash")] if hash_plan(plan) != registration.sha256 else []
    deviations += [
        Deviation(kind=kind, names=tuple(names))  # type: ignore[arg-type]
        for kind, names in found.items()
        if names
    ]
    started = find_first_start(ends)
    if started is None:
        return [*deviations, Deviation(kind="no_start")]
    if (parse_time(registration.registered_at) or 0.0) > (parse_time(started) or 0.0):
        deviations.append(Deviation(kind="late"))
    return deviations


def _find_other_values(planned: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Options of which results were made with another value than was registered."""
    sides = [
        {".".join(map(str, keys)): value for keys, value in walk(_as_read(it))}
        for it in (planned, own)
    ]
    return sorted(
        name
        for name in sides[0].keys() | sides[1].keys()
        if not any(isinstance(side.get(name), dict | list) for side in sides)
        and sides[0].get(name) != sides[1].get(name)
    )


def _as_read(values: Mapping[str, Any]) -> Any:
    """As a file has them: lists for tuples."""
    return json.loads(json.dumps(values))


def find_first_start(ends: Mapping[str, CellEnd]) -> str | None:
    """When the first run started; None where no run says so."""
    known = [end.outcome.started_at for end in ends.values()]
    return min(known, key=lambda text: parse_time(text) or 0.0, default=None)


def _find_other_analysis(analysis: Analysis, results: ComparisonResults) -> list[str]:
    found = {
        "baseline": (results.baseline, analysis.baseline),
        "target": (describe_target(results.config.get("target_loss")), analysis.target),
        "configurations": (
            tuple(one.name for one in results.configurations if not one.is_baseline),
            analysis.configurations,
        ),
        "seeds": (results.config.get("seeds"), analysis.seeds),
    }
    return [name for name, (own, planned) in found.items() if own != planned]


def describe_target(target_loss: float | None) -> str:
    """Which validation loss is to be reached, in words."""
    return "final loss of the baseline" if target_loss is None else f"{target_loss:g}"
