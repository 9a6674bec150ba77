"""What the commands print at the end: tables in the order of the guide's section 1.

The tables of `compare` are in `compare_screen`.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from math import log2
from typing import TYPE_CHECKING, Any, TypeVar

from rich.table import Table
from rich.text import Text

from skip2bench.io.console import stdout
from skip2bench.io.units import (
    format_amount,
    format_bytes,
    format_percent,
    format_seconds,
    format_significant,
)
from skip2bench.machine.hardware import count_cores
from skip2bench.report.tables.bench_rows import build_inference_rows, compare_configurations
from skip2bench.report.tables.cells import DISTURBED_SIGN, LABEL, Column, Row, render_cells
from skip2bench.report.tables.columns import ANSWER_SCREENS, BENCH_SCREENS
from skip2bench.results.bench_records import BenchConfiguration, BenchResult
from skip2bench.results.disturbance import find_disturbed
from skip2bench.results.run_records import TrainResult

if TYPE_CHECKING:
    from skip2bench.cache.arrays import Layout
    from skip2bench.cache.kept import Entry
    from skip2bench.export.record import ExportResult


_RULE = "=" * 78
_DISTURBED = f"{DISTURBED_SIGN} something else used the processor meanwhile: repeat it"
Value = TypeVar("Value")
_STYLES = {"ok": "green", "below the guide": "yellow", "unknown": "dim"}


def print_bench(summary: BenchResult) -> None:
    """Print the result of `bench`: each configuration, then the comparison."""
    entries = summary.configurations
    stdout.print(_RULE, "Skip2-LoRA Performance Evaluation", _RULE, sep="\n", style="bold")
    stdout.print(
        f"model {summary.model}, {summary.device}, {summary.precision}, "
        f"batch {summary.batch_size} × {summary.seq_length} tokens, "
        f"{summary.rounds} rounds of {summary.iterations} iterations\n",
        markup=False,
    )
    for entry in entries:
        _print_configuration(entry)
    stdout.print("COMPARISON SUMMARY", _RULE, sep="\n", style="bold")
    rows = compare_configurations(entries, entries[0])
    disturbed = find_disturbed(summary.processor, count_cores())
    rows = [row | {"is_disturbed": any(it != "inference" for it in disturbed)} for row in rows]
    for title, it in BENCH_SCREENS.items():
        table = build_table(title, it.columns, it.rows(rows), has_whole_labels=True)
        stdout.print(table, "", sep="\n")
    if summary.inference:
        answers = build_inference_rows(summary, is_disturbed="inference" in disturbed)
        for title, columns in ANSWER_SCREENS.items():
            table = build_table(title, columns, answers, has_whole_labels=True)
            stdout.print(table, "", sep="\n")
    stdout.print(
        "Times are medians. A ratio is the baseline's time over the configuration's, paired by "
        "round, with its 95 % interval; '≈' marks one that includes 1: no difference beyond the "
        "noise.",
        *([_DISTURBED] if disturbed else []),
        *_explain_oom(entries),
        f"Clock: {summary.clock}",
        f"Raw measurements: {summary.folder}",
        sep="\n",
        markup=False,
        soft_wrap=True,
    )


def print_train(summary: TrainResult) -> None:
    """Print the headline figures of `train`."""
    table = Table(title=summary.label, show_header=False, title_style="bold")
    table.add_column()
    table.add_column(justify="right")
    rows = {
        "trainable parameters": (
            f"{summary.trainable_parameters:,} of {summary.total_parameters:,}"
        ),
        "steps": f"{summary.steps:,} ({summary.epochs:.2f} epochs"
        + (", stopped early)" if summary.stopped_early else ")"),
        "learning rate": _describe_rate(summary),
        "validation loss": f"{summary.initial_val_loss:.4f} → {summary.final_val_loss:.4f}",
        "best validation loss": f"{summary.best_val_loss:.4f} (step {summary.best_step:,})",
        "training clock": _or_dash(summary.train_seconds, format_seconds),
        "  of it building Skip-Cache": _or_dash(summary.cache_build_seconds, format_seconds),
        "validation": _or_dash(summary.validation_seconds, format_seconds),
        "loading and tokenizing": _or_dash(summary.preparation_seconds, format_seconds),
        "wall clock": _or_dash(summary.wall_seconds, format_seconds),
        "speed": _speed(summary),
        "peak memory": _or_dash(summary.peak_memory_bytes, format_bytes),
        "saved for backward": _or_dash(summary.saved_for_backward_bytes, format_bytes),
    }
    if summary.kept_step is not None:
        rows["saved adapter"] = (
            f"step {summary.kept_step:,}, validation loss {summary.kept_val_loss:.4f}"
        )
    accuracies = (summary.initial_next_token_accuracy, summary.final_next_token_accuracy)
    if None not in accuracies:
        rows["next token"] = " → ".join(format_percent(it) for it in accuracies if it is not None)
    if summary.score is not None:
        rows["score"] = _describe_score(summary)
    if summary.cache_bytes:
        rows["Skip-Cache"] = (
            f"{format_bytes(summary.cache_bytes)} ({summary.cache_dtype}, "
            f"{summary.cache_tier}, {'kept' if summary.cache_kept else 'built'}"
            + (f", algebra {summary.algebra})" if summary.algebra else ")")
        )
    if summary.peak_anonymous_memory_bytes:
        rows["peak memory without mapped files"] = format_bytes(summary.peak_anonymous_memory_bytes)
    if summary.recomputed_samples:
        rows["recomputed every epoch"] = format_amount(summary.recomputed_samples, "sample")
    disturbed = find_disturbed(summary.processor, count_cores())
    marked = {"training": ("training clock", "speed"), "validation": ("validation",)}
    marked["cache_build"] = ("  of it building Skip-Cache",)
    for name in (row for part in disturbed for row in marked.get(part, ())):
        rows[name] += f" {DISTURBED_SIGN}"
    for name, value in rows.items():
        table.add_row(name, value)
    stdout.print(table)
    if disturbed:
        stdout.print(_DISTURBED)
    stdout.print(f"Run folder: {summary.folder}", markup=False, soft_wrap=True)


def _describe_score(summary: TrainResult) -> str:
    error = summary.score_standard_error
    spread = "" if error is None else f" ± {error:.3f}"
    asked = format_amount(summary.score_questions or 0, "question")
    seconds = _or_dash(summary.score_seconds, format_seconds)
    return f"{summary.score_metric} {summary.score:.3f}{spread}, {asked} in {seconds}"


def print_export(result: "ExportResult") -> None:
    """Print what was exported, and how near it comes to what was trained."""
    table = Table(title=f"{result.label} as {result.to}", show_header=False, title_style="bold")
    table.add_column()
    table.add_column(justify="right")
    rows = {
        "base model": f"{result.model}, {result.base_parameters:,} parameters",
        "exported model": f"{result.parameters:,} parameters, {result.dtype}",
        "width": f"{result.base_width:,} → {result.width:,} channels",
    }
    if result.epsilon:
        rows["adapters' channels"] = f"{result.added_channels:,}, ε = 2^{log2(result.epsilon):.0f}"
    if result.rank:
        rows["rank of the adapter"] = f"{result.rank:,}"
    rows |= {
        "files": format_bytes(result.size_bytes),
        "compared on": f"{format_amount(result.positions, 'token')} of {result.data}",
        "loaded again with": result.checked_with,
        "largest logit difference": f"{format_significant(result.max_logit_difference)} "
        f"of {format_significant(result.logit_scale)}",
        "same most likely token": f"{result.same_token_ratio:.2%}",
        "validation loss": f"{result.original_val_loss:.4f} → {result.exported_val_loss:.4f}",
        "time": f"{format_seconds(result.export_seconds)}, "
        f"comparing {format_seconds(result.check_seconds)}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    stdout.print(table)
    stdout.print(f"Exported to: {result.folder}", markup=False, soft_wrap=True)


def print_caches(entries: Sequence["Entry"]) -> None:
    """Print the caches of a folder."""
    table = Table(title="Skip-Caches", title_justify="left", title_style="bold")
    table.add_column("Name", no_wrap=True)
    for title in ("Model", "Data", "Blocks", "Precision", "Samples", "Positions", "Size", "Made"):
        table.add_column(title)
    for entry in entries:
        about, layout, key = entry.manifest["about"], entry.layout, entry.manifest["key"]
        stored = "" if layout.dtype == layout.compute_dtype else f", {key['dtype']}"
        table.add_row(
            entry.name,
            about["model"],
            f"{about['data']}, {about['side']}",
            _describe_blocks(layout),
            f"{key['precision']}{stored}",
            f"{about['samples']:,}",
            f"{entry.rows:,}",
            format_bytes(entry.nbytes),
            entry.manifest["created_at"],
        )
    stdout.print(table)
    stdout.print(f"{len(entries)} caches, {format_bytes(sum(e.nbytes for e in entries))}")


def _describe_blocks(layout: "Layout") -> str:
    whole = " ".join(map(str, layout.blocks))
    if not layout.projected:
        return whole
    projected = " ".join(map(str, layout.projected_blocks))
    return f"{projected} projected to {layout.projected}; {whole} whole"


def _print_configuration(entry: BenchConfiguration) -> None:
    lines = [
        f"Evaluating: {entry.label} (rank {entry.rank})",
        f"  Total parameters:     {entry.total_parameters:>15,}",
        f"  Trainable parameters: {entry.trainable_parameters:>15,}",
        f"  Adapter parameters:   {entry.adapter_parameters:>15,}",
        f"  Trainable ratio:      {_or_dash(entry.trainable_ratio, format_percent):>15}",
    ]
    for phase, figures in (entry.phases or {}).items():
        if figures is None:
            continue
        times = {
            key: format_seconds(getattr(figures, f"{key}_seconds"))
            for key in ("median", "mean", "min", "max", "std")
        }
        parts = ", ".join(f"{key} {value}" for key, value in times.items())
        lines.append(f"  {phase.replace('_', ' '):<16} {parts} (n={figures.n})")
    if entry.status == "oom":
        lines.append(f"  {_describe_oom(entry)}")
    stdout.print("\n".join([*lines, ""]), markup=False, soft_wrap=True)


def _or_dash(value: Value | None, render: Callable[[Value], str]) -> str:
    return "-" if value is None else render(value)


def _describe_rate(summary: TrainResult) -> str:
    if summary.learning_rate is None:
        return "-"
    source = summary.learning_rate_source or "given"
    if source == "search":
        n, seconds = len(summary.learning_rates_tried or {}), summary.rate_search_seconds
        source = f"best of {n} in {_or_dash(seconds, format_seconds)}, in no other clock"
    return f"{summary.learning_rate:g} ({source})"


def _speed(summary: TrainResult) -> str:
    if not summary.train_seconds or summary.tokens is None:
        return "-"
    return f"{summary.tokens / summary.train_seconds:,.0f} tokens/s"


def _explain_oom(entries: Sequence[BenchConfiguration]) -> list[str]:
    """Why figures are missing, if memory ran out."""
    if all(entry.status != "oom" for entry in entries):
        return []
    lines = ["'oom': the configuration does not fit into memory; the others were measured."]
    if entries[0].status == "oom":
        lines.append(f"No ratios: the baseline, {entries[0].label}, does not fit.")
    return lines


def _describe_oom(entry: BenchConfiguration) -> str:
    size, phase = entry.requested_bytes, entry.oom_phase
    asked = f": {format_bytes(size)} asked for in vain" if size is not None else ""
    return f"oom: out of memory{f' in {phase}'.replace('_', ' ') if phase else ''}{asked}"


_LABEL_WIDTH = 12
"""Of the labels in a table that is too wide, at the least."""


def build_table(
    title: str, columns: Sequence[Column], rows: Sequence[Row], *, has_whole_labels: bool = False
) -> Table:
    """A table for the terminal; it begins with the configurations' labels.

    Where it is too narrow, either the labels are whole and figures wrap, or the reverse.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(
        LABEL.title("screen"), overflow="fold", no_wrap=has_whole_labels, min_width=_LABEL_WIDTH
    )
    for column in columns:
        no_wrap = not (has_whole_labels or column.is_text)
        table.add_column(column.title("screen"), justify="right", no_wrap=no_wrap)
    cells = [render_cells(column, rows, "screen") for column in (LABEL, *columns)]
    for row in zip(*cells, strict=True):
        table.add_row(*row)
    return table


def print_doctor(result: dict[str, Any]) -> None:
    """Print a row for everything that was looked at, and what the words mean."""
    table = Table(title="skip2bench doctor", title_justify="left", title_style="bold")
    table.add_column("What", max_width=24)
    for title in ("Found", "Wanted"):
        table.add_column(title, overflow="fold")
    table.add_column("Verdict", no_wrap=True)
    for _, rows in groupby(result["rows"], key=lambda row: row["section"]):
        for row in rows:
            verdict = row["verdict"]
            cells = (Text(row[name]) for name in ("what", "found", "wanted"))
            table.add_row(*cells, Text(verdict, style=_STYLES.get(verdict, "bold red")))
        table.add_section()
    stdout.print(table)
    stdout.print(
        "Wanted of the machine: the guide, section 8.1. Weights, training and cache are counted to "
        "the byte; the peak is what a run is projected to take at most at one time.",
        markup=False,
        soft_wrap=True,
    )
