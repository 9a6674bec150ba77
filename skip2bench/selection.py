"""Which runs a report compares, and why it leaves the others out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from skip2bench.config import LORA_TARGETS
from skip2bench.results import Run
from skip2bench.tables import order_key

_ADAPTER_KEYS = ("lora_alpha", "lora_dropout", *LORA_TARGETS)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A run that the report does not compare, and why."""

    folder: str
    label: str
    reason: Literal["status", "superseded", "differs"]
    status: str
    error: str | None = None
    differences: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """By condition: this run's value, and the value of the runs that are compared."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The newest finished bench run and comparison, and the train runs compared, in order."""

    bench: Run | None
    train: list[Run]
    left_out: list[LeftOut]
    comparison: Run | None = None
    """The newest comparison; its cells are not among `train`."""

    @property
    def runs(self) -> list[Run]:
        """Every run that is compared."""
        others = [run for run in (self.bench, self.comparison) if run]
        return [*others, *self.train]


def select_runs(runs: Sequence[Run], root: Path) -> Selection:
    """Choose what a report compares: the newest finished bench run, and comparable train runs.

    Of these, the newest of each method, blocks and target. Comparable is what agrees with the
    newest finished train run in all of `read_conditions`.

    Args:
        runs: Runs, oldest first.
        root: Folder of the results; runs that are left out are named relative to it.
    """
    comparison = next((run for run in reversed(runs) if run.kind == "compare"), None)
    runs = [run for run in runs if run.kind in ("bench", "train") and not _is_cell(run)]
    left_out = [_leave_out(run, root, "status") for run in runs if not _is_finished(run)]
    bench: Run | None = None
    train: dict[tuple[Any, ...], Run] = {}
    conditions: dict[str, Any] = {}
    for run in reversed([run for run in runs if _is_finished(run)]):
        if run.kind == "bench":
            if bench is not None:
                left_out.append(_leave_out(run, root, "superseded"))
            bench = bench or run
            continue
        conditions = conditions or read_conditions(run)
        differences = _find_differences(read_conditions(run), conditions)
        key = _identity(run)
        if differences:
            left_out.append(_leave_out(run, root, "differs", differences))
        elif key in train:
            left_out.append(_leave_out(run, root, "superseded"))
        else:
            train[key] = run
    ordered = [train[key] for key in sorted(train)]
    left_out.sort(key=lambda item: item.folder)
    return Selection(
        bench=bench, train=_tell_apart(ordered), left_out=left_out, comparison=comparison
    )


def read_conditions(run: Run) -> dict[str, Any]:
    """What must agree before two train runs are compared; None where it was not recorded."""
    summary, environment = run.summary, run.environment
    names = ("model", "seed", "global_batch_size", "precision", "device", "steps", "learning_rate")
    schedule = ("lr_warmup_steps", "weight_decay", "adam_beta1", "adam_beta2")
    gpu = _mapping(environment.get("gpu"))
    return {
        **{name: summary.get(name) for name in names},
        **{name: run.config.get(name) for name in schedule},
        "data": _mapping(environment.get("data")).get("sha256"),
        "checkpoint": _mapping(environment.get("checkpoint")).get("sha256"),
        "hardware": gpu.get("name") or environment.get("processor"),
        "threads": environment.get("threads"),
    }


def _identity(run: Run) -> tuple[Any, ...]:
    """What makes two comparable runs the same configuration; sorts as `order_key` does."""
    details = (run.summary.get("rank"), *(run.config.get(name) for name in _ADAPTER_KEYS))
    return (*order_key(run.summary), *map(str, details))


def _is_cell(run: Run) -> bool:
    return run.folder.parent.name == "cells"


def _is_finished(run: Run) -> bool:
    return run.summary.get("status") == "ok"


def _find_differences(
    own: Mapping[str, Any], others: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    return {name: (own[name], others[name]) for name in own if own[name] != others[name]}


def _leave_out(
    run: Run,
    root: Path,
    reason: Literal["status", "superseded", "differs"],
    differences: dict[str, tuple[Any, Any]] | None = None,
) -> LeftOut:
    return LeftOut(
        folder=run.folder.relative_to(root).as_posix(),
        label=str(run.summary.get("label") or run.kind),
        reason=reason,
        status=str(run.summary.get("status")),
        error=run.summary.get("error"),
        differences=differences or {},
    )


def _tell_apart(runs: list[Run]) -> list[Run]:
    """Add the adapter's settings to a label that several runs share."""
    counts = Counter(run.summary.get("label") for run in runs)
    return [
        run if counts[run.summary.get("label")] == 1 else replace(run, summary=_with_detail(run))
        for run in runs
    ]


def _with_detail(run: Run) -> dict[str, Any]:
    summary, config = run.summary, run.config
    details = {
        "blocks": ",".join(map(str, summary.get("blocks") or ())),
        "target": summary.get("target"),
        "r": summary.get("rank"),
        "alpha": config.get("lora_alpha"),
        "dropout": config.get("lora_dropout"),
    }
    text = "; ".join(
        f"{name} {value}" for name, value in details.items() if value not in (None, "")
    )
    return summary | {"label": f"{summary.get('label')} [{text}]"}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
