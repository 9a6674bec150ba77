"""The switches of training runs as the report reads them back: which were on, and for whom.

Runs from before there was a switch had it off.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from skip2bench.results.reading import Run


def read_conditions(run: Run) -> dict[str, Any]:
    """What must agree before two train runs are compared; None where it was not recorded."""
    summary, environment = run.summary, run.environment
    names = ("model", "global_batch_size", "precision", "device", "steps")
    schedule = ("lr_warmup_steps", "weight_decay", "adam_beta1", "adam_beta2")
    gpu = _mapping(environment.get("gpu"))
    versions = [environment.get(name) for name in ("torch", "litgpt", "skip2bench")]
    return {
        **{name: summary.get(name) for name in names},
        **{name: run.config.get(name) for name in schedule},
        **read_switches(run, CONDITIONS),
        "data": _mapping(environment.get("data")).get("sha256"),
        "checkpoint": _mapping(environment.get("checkpoint")).get("sha256"),
        "hardware": gpu.get("name") or environment.get("processor"),
        "threads": environment.get("threads"),
        "versions": ", ".join(map(str, versions)) if any(versions) else None,
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


OFF = "off"
CONDITIONS = ("gradient_checkpointing", "quantize", "compile")
"""Switches in which runs must agree to be compared."""
SWITCHES = (*CONDITIONS, "stream_blocks")
"""All of them. Streaming is skip2's alone: as a condition it would leave nothing to compare with,
so it makes a configuration of its own."""


def read_switches(run: Run, names: Iterable[str] = SWITCHES) -> dict[str, str]:
    """By name, 'off', 'on', or what the switch was set to."""
    return {name: _text(run.config.get(name)) for name in names}


def _text(value: Any) -> str:
    return "on" if value is True else str(value) if value else OFF


def group_switches(runs: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
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
