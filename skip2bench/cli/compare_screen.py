"""The console's table of a comparison: a row a configuration, at its best learning rate."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table

from skip2bench.io.console import stdout
from skip2bench.io.units import (
    format_bytes,
    format_count,
    format_duration,
    format_loss,
    format_significant,
)
from skip2bench.results.figures import FEW_RUNS

Entry = Mapping[str, Any]


def print_compare(results: Mapping[str, Any]) -> None:
    """Print the figures, what failed, what peers do otherwise, and what to beware of."""
    if results.get("dry_run"):
        names = "\n".join(results["cells"])
        total = format_duration(results["estimated_seconds"], "en")
        stdout.print(f"{names}\n{len(results['cells'])} runs, about {total}", markup=False)
        return
    entries = results["configurations"]
    for title, columns in _TABLES.items():
        stdout.print(_build_table(title, columns, entries))
    if results["best_batch"]:
        title = "Best-batch: each with its own largest micro-batch (above: one for all)"
        stdout.print(_build_table(title, _BEST_BATCH, results["best_batch"]))
    lines = [
        "mean ± standard deviation over n seeds, each at its best learning rate; × is the paired "
        "ratio to the baseline with its 95 % interval, ≈ where that includes 1",
    ]
    if results["learning_rates"] == "fixed":
        lines.append("one learning rate for all: nothing says that it suits each of them")
    for entry in entries:
        lines += [f"{entry['label']} differs: {text}" for text in entry["differences"]]
    lines += [f"warning: {_describe_warning(it)}" for it in results["warnings"]]
    lines += [
        f"{cell['status']}: {name}: {cell['error']}"
        for name, cell in results["cells"].items()
        if cell["status"] not in ("ok", "waiting")
    ]
    stdout.print("\n".join([*lines, f"results: {results['folder']}"]), markup=False, soft_wrap=True)


def _build_table(title: str, columns: "Columns", entries: list[Entry]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("Configuration", overflow="fold")
    for name in columns:
        table.add_column(name.strip(), justify="right", no_wrap=True)
    for entry in entries:
        table.add_row(entry["label"], *(render(entry) for render in columns.values()))
    return table


def _describe_warning(it: Mapping[str, Any]) -> str:
    if it["kind"] == "busy":
        return f"something else used the processor during {', '.join(it['cells'])}"
    if it["kind"] == "resumed":
        return f"stopped and resumed, each step counted once: {', '.join(it['cells'])}"
    if it["kind"] == "few_runs":
        return f"{it['label']}: n = {it['n']}; an interval needs at least {FEW_RUNS} runs"
    if it["kind"] == "edge":
        return (
            f"{it['label']}: its best learning rate {it['learning_rate']:g} is at the edge of the "
            "grid; a wider grid may do better"
        )
    return f"{it['label']}: {it['figure']} differs from the baseline's, and both are the same run"


def _seconds(value: float) -> str:
    return format_duration(value, "en")


def _mean(entry: Entry, name: str, render: Callable[[float], str]) -> str:
    figure = entry["figures"].get(name)
    return render(figure["mean"]) if figure else "-"


def _spread(entry: Entry, name: str, render: Callable[[float], str]) -> str:
    figure = entry["figures"].get(name)
    if not figure:
        return "-"
    spread = f" ± {render(figure['std'])}" if figure["n"] > 1 else ""
    return f"{render(figure['mean'])}{spread}"


def _ratio(entry: Entry, name: str) -> str:
    ratio = entry["against_baseline"].get(name)
    if entry["is_baseline"] or not ratio:
        return "-"
    text = format_significant(ratio["ratio"])
    if ratio["low"] is None:
        return text
    bounds = f"[{format_significant(ratio['low'])}, {format_significant(ratio['high'])}]"
    return f"{'' if ratio['is_difference'] else '≈ '}{text} {bounds}"


def _reached(entry: Entry) -> str:
    return f"{entry['target_reached']} of {len(entry['seeds'])}"


Columns = dict[str, Callable[[Entry], str]]
_TABLES: dict[str, Columns] = {
    "Loss": {
        "Parameters": lambda e: format_count(e["trainable_parameters"]),
        "Rate": lambda e: "-" if e["learning_rate"] is None else f"{e['learning_rate']:g}",
        "n": lambda e: str(len(e["seeds"])),
        "Final loss": lambda e: _spread(e, "final_val_loss", format_loss),
        "×": lambda e: _ratio(e, "final_val_loss"),
        "Target reached": _reached,
        "Forgetting": lambda e: _mean(e, "forgetting", lambda value: f"{value:+.3f}"),
    },
    "Time": {
        "Training clock": lambda e: _spread(e, "train_seconds", _seconds),
        "×": lambda e: _ratio(e, "train_seconds"),
        "Cache kept": lambda e: _mean(e, "reused_train_seconds", _seconds),
        "× ": lambda e: _ratio(e, "reused_train_seconds"),
        "To target": lambda e: _mean(e, "time_to_target_seconds", _seconds),
    },
    "Memory": {
        "Peak": lambda e: _mean(e, "peak_memory_bytes", format_bytes),
        "×": lambda e: _ratio(e, "peak_memory_bytes"),
        "Saved for backward": lambda e: _mean(e, "saved_for_backward_bytes", format_bytes),
        "Skip-Cache": lambda e: _mean(e, "cache_bytes", format_bytes),
        "Adapter file": lambda e: _mean(e, "adapter_bytes", format_bytes),
    },
}
_BEST_BATCH: Columns = {
    "Micro-batch": lambda e: "-" if e["method"] == "skip2" else str(e["micro_batch_size"] or "-"),
    "Training clock": lambda e: _spread(e, "train_seconds", _seconds),
    "×": lambda e: _ratio(e, "train_seconds"),
    "Peak": lambda e: _mean(e, "peak_memory_bytes", format_bytes),
    "× ": lambda e: _ratio(e, "peak_memory_bytes"),
}
