"""Single train runs brought to the form of a comparison, so that the report has one form for both.

Runs of one configuration that differ in seed alone are repetitions of it; runs at several learning
rates are its grid.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, Protocol

from skip2bench.config.methods import METHODS, find_method
from skip2bench.results.answers import AnswerRecord, ScoredRun
from skip2bench.results.comparison_records import (
    ComparedCell,
    ComparedConfiguration,
    ComparisonResults,
    Described,
)
from skip2bench.results.conditions import OFF, read_options, read_switches, read_variant
from skip2bench.results.curves import LossCurve
from skip2bench.results.disturbance import list_disturbed_figures
from skip2bench.results.figures import (
    CellResult,
    correct_for_rows,
    find_targets,
    find_warnings,
    read_figures,
    summarise_configuration,
)
from skip2bench.results.reading import TrainRun
from skip2bench.results.run_records import SCHEMA_VERSION

_NEEDED = ("initial_val_loss", "final_val_loss", "train_seconds", "steps")

_METHOD_ORDER = tuple(METHODS)


class Ordered(Protocol):
    """A train summary or a bench configuration."""

    @property
    def method(self) -> str | None: ...  # noqa: D102
    @property
    def blocks(self) -> tuple[int, ...] | None: ...  # noqa: D102
    @property
    def target(self) -> str | None: ...  # noqa: D102


def order_key(summary: Ordered) -> tuple[int, int, tuple[int, ...], str]:
    """Sort key: by method, then by blocks."""
    method, blocks = str(summary.method), summary.blocks or ()
    place = _METHOD_ORDER.index(method) if method in _METHOD_ORDER else len(_METHOD_ORDER)
    return place, len(blocks), blocks, str(summary.target)


def identify(run: TrainRun) -> tuple[Any, ...]:
    """What makes two comparable runs the same configuration; sorts as `order_key` does."""
    details = read_options(run, "adapter", "variant") | {"micro_batch_size": None}
    own = (str(run.summary.peer), _micro_batch(run))
    return (*order_key(run.summary), *map(str, details.values()), *own)


def _micro_batch(run: TrainRun) -> int:
    """Samples in a forward pass; 0 where steps come from Skip-Cache, which knows none."""
    return 0 if find_method(run.summary.method).serves_rows else run.summary.micro_batch_size or 0


def name_runs(runs: Sequence[TrainRun]) -> dict[str, TrainRun]:
    """The runs by the names of their folders, made unlike where two are alike."""
    named: dict[str, TrainRun] = {}
    for run in runs:
        name = run.folder.name
        numbers = count(2)
        while name in named:
            name = f"{run.folder.name} ({next(numbers)})"
        named[name] = run
    return named


def combine_runs(
    runs: Mapping[str, TrainRun],
    curves: Mapping[str, LossCurve],
    answers: Mapping[str, Sequence[AnswerRecord]] | None = None,
) -> ComparisonResults:
    """Comparable train runs in the form of `comparison_results.json`.

    Args:
        runs: Finished runs that agree in all but configuration, seed and learning rate, by name.
        curves: Their loss curves, by the same names, of those that have one.
        answers: Their answers, by the same names, of those that were asked.
    """
    groups: dict[tuple[Any, ...], dict[str, TrainRun]] = {}
    for name, run in sorted(runs.items(), key=lambda item: identify(item[1])):
        groups.setdefault(identify(run), {})[name] = run
    firsts = [next(iter(group.values())) for group in groups.values()]
    labels = Counter(run.summary.label for run in firsts)
    sizes = Counter(label for label, _ in {(r.summary.label, _micro_batch(r)) for r in firsts})
    cells: dict[str, list[CellResult]] = {}
    described: list[Described] = []
    for number, (first, group) in enumerate(zip(firsts, groups.values(), strict=True)):
        name = str(number)
        own = list(group.values())
        cells[name] = [
            replace(
                _make_cell(name, it, run, own, curves.get(it)),
                scored=ScoredRun.of(run.summary, (answers or {}).get(it, ())),
            )
            for it, run in group.items()
        ]
        label = first.summary.label
        size = _micro_batch(first) if sizes[label] > 1 else None
        described.append(_describe(name, first, size, is_shared=labels[label] > 1))
    baseline = next((e for e in described if find_method(e.method).is_traditional), None)
    base_cells = cells[baseline.name] if baseline else []
    single = [
        ComparedConfiguration.of(
            entry,
            summarise_configuration(cells[entry.name], base_cells, None),
            is_baseline=entry is baseline,
            extra_parameters=_less(entry, baseline),
            differences=first.summary.differences or (),
        )
        for entry, first in zip(described, firsts, strict=True)
    ]
    entries = correct_for_rows(single)
    targets = find_targets(base_cells, None)
    results = [cell for group_cells in cells.values() for cell in group_cells]
    return ComparisonResults(
        schema_version=SCHEMA_VERSION,
        config={"seeds": None, "match_params": False, "target_loss": None},
        learning_rates="grid" if any(len(entry.grid) > 1 for entry in entries) else "fixed",
        warnings=find_warnings(entries, results, n_cores=1),
        configurations=entries,
        cells={
            cell.name: ComparedCell(
                configuration=cell.configuration,
                role=cell.role,
                learning_rate=cell.learning_rate,
                seed=cell.seed,
                status=cell.status,
                error=None,
                figures=read_figures(cell, targets.get(cell.seed)) if cell.status == "ok" else {},
            )
            for cell in results
        },
    )


def _make_cell(
    configuration: str,
    name: str,
    run: TrainRun,
    group: Sequence[TrainRun],
    curve: LossCurve | None,
) -> CellResult:
    summary = run.summary
    return CellResult(
        name=name,
        configuration=configuration,
        role="reused" if _is_reused(run, group) else "run",
        learning_rate=float(summary.learning_rate or 0.0),
        seed=summary.seed or 0,
        status="ok" if all(getattr(summary, key) is not None for key in _NEEDED) else "incomplete",
        wall_seconds=summary.wall_seconds,
        summary=summary,
        curve=curve.points() if curve else (),
        disturbed=list_disturbed_figures(run),
    )


def _is_reused(run: TrainRun, group: Sequence[TrainRun]) -> bool:
    """True for a run that found its cache kept, where the same run has also built it."""
    own = read_options(run, "repetition", "tuned")
    return bool(run.summary.cache_kept) and any(
        not other.summary.cache_kept and read_options(other, "repetition", "tuned") == own
        for other in group
    )


def _describe(
    name: str, run: TrainRun, micro_batch_size: int | None, *, is_shared: bool
) -> Described:
    summary = run.summary
    label = summary.label or run.folder.name
    return Described(
        name=name,
        label=_label_with_details(run, micro_batch_size) if is_shared else label,
        method=summary.method,
        blocks=summary.blocks,
        rank=summary.rank,
        target=summary.target,
        peer=summary.peer,
        is_aa=False,
        trainable_parameters=summary.trainable_parameters,
    )


def _label_with_details(run: TrainRun, micro_batch_size: int | None) -> str:
    """The label of a run with its adapter's settings, and its micro-batch where that tells."""
    summary, config = run.summary, run.config
    details = {
        "blocks": ",".join(map(str, summary.blocks or ())),
        "target": summary.target,
        "features": summary.features,
        "r": summary.rank,
        "alpha": config.get("lora_alpha"),
        "dropout": config.get("lora_dropout"),
        "projection": config.get("cache_projection") if config.get("cache_project") else None,
        "micro-batch": micro_batch_size,
        **{name: value for name, value in read_switches(run).items() if value != OFF},
        **read_variant(run),
    }
    text = "; ".join(f"{key} {value}" for key, value in details.items() if value not in (None, ""))
    return f"{summary.label} [{text}]"


def _less(entry: Described, baseline: Described | None) -> int | None:
    own, base = entry.trainable_parameters, baseline.trainable_parameters if baseline else None
    return None if own is None or base is None else own - base
