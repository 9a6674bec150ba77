"""Which runs a report compares, and why it leaves the others out.

Runs compare that agree in everything but configuration, seed and learning rate. A comparison's
folder is such a set by itself; single train runs form one together. The newest set is reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from skip2bench.comparison_report import RESULTS_FILE
from skip2bench.errors import Skip2BenchError
from skip2bench.results import Run
from skip2bench.run_groups import identify

Reason = Literal["status", "superseded", "differs", "another", "unreadable"]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A run that the report does not compare, and why."""

    folder: str
    label: str
    reason: Reason
    status: str
    error: str | None = None
    differences: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """By condition: this run's value, and the value of the runs that are compared."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is compared: a comparison or train runs, and the benchmark that belongs to them."""

    bench: Run | None
    train: list[Run]
    comparison: Run | None
    left_out: list[LeftOut]

    @property
    def runs(self) -> list[Run]:
        """Every run that is compared; of a comparison, its folder."""
        others = [run for run in (self.bench, self.comparison) if run]
        return [*others, *self.train]


def choose_runs(runs: Sequence[Run], root: Path, chosen: Sequence[Path]) -> list[Run]:
    """Only the runs that were asked for; all of them where none was.

    Args:
        runs: Every run.
        root: Folder of the results, which `chosen` may be relative to.
        chosen: Run folders, or folders above them.

    Raises:
        Skip2BenchError: a chosen folder holds no run.
    """
    if not chosen:
        return list(runs)
    kept: dict[Path, Run] = {}
    for path in chosen:
        wanted = {path.resolve(), (root / path).resolve()}
        found = [
            run for run in runs if wanted & {run.folder.resolve(), *run.folder.resolve().parents}
        ]
        if not found:
            raise Skip2BenchError(
                f"{str(path)!r} holds no run below {str(root)!r}; give the folder of a run"
            )
        kept |= {run.folder: run for run in found}
    return [run for run in runs if run.folder in kept]


def _place(run: Run) -> set[Path]:
    """The folder of a run and all above it."""
    folder = run.folder.resolve()
    return {folder, *folder.parents}


def select_runs(
    runs: Sequence[Run], root: Path, unreadable: Mapping[Path, str] | None = None
) -> Selection:
    """Choose what a report compares: the newest set of runs, and the newest benchmark with it.

    Args:
        runs: Runs, oldest first.
        root: Folder of the results; runs that are left out are named relative to it.
        unreadable: By folder, why runs could not be read.
    """
    cells = {run.folder for run in runs if run.folder.parent.name == "cells"}
    single = [run for run in runs if run.folder not in cells]
    comparisons = [run for run in single if run.kind == "compare"]
    begun = [run for run in comparisons if (run.folder / RESULTS_FILE).is_file()]
    comparison = begun[-1] if begun else None
    train, left_out = _select_train([run for run in single if run.kind == "train"], root)
    left_out += [_leave_out(run, root, "status") for run in comparisons if run not in begun]
    if comparison and train and _started(comparison) >= _started(train[-1]):
        left_out += [_leave_out(run, root, "another") for run in train]
        train = []
    elif train:
        comparison = None
    left_out += [_leave_out(run, root, "another") for run in begun if run is not comparison]
    benches = [run for run in single if run.kind == "bench"]
    bench = _select_bench(benches, comparison)
    left_out += [
        _leave_out(run, root, "superseded" if run.summary.get("status") == "ok" else "status")
        for run in benches
        if run is not bench
    ]
    left_out += [
        LeftOut(
            folder=folder.relative_to(root).as_posix(),
            label="-",
            reason="unreadable",
            status="-",
            error=error,
        )
        for folder, error in (unreadable or {}).items()
    ]
    left_out.sort(key=lambda item: item.folder)
    return Selection(bench=bench, train=train, comparison=comparison, left_out=left_out)


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
        "data": _mapping(environment.get("data")).get("sha256"),
        "checkpoint": _mapping(environment.get("checkpoint")).get("sha256"),
        "hardware": gpu.get("name") or environment.get("processor"),
        "threads": environment.get("threads"),
        "versions": ", ".join(map(str, versions)) if any(versions) else None,
    }


def _select_train(runs: Sequence[Run], root: Path) -> tuple[list[Run], list[LeftOut]]:
    """Finished runs that agree with the newest one, oldest first; of repetitions the newest."""
    left_out = [_leave_out(run, root, "status") for run in runs if not _is_finished(run)]
    kept: dict[tuple[Any, ...], Run] = {}
    conditions: dict[str, Any] = {}
    for run in reversed([run for run in runs if _is_finished(run)]):
        conditions = conditions or read_conditions(run)
        differences = _find_differences(read_conditions(run), conditions)
        details = ("seed", "learning_rate", "cache_kept")
        key = (*identify(run), *(str(run.summary.get(name)) for name in details))
        if differences:
            left_out.append(_leave_out(run, root, "differs", differences))
        elif key in kept:
            left_out.append(_leave_out(run, root, "superseded"))
        else:
            kept[key] = run
    return list(reversed(kept.values())), left_out


def _select_bench(benches: Sequence[Run], comparison: Run | None) -> Run | None:
    """A comparison's own benchmark, else the newest that has finished."""
    finished = [run for run in benches if _is_finished(run)]
    own = [run for run in finished if comparison and run.folder.parent == comparison.folder]
    return next(reversed(own or finished), None)


def _started(run: Run) -> str:
    return str(run.summary.get("started_at", ""))


def _is_finished(run: Run) -> bool:
    return run.summary.get("status") == "ok"


def _find_differences(
    own: Mapping[str, Any], others: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    return {name: (own[name], others[name]) for name in own if own[name] != others[name]}


def _leave_out(
    run: Run,
    root: Path,
    reason: Reason,
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


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
