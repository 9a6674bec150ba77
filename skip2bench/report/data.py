"""Everything that a report says, as data: tables, charts' numbers, verdicts. No words, no rounding.

`run` hands it to a template, or writes it as JSON.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from skip2bench.config.methods import find_method
from skip2bench.report.charts.drawing import MAX_SHOWN
from skip2bench.report.charts.runs import break_even_epoch, make_cost_lines
from skip2bench.report.claims import CLAIMS, check_claims
from skip2bench.report.diagnosis import (
    OVERFITTING_RATIO,
    SPEED_GAP_RATIO,
    WORSE_LOSS_RATIO,
    diagnose,
    has_overfitted,
)
from skip2bench.report.selection import Selection, list_shown
from skip2bench.report.setup import collect_environment, collect_setup, find_mismatches
from skip2bench.report.sweep import collect_sweep
from skip2bench.report.tables import bench_rows
from skip2bench.report.tables.cells import DISTURBED_SIGN
from skip2bench.report.tables.harness import list_harness
from skip2bench.report.tables.matching import EQUAL_IN, build_matching, list_given_samples
from skip2bench.report.tables.score_columns import sample_answers
from skip2bench.report.verdicts import (
    find_conclusion,
    find_lowest,
    is_measured,
    name_preset,
    pick_presets,
)
from skip2bench.results.comparison_records import ComparedConfiguration, ComparisonResults
from skip2bench.results.curves import LossCurve
from skip2bench.results.disturbance import (
    find_disturbed_timing,
    repeat_benchmark,
    repeat_comparison,
    repeat_training,
)
from skip2bench.results.plain import DamagedFileError
from skip2bench.results.reading import ACROSS_FILE, BenchRun
from skip2bench.results.registration import (
    find_deviations,
    find_first_start,
    read_ends,
    read_registration,
)
from skip2bench.results.run_folder import PHASES


@dataclass(frozen=True, kw_only=True)
class Missing:
    """Something that was not measured, and the command that measures it."""

    what: str
    command: str
    labels: tuple[str, ...] = ()


def build_report_data(selection: Selection) -> dict[str, Any]:
    """The data of a report on selected runs, by the names that the templates use."""
    bench = bench_rows.build_bench_rows(selection.bench) if selection.bench else []
    inference = _build_inference_rows(selection.bench) if selection.bench else []
    figures = selection.results
    entries = figures.configurations if figures else ()
    baseline = next((entry for entry in entries if entry.is_baseline), None)
    environment = collect_environment(selection)
    warnings = figures.warnings if figures else ()
    conclusion = find_conclusion(figures) if figures and baseline else None
    total = max(len(bench), len(entries))
    load, cores = environment["highest_load"], environment["cpu_count"]
    return {
        "selection": selection,
        "environment": environment,
        "figures": figures,
        "entries": entries,
        "baseline": baseline,
        "matched": figures.matched if figures else None,
        "equal": EQUAL_IN.get(str(figures.matched)) if figures else None,
        "matching": build_matching(figures) if figures else [],
        "given_samples": sorted(list_given_samples(entries)),
        "best_batch": figures.best_batch if figures else (),
        "conclusion": conclusion,
        "overfits": conclusion is not None and has_overfitted(conclusion),
        "lowest": find_lowest(figures) if figures else None,
        "setup": collect_setup(selection, entries),
        "bench": bench,
        "has_quartiles": _has_quartiles(bench),
        "bench_comparisons": bench_rows.count_comparisons(
            row["backward_reduction"] for row in bench
        ),
        "comparisons": bench_rows.count_comparisons(
            ratio for entry in entries for ratio in entry.against_baseline.values()
        ),
        "inference": inference,
        "charted": {"shown": MAX_SHOWN, "total": total} if total > MAX_SHOWN else None,
        "parameters": _build_parameters(entries, baseline, bench),
        "break_even": _find_break_even(entries),
        "picks": [
            {**vars(pick), "preset": name_preset(pick.entry), "is_tested": pick.is_tested}
            for pick in (pick_presets(figures) if figures else [])
        ],
        "claims": [
            {**asdict(claim), "is_undecided": claim.is_undecided, "words": CLAIMS[claim.name]}
            for claim in check_claims(figures, bench, inference)
        ],
        "findings": [
            asdict(finding) for finding in diagnose(bench, entries, load, cores[0] if cores else 1)
        ],
        "registration": collect_registration(selection),
        "disturbed": collect_disturbed(selection),
        "disturbed_fills": list_disturbed_fills(selection),
        "disturbed_sign": DISTURBED_SIGN,
        "busy_cells": [it for it in warnings if it.kind == "busy"],
        "resumed_runs": [it for it in warnings if it.kind == "resumed"],
        "beside_cells": [it for it in warnings if it.kind == "beside"],
        "unequal_controls": [it for it in warnings if it.kind == "aa"],
        "mismatches": find_mismatches(selection),
        "peers": [entry for entry in entries if entry.differences],
        "answers": sample_answers(selection),
        "cut_answers": count_cut_answers(selection, entries),
        "unfinished": [
            name
            for name, cell in (figures.cells.items() if figures else ())
            if cell.status in ("waiting", "interrupted")
        ],
        "failed": [
            (name, cell)
            for name, cell in (figures.cells.items() if figures else ())
            if cell.status != "ok"
        ],
        "limits": {
            "loss": round(100 * WORSE_LOSS_RATIO),
            "overfitting": round(100 * OVERFITTING_RATIO),
            "speed": round(100 * SPEED_GAP_RATIO),
        },
        "missing": find_missing(selection, bench, entries),
        "tune": collect_sweep(selection),
        "across": selection.across,
        "harness": list_harness(selection),
    }


def _has_quartiles(bench: Sequence[bench_rows.Row]) -> bool:
    return any(
        row[phase] is not None and row[phase].lower_quartile_seconds is not None
        for row in bench
        for phase in PHASES
        if phase in row
    )


def _build_inference_rows(bench: BenchRun) -> list[bench_rows.Row]:
    is_disturbed = "inference" in find_disturbed_timing(bench)
    return bench_rows.build_inference_rows(bench.summary, is_disturbed=is_disturbed)


def collect_disturbed(selection: Selection) -> list[dict[str, Any]]:
    """What was timed while something else used the processor: `runs`, and a `command` for them.

    Runs that only fill caches are in no figure, so not among them: `list_disturbed_fills`.
    """
    bench, comparison, results = selection.bench, selection.comparison, selection.results
    of_all = None
    if comparison:  # where it is one of several data sets, what they come to follows from all
        folder = comparison.folder
        is_part = (folder.parent / ACROSS_FILE).exists()
        of_all = repeat_comparison((folder.parent if is_part else folder).as_posix())
    found: dict[str, list[str]] = {}
    if bench and (parts := find_disturbed_timing(bench)):
        is_own = comparison is None or bench.folder.parent != comparison.folder
        command = repeat_benchmark(bench.environment.command) if is_own else str(of_all)
        found.setdefault(command, []).append(f"{bench.folder.name} ({', '.join(parts)})")
    fills = list_disturbed_fills(selection)
    for name in _list_disturbed(results):
        if name not in fills:
            runs = selection.shown.runs
            command = of_all or repeat_training(runs[name].folder.as_posix())
            found.setdefault(command, []).append(name)
    return [{"runs": names, "command": command} for command, names in found.items()]


def list_disturbed_fills(selection: Selection) -> list[str]:
    """Of the disturbed runs those that only fill caches, which others find kept."""
    results = selection.results
    return [
        name
        for name in _list_disturbed(results)
        if results and name in results.cells and results.cells[name].role == "cache"
    ]


def _list_disturbed(results: ComparisonResults | None) -> list[str]:
    warnings = results.warnings if results else ()
    return [name for it in warnings if it.kind == "disturbed" for name in it.cells]


def count_cut_answers(
    selection: Selection, entries: Sequence[ComparedConfiguration]
) -> list[dict[str, Any]]:
    """Of each configuration, how many answers were cut at the limit: `label`, `cut` and `all`."""
    found = []
    for entry in entries:
        results, runs = selection.results, selection.shown.runs
        names = list_shown(results, entry) if results else ()
        scored = [runs[name].summary for name in names if name in runs]
        counts = [it.score_cut_answers for it in scored if it.score_cut_answers is not None]
        if counts and entry.score is not None:
            found.append(
                {
                    "label": entry.label,
                    "cut": sum(counts),
                    "all": entry.score.questions * len(counts),
                }
            )
    return found


def collect_registration(selection: Selection) -> dict[str, Any] | None:
    """Whether the comparison follows the plan that was registered for it; None where none was.

    Returns:
        `registered_at`, `sha256`, `started_at` (of the first run, or None), `is_open` (which runs
        there are follows from others), and `deviations`: in what it does not follow, with names;
        or `error`, why the file cannot be read.
    """
    comparison, results = selection.comparison, selection.results
    if comparison is None or results is None:
        return None
    try:
        registration = read_registration(comparison.folder)
    except DamagedFileError as error:
        return {"error": str(error)}
    if registration is None:
        return None
    ends = read_ends(comparison.folder)
    return {
        "error": None,
        "registered_at": registration.registered_at,
        "sha256": registration.sha256,
        "started_at": find_first_start(ends),
        "is_open": registration.plan.cells_follow,
        "deviations": [asdict(it) for it in find_deviations(registration, results, ends)],
    }


def collect_curves(selection: Selection) -> dict[str, list[LossCurve]]:
    """Evaluation points of each configuration's runs at its best learning rate, by its name."""
    results, shown = selection.results, selection.shown.curves
    found = {
        entry.name: [shown[name] for name in list_shown(results, entry) if name in shown]
        for entry in (results.configurations if results else ())
        if results
    }
    return {name: curves for name, curves in found.items() if curves}


def _build_parameters(
    entries: Sequence[ComparedConfiguration],
    baseline: ComparedConfiguration | None,
    bench: Sequence[bench_rows.Row],
) -> list[dict[str, Any]]:
    """Parameter efficiency: of the runs where there are any, else of the benchmark."""
    if not entries:
        names = ("label", "trainable_parameters", "trainable_ratio", "trainable_reduction", "rank")
        return [
            {
                **{name: row[name] for name in names},
                "blocks": row["blocks"] or None,
                "extra_parameters": None,
            }
            for row in bench
        ]
    rows = []
    for entry in entries:
        own, total = entry.trainable_parameters, entry.figures.get("total_parameters")
        base = baseline.trainable_parameters if baseline and entry is not baseline else None
        rows.append(
            {
                "label": entry.label,
                "blocks": entry.blocks or None,
                "trainable_parameters": own,
                "trainable_ratio": own / total.mean if total and total.mean and own else None,
                "trainable_reduction": 1 - own / base if base and own else None,
                "extra_parameters": own - base if base and own else None,
                "rank": entry.rank,
            }
        )
    return rows


def _find_break_even(entries: Sequence[ComparedConfiguration]) -> list[dict[str, Any]]:
    measured = [entry for entry in entries if is_measured(entry, "train_seconds")]
    lines = make_cost_lines(measured)
    if not measured or not measured[0].is_baseline or len(lines) < 2:
        return []
    return [
        {"label": line.label, "epoch": break_even_epoch(line, lines[0])}
        for line in lines[1:]
        if line.start_seconds > 0
    ]


def find_missing(
    selection: Selection, bench: Sequence[bench_rows.Row], entries: Sequence[ComparedConfiguration]
) -> list[Missing]:
    """What a full report would need beyond the runs there are, in the order of the report."""
    commands = {
        "bench": "skip2bench bench",
        "bench_baseline": "skip2bench bench --methods lora,skip2",
        "bench_skip": "skip2bench bench --methods lora,skip2",
        "train": "skip2bench train --method lora && skip2bench train --blocks 0,1,2,3",
        "train_baseline": "skip2bench train --method lora",
        "train_skip": "skip2bench train --blocks 0,1,2,3",
    }
    missing = [
        Missing(what=what, command=commands[what])
        for kind, methods in (
            ("bench", [row["method"] for row in bench]),
            ("train", [entry.method for entry in entries]),
        )
        for what in _missing_methods(kind, methods)
    ]
    has_no: dict[str, Callable[[Mapping[str, Any]], bool]] = {
        "times": lambda row: row["step_seconds"] is None,
        "flops": lambda row: not row["has_flops"],
        "memory": lambda row: row["memory"]["saved_bytes"] is None,
    }
    for what, lacks in has_no.items():
        # what does not fit was measured: the answer is that it does not
        labels = tuple(row["label"] for row in bench if lacks(row) and not row["is_oom"])
        if labels:
            missing.append(Missing(what=what, command=commands["bench"], labels=labels))
    labels = tuple(entry.label for entry in entries if not entry.figures)
    if labels:
        missing.append(Missing(what="train_figures", command="skip2bench train", labels=labels))
    return missing


def _missing_methods(kind: str, methods: Sequence[str | None]) -> list[str]:
    if not methods:
        return [kind]
    gaps = []
    found = [find_method(method) for method in methods]
    if not any(method.is_traditional for method in found):
        gaps.append(f"{kind}_baseline")
    if not any(method.is_skip for method in found):
        gaps.append(f"{kind}_skip")
    return gaps
