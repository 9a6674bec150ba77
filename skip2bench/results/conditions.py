"""Options of training runs as the report reads them back, by what they are for.

A run from before there was an option ran as the option's default says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import Field
from typing import Any

from skip2bench.config.methods import find_method
from skip2bench.config.options import (
    CONDITIONS,
    Role,
    default_of,
    is_switch,
    list_options,
    switch_names,
)
from skip2bench.config.train import TrainConfig
from skip2bench.results.reading import AnyRun, TrainRun


def read_conditions(run: TrainRun) -> dict[str, Any]:
    """What must agree before two train runs are compared; None where it was not recorded."""
    environment = run.environment
    gpu, data, checkpoint = environment.gpu, environment.data, environment.checkpoint
    versions = [environment.torch, environment.litgpt, environment.skip2bench]
    return {
        **read_options(run, *CONDITIONS),
        "data": data and data.sha256,
        "checkpoint": checkpoint and checkpoint.sha256,
        "hardware": (gpu and gpu.name) or environment.processor,
        "threads": environment.threads,
        "versions": ", ".join(map(str, versions)) if any(versions) else None,
    }


OFF = "off"
_AS_PLANNED = {"steps": "planned_steps"}
"""Where a run may end before its time: what it was to do is what it was asked for."""


def read_options(run: TrainRun, *roles: Role) -> dict[str, Any]:
    """What a run was with in the options that have one of the roles.

    Returns:
        By the name under which the run recorded what it made of the option, or else by the
        option's own; None where it is not known, and for what is no condition and not taken by the
        run's method.
    """
    method = find_method(run.summary.method)
    found: dict[str, Any] = {}
    for item in list_options(TrainConfig, *roles):
        if (recorded_as := item.metadata.get("recorded_as")) is not None:
            found[recorded_as] = getattr(run.summary, _AS_PLANNED.get(recorded_as, ""), None)
            if found[recorded_as] is None:
                found[recorded_as] = getattr(run.summary, recorded_as, None)
        else:
            taken_by = item.metadata.get("taken_by")
            is_for_all = taken_by is None or item.metadata["role"] in CONDITIONS
            is_known = is_for_all or getattr(method, str(taken_by))
            found[item.name] = _read(run, item) if is_known else None
    return found


def read_switches(run: AnyRun, roles: Sequence[Role] = (*CONDITIONS, "variant")) -> dict[str, str]:
    """By name, 'off', 'on', or what the switch was set to, of the switches with these roles."""
    names = switch_names(TrainConfig, *roles)
    return {name: _text(run.config.get(name)) for name in names}


def read_variant(run: TrainRun) -> dict[str, Any]:
    """The run's values of variants that were asked for, by name, and are not their defaults."""
    own = read_options(run, "variant")
    return {
        item.name: own[item.name]
        for item in list_options(TrainConfig, "variant")
        if "recorded_as" not in item.metadata
        and own[item.name] not in (None, _as_read(item, default_of(item)))
    }


def _read(run: TrainRun, item: Field[Any]) -> Any:
    return _as_read(item, run.config.get(item.name, default_of(item)))


def _as_read(item: Field[Any], value: Any) -> Any:
    return _text(value) if is_switch(item) else value


def _text(value: Any) -> str:
    return "on" if value is True else str(value) if value else OFF


def group_switches(runs: Mapping[str, Sequence[TrainRun]]) -> list[dict[str, Any]]:
    """Which configurations had which switches on.

    Args:
        runs: Those of each configuration, by its label.

    Returns:
        One entry for each set of switches: `switches`, name to value, of those that were on; and
        `labels` of the configurations, empty where it holds for all. Empty where none was on.
    """
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for label, own in runs.items():
        on = {item for run in own for item in read_switches(run).items() if item[1] != OFF}
        groups.setdefault(tuple(sorted(on)), []).append(label)
    is_for_all = len(groups) == 1
    return [
        {"switches": dict(on), "labels": [] if is_for_all else labels}
        for on, labels in groups.items()
        if on
    ]
