"""The evaluation report, laid out as section 9 of the evaluation guide asks for.

Runs come from `selection`, figures from `tables`, the plot from `plots`, rounding from `units`, and
every word from `templates/report.<lang>.md.j2`; here they meet, with the environment and what is
missing.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from skip2bench import plots, tables, units
from skip2bench.comparison_report import list_curves, read_comparison
from skip2bench.config import Language, ReportConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.resources import find_resource
from skip2bench.results import read_runs
from skip2bench.selection import Selection, select_runs

if TYPE_CHECKING:
    from jinja2 import Template

FIGURE = Path("figures", "loss_comparison.png")
HASH_LENGTH = 12
ERROR_LENGTH = 200


@dataclass(frozen=True, kw_only=True)
class Missing:
    """Something that was not measured, and the command that measures it."""

    what: str
    command: str
    labels: tuple[str, ...] = ()


def render_report(config: ReportConfig) -> str:
    """Read the runs below `config.results`, draw the plot there, and return the report as Markdown.

    The plot becomes `<results>/figures/loss_comparison.png`; the link to it is relative to the
    folder of `config.output`, or to the current folder without one.

    Raises:
        Skip2BenchError: no run has finished, one cannot be read, or the plot cannot be written.
    """
    selection = select_runs(read_runs(config.results), config.results)
    if not selection.runs:
        raise Skip2BenchError(
            f"no finished run below {str(config.results)!r}; "
            "make one with 'skip2bench bench' or 'skip2bench train'"
        )
    bench_rows = tables.build_bench_rows(selection.bench) if selection.bench else []
    train_rows = tables.build_train_rows(selection.train)
    comparison = read_comparison(selection.comparison) if selection.comparison else None
    curves = selection.train
    if selection.comparison and comparison and not curves:
        curves = list_curves(selection.comparison, comparison)
    drawable = [run for run in curves if plots.read_loss_curve(run)]
    figure = None
    if drawable:
        path = plots.draw_loss_comparison(drawable, config.results / FIGURE)
        figure = _link(path, config.output.parent if config.output else Path())
    return _load_template(config.lang).render(
        selection=selection,
        comparison=comparison,
        environment=collect_environment(selection),
        bench=bench_rows,
        train=train_rows,
        bench_baseline=tables.find_baseline(bench_rows),
        train_baseline=tables.find_baseline(train_rows),
        mismatches=find_mismatches(selection),
        advice=tables.find_advice(bench_rows, train_rows),
        limits={
            "loss": round(100 * tables.WORSE_LOSS_RATIO),
            "speed": round(100 * tables.SPEED_GAP_RATIO),
        },
        missing=find_missing(selection, bench_rows, train_rows),
        figure=figure,
    )


def collect_environment(selection: Selection) -> dict[str, Any]:
    """What the runs ran on and with.

    Returns:
        By name, the distinct values among the runs that are compared, in the order of the tables;
        `highest_load` is a number or None. Sizes are bytes; hashes are cut to HASH_LENGTH.
    """
    runs = selection.runs
    environments = [run.environment for run in runs]
    names = (
        *("processor", "cpu_count", "memory_bytes", "platform", "gpu", "threads"),
        *("python", "torch", "litgpt", "skip2bench"),
    )
    found: dict[str, Any] = {
        name: _distinct(environment.get(name) for environment in environments) for name in names
    }
    for name in ("model", "device", "precision"):
        found[name] = _distinct(run.summary.get(name) for run in runs)
    for name in ("data", "checkpoint"):
        found[name] = _distinct(
            _with_short_hash(environment.get(name)) for environment in environments
        )
    found["commit"] = _distinct(
        (str(environment["commit"])[:HASH_LENGTH], bool(environment.get("dirty")))
        for environment in environments
        if environment.get("commit")
    )
    found["started_at"] = sorted(_distinct(run.summary.get("started_at") for run in runs))
    loads = [load[0] for environment in environments if (load := environment.get("load_average"))]
    found["highest_load"] = max(loads, default=None)
    found["commands"] = _distinct(environment.get("command") for environment in environments)
    return found


def find_mismatches(selection: Selection) -> list[str]:
    """Names of what the bench run and the train runs do not share: model, device, precision."""
    if not (selection.bench and selection.train):
        return []
    bench, train = selection.bench.summary, selection.train[0].summary
    return [name for name in ("model", "device", "precision") if bench.get(name) != train.get(name)]


def find_missing(
    selection: Selection, bench_rows: Sequence[tables.Row], train_rows: Sequence[tables.Row]
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
    # what a comparison has measured is not missing
    kinds = [("bench", bench_rows)]
    if train_rows or not selection.comparison:
        kinds.append(("train", train_rows))
    missing = [
        Missing(what=what, command=commands[what])
        for kind, rows in kinds
        for what in _missing_methods(kind, rows)
    ]
    incomplete = {
        "times": ([row["label"] for row in bench_rows if row["step_seconds"] is None], "bench"),
        "flops": ([row["label"] for row in bench_rows if not row["has_flops"]], "bench"),
        "memory": (
            [row["label"] for row in bench_rows if row["memory"]["saved_bytes"] is None],
            "bench",
        ),
        "train_figures": ([row["label"] for row in train_rows if _has_gap(row)], "train"),
        "curves": (
            [
                str(run.summary.get("label"))
                for run in selection.train
                if not plots.read_loss_curve(run)
            ],
            "train",
        ),
    }
    commands["train"] = "skip2bench train"
    return missing + [
        Missing(what=what, command=commands[kind], labels=tuple(labels))
        for what, (labels, kind) in incomplete.items()
        if labels
    ]


def escape_markdown(value: object) -> str:
    """`value` as one line of plain text inside Markdown prose or a table cell."""
    text = re.sub(r"\s+", " ", str(value)).strip()
    return re.sub(r"([\\`*\[\]|])", r"\\\1", text).replace("<", "&lt;")


def escape_code(value: object) -> str:
    """`value` as one line that cannot end the fenced code block it stands in."""
    return re.sub(r"\s+", " ", str(value)).strip().replace("```", "'''")


def shorten(value: object, length: int = ERROR_LENGTH) -> str:
    """The first `length` characters of `value`, with an ellipsis where some were cut."""
    text = str(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def shorten_hash(value: object) -> object:
    """The first HASH_LENGTH digits of a sha256; any other value as it is."""
    is_hash = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return str(value)[:HASH_LENGTH] if is_hash else value


def _missing_methods(kind: str, rows: Sequence[tables.Row]) -> list[str]:
    if not rows:
        return [kind]
    gaps = []
    if tables.find_baseline(rows) is None:
        gaps.append(f"{kind}_baseline")
    if all(row["method"] == "lora" for row in rows):
        gaps.append(f"{kind}_skip")
    return gaps


def _has_gap(row: tables.Row) -> bool:
    needed = (
        "train_seconds",
        "steps",
        "tokens",
        "peak_bytes",
        "initial_val_loss",
        "final_val_loss",
    )
    return any(row[name] is None for name in needed)


def _load_template(lang: Language) -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(find_resource("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML: values pass through the `markdown` filter
    )
    formats: dict[str, Callable[..., str]] = {
        "count": units.format_count,
        "bytes": units.format_bytes,
        "duration": partial(units.format_duration, lang=lang),
        "loss": units.format_loss,
        "ms": units.format_milliseconds,
        "percent": units.format_percent,
        "signed_percent": partial(units.format_percent, signed=True),
        "significant": units.format_significant,
        "time": units.format_time,
        "markdown": escape_markdown,
    }
    environment.filters |= {
        name: partial(_or_dash, render=render) for name, render in formats.items()
    }
    # of a figure over seeds: mean ± standard deviation, with a ± only where there are several
    environment.filters |= {
        f"spread_{name}": partial(_spread, render=formats[name])
        for name in ("loss", "duration", "significant", "bytes")
    }
    environment.filters["spread_signed"] = partial(
        _spread, render="{:+.3f}".format, render_std="{:.3f}".format
    )
    environment.filters |= {"code": escape_code, "shorten": shorten, "short_hash": shorten_hash}
    return environment.get_template(f"report.{lang}.md.j2")


def _spread(
    figure: Any, render: Callable[..., str], render_std: Callable[..., str] | None = None
) -> str:
    if not figure:
        return "-"
    if figure["n"] == 1 or figure["std"] == 0:
        return render(figure["mean"])
    return f"{render(figure['mean'])} ± {(render_std or render)(figure['std'])}"


def _or_dash(value: Any, render: Callable[..., str]) -> str:
    return "-" if value is None else render(value)


def _link(path: Path, start: Path) -> str:
    relative = Path(os.path.relpath(path.resolve(), start.resolve())).as_posix()
    return quote(relative)


def _distinct(values: Iterable[Any]) -> list[Any]:
    """The values that are not None, each once, in order of appearance."""
    found: list[Any] = []
    for value in values:
        if value is not None and value not in found:
            found.append(value)
    return found


def _with_short_hash(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    return value | {"sha256": shorten_hash(value.get("sha256"))}
