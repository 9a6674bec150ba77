"""The evaluation report, laid out as section 9 of the evaluation guide asks for.

Its data come from `data`, charts from `charts`, rounding from `io.units`, and every word from
`templates/report.<lang>.md.j2` (`templates`). The HTML page is made of the Markdown, so that both
say the same.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from skip2bench.config.commands import ReportConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.record import Record
from skip2bench.io.resources import find_resource
from skip2bench.io.units import Language
from skip2bench.io.whole import to_json
from skip2bench.report.charts.drawing import on_paper
from skip2bench.report.charts.runs import draw_charts
from skip2bench.report.charts.sweep import draw_tune_charts
from skip2bench.report.data import build_report_data, collect_curves
from skip2bench.report.markdown import to_printable
from skip2bench.report.selection import Selection, choose_runs, select_runs
from skip2bench.report.tables.bench_rows import Reduction
from skip2bench.report.tables.columns import collect_tables, render_tables
from skip2bench.results.reading import RESULTS_FILE, AnyRun, Run, read_runs


def render_report(config: ReportConfig) -> str:
    """Read the runs below `config.results` and return the report: Markdown, HTML or JSON.

    The charts of a Markdown report are written as SVG files to `config.plots_dir`, or without one
    to `figures` beside the report (below the results where it goes to standard output); links to
    them are relative to the folder of `config.output`, or to the current folder without one. An
    HTML page holds them itself. A run that cannot be read is named among those left out.

    Raises:
        Skip2BenchError: no finished run can be read, or a chart cannot be written.
    """
    runs, unreadable = _read_runs(config)
    chosen = choose_runs(runs, config.results, config.run, unreadable)
    selection = select_runs(chosen, config.results, unreadable)
    if not selection.runs:
        raise _nothing_to_report(config.results, selection)
    data = build_report_data(selection)
    if config.json:
        return to_printable(to_json(_to_plain(data)))
    curves = collect_curves(selection)
    drawn = draw_charts(data["bench"], data["entries"], curves, config.lang)
    if selection.sweep:
        drawn |= draw_tune_charts(selection.sweep, config.lang)
    if config.format == "html":
        markdown = _render(config, data, {name: f"chart:{name}" for name in drawn})
        return to_printable(render_page(markdown, drawn, config.lang))
    return to_printable(_render(config, data, _write_charts(config, drawn)))


def _read_runs(config: ReportConfig) -> tuple[list[AnyRun], dict[Path, str]]:
    """The runs below the results folder, and those that were asked for and lie elsewhere.

    Raises:
        Skip2BenchError: there is no results folder, and nothing else was asked for.
    """
    results = Path(os.path.realpath(config.results))
    elsewhere = [
        path
        for path in config.run
        if path.is_dir() and not Path(os.path.realpath(path)).is_relative_to(results)
    ]
    roots = elsewhere if elsewhere and not results.is_dir() else [config.results, *elsewhere]
    runs: dict[Path, AnyRun] = {}
    unreadable: dict[Path, str] = {}
    for root in roots:
        found, damaged = read_runs(root)
        runs |= {Path(os.path.realpath(run.folder)): run for run in found}
        unreadable |= damaged
    return sorted(runs.values(), key=lambda run: (run.started, str(run.folder))), unreadable


def _nothing_to_report(root: Path, selection: Selection) -> Skip2BenchError:
    damaged = [item for item in selection.left_out if item.reason == "unreadable"]
    if damaged:
        return Skip2BenchError(
            f"no run below {str(root)!r} can be reported: {len(damaged)} cannot be read, among "
            f"them {str(root / damaged[0].folder)!r} ({damaged[0].error}); mend or remove that, or "
            "make a run with 'skip2bench bench' or 'skip2bench train'"
        )
    for folder in (root, *(root / item.folder for item in selection.left_out)):
        if (folder / "cells").is_dir() and not (folder / RESULTS_FILE).is_file():
            return Skip2BenchError(
                f"the comparison in {str(folder)!r} has no {RESULTS_FILE}; call the same "
                "'skip2bench compare' again, which repeats no run that is done"
            )
    return Skip2BenchError(
        f"no finished run below {str(root)!r}; "
        "make one with 'skip2bench bench' or 'skip2bench train'"
    )


def _render(config: ReportConfig, data: Mapping[str, Any], charts: Mapping[str, str]) -> str:
    from skip2bench.report.templates import render_shipped, render_users

    content = _for_templates(data)
    content |= {"charts": charts, "tables": render_tables(data, config.lang)}
    content["is_page"] = config.format == "html"
    if config.template is None:
        return render_shipped(config.lang, content)
    return render_users(config.template, config.lang, content)


def _for_templates(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data with mappings for records: a template may ask them for what a file lacks."""
    selection: Selection = data["selection"]
    named = ("bench", "train", "comparison", "tune", "harness")
    shown = {name: _plain_records(getattr(selection, name)) for name in named}
    return {
        **{name: _plain_records(value) for name, value in data.items()},
        "selection": replace(selection, **shown),
    }


def _plain_records(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_plain()
    if isinstance(value, Run):
        plain: Any = {"summary": value.summary, "environment": value.environment}
        return replace(value, **_plain_records(plain))
    if isinstance(value, dict):
        return {name: _plain_records(inner) for name, inner in value.items()}
    return [_plain_records(inner) for inner in value] if isinstance(value, list | tuple) else value


def _write_charts(config: ReportConfig, drawn: Mapping[str, str]) -> dict[str, str]:
    """Write the charts; return their links."""
    start = config.output.parent if config.output else Path()
    beside = start if config.output else config.results
    folder = config.plots_dir or beside / "figures"
    links = {}
    for name, svg in drawn.items():
        path = folder / f"{name}.{config.lang}.svg"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(on_paper(svg), encoding="utf-8")
        except OSError as error:
            raise Skip2BenchError(
                f"cannot write the plot {str(path)!r} ({error.strerror}); choose another "
                "--plots-dir"
            ) from error
        links[name] = _link(path, start)
    return links


def _link(path: Path, start: Path) -> str:
    relative = os.path.relpath(os.path.realpath(path), os.path.realpath(start))
    return quote(os.fsencode(Path(relative).as_posix()))


def _to_plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data as JSON can hold it: runs become their folders."""
    selection = data["selection"]
    plain = {name: value for name, value in data.items() if name not in ("selection", "limits")}
    plain["tables"] = collect_tables(data)
    plain["missing"] = [vars(item) for item in data["missing"]]
    plain["left_out"] = [vars(item) for item in selection.left_out]
    plain["runs"] = [run.folder.as_posix() for run in selection.runs]
    plain["bench"] = [
        {k: vars(v) if isinstance(v, Reduction) else v for k, v in row.items()}
        for row in data["bench"]
    ]
    for name in ("baseline", "conclusion", "lowest"):
        plain[name] = data[name] and data[name].label
    plain["picks"] = [
        pick | {"entry": pick["entry"].label, "tied": [entry.label for entry in pick["tied"]]}
        for pick in data["picks"]
    ]
    plain["peers"] = [entry.label for entry in data["peers"]]
    return plain


def render_page(markdown: str, charts: Mapping[str, str], lang: Language) -> str:
    """The page of a Markdown report.

    Args:
        markdown: The report; an image with the address `chart:NAME` stands for a chart.
        charts: SVG text by name.
        lang: Language of the report.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markdown_it import MarkdownIt

    # "commonmark" with raw HTML off: nothing from a file can become an element
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.validateLink = lambda url: url.startswith(("chart:", "https://"))  # type: ignore[method-assign]
    body = parser.render(markdown)
    body = re.sub(
        r'<p><img src="chart:([a-z]+)" alt="([^"]*)"\s*/?></p>',
        lambda match: _make_figure(charts[match[1]], *match.groups()) if match[1] in charts else "",
        body,
    )
    body = body.replace("<table>", '<div class="table" tabindex="0" role="region"><table>')
    body = body.replace("</table>", "</table></div>")
    title = re.search(r"^# (.+)$", markdown, flags=re.MULTILINE)
    environment = Environment(
        loader=FileSystemLoader(find_resource("templates")),
        undefined=StrictUndefined,
        autoescape=True,
        keep_trailing_newline=True,
    )
    template = environment.get_template("report.html.j2")
    return template.render(lang=lang, title=title[1] if title else "skip2bench", body=body)


def _make_figure(svg: str, name: str, text: str) -> str:
    """A chart as an element with an alternative text; ids made its own, as a page has one space."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{text}" ', 1)
    return f"<figure>{svg}<figcaption>{escape(text, quote=False)}</figcaption></figure>"
