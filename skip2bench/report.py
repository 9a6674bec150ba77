"""The evaluation report, laid out as section 9 of the evaluation guide asks for.

Its data come from `report_data`, charts from `report_charts`, rounding from `units`, and every word
from `templates/report.<lang>.md.j2`. The HTML page is made of the Markdown (`report_html`), so that
both say the same.
"""

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from skip2bench import units
from skip2bench.config import Language, ReportConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.report_charts import draw_charts
from skip2bench.report_data import HASH_LENGTH, build_report_data, read_curves
from skip2bench.resources import find_resource
from skip2bench.results import read_runs, to_json
from skip2bench.selection import choose_runs, select_runs
from skip2bench.tables import Reduction

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.environment import Environment

ERROR_LENGTH = 200


def render_report(config: ReportConfig) -> str:
    """Read the runs below `config.results` and return the report: Markdown, HTML or JSON.

    The charts of a Markdown report are written as SVG files to `config.plots_dir`, or without one
    to `figures` beside the report (below the results where it goes to standard output); links to
    them are relative to the folder of `config.output`, or to the current folder without one. An
    HTML page holds them itself.

    Raises:
        Skip2BenchError: no run has finished, one cannot be read, or a chart cannot be written.
    """
    runs, unreadable = read_runs(config.results)
    chosen = choose_runs(runs, config.results, config.run)
    selection = select_runs(chosen, config.results, unreadable)
    if not selection.runs:
        raise Skip2BenchError(
            f"no finished run below {str(config.results)!r}; "
            "make one with 'skip2bench bench' or 'skip2bench train'"
        )
    data = build_report_data(selection)
    if config.json:
        return to_json(_to_plain(data))
    drawn = draw_charts(
        data["bench"], data["entries"], read_curves(selection, data["figures"]), config.lang
    )
    if config.format == "html":
        from skip2bench.report_html import render_page

        markdown = _render(config, data, {name: f"chart:{name}" for name in drawn})
        return render_page(markdown, drawn, config.lang)
    return _render(config, data, _write_charts(config, drawn))


def _render(config: ReportConfig, data: Mapping[str, Any], charts: Mapping[str, str]) -> str:
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError

    if config.template is None:
        return _load_template(config.lang).render(**data, charts=charts)
    try:
        template = _load_users_template(config.template, config.lang)
        return template.render(**data, charts=charts)
    except (TemplateError, SecurityError, TypeError, AttributeError, KeyError) as error:
        raise Skip2BenchError(
            f"the template {str(config.template)!r} cannot be rendered "
            f"({type(error).__name__}: {error}); start from templates/report.en.md.j2"
        ) from error


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
            path.write_text(_on_paper(svg), encoding="utf-8")
        except OSError as error:
            raise Skip2BenchError(
                f"cannot write the plot {str(path)!r} ({error.strerror}); choose another "
                "--plots-dir"
            ) from error
        links[name] = quote(Path(os.path.relpath(path.resolve(), start.resolve())).as_posix())
    return links


def _on_paper(svg: str) -> str:
    """A chart as a file of its own, where no page gives it a background and a colour of text."""
    return svg.replace("<svg ", '<svg style="background:#ffffff;color:#1c1e21" ', 1)


def _to_plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data as JSON can hold it: runs become their folders."""
    selection = data["selection"]
    plain = {name: value for name, value in data.items() if name not in ("selection", "limits")}
    plain["missing"] = [vars(item) for item in data["missing"]]
    plain["left_out"] = [vars(item) for item in selection.left_out]
    plain["runs"] = [run.folder.as_posix() for run in selection.runs]
    plain["bench"] = [
        {k: vars(v) if isinstance(v, Reduction) else v for k, v in row.items()}
        for row in data["bench"]
    ]
    for name in ("baseline", "conclusion"):
        plain[name] = data[name] and data[name]["label"]
    plain["picks"] = [
        pick | {"entry": pick["entry"]["label"], "tied": [entry["label"] for entry in pick["tied"]]}
        for pick in data["picks"]
    ]
    plain["peers"] = [entry["label"] for entry in data["peers"]]
    return plain


def escape_markdown(value: object) -> str:
    """`value` as one line of plain text inside Markdown prose or a table cell."""
    text = re.sub(r"\s+", " ", str(value)).strip()
    # an underscore within a word starts no emphasis
    text = re.sub(r"([\\`*\[\]|]|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;")


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


def _load_template(lang: Language) -> "Template":
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(find_resource("templates"))
    return _prepare(Environment, lang, loader=loader).get_template(f"report.{lang}.md.j2")


def _load_users_template(path: Path, lang: Language) -> "Template":
    """A user's own template, in Jinja's sandbox: it sees the data and nothing else."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Skip2BenchError(f"the template {str(path)!r} cannot be read ({error})") from error
    return _prepare(ImmutableSandboxedEnvironment, lang).from_string(source)


def _prepare(kind: "type[Environment]", lang: Language, **options: Any) -> "Environment":
    from jinja2 import StrictUndefined

    environment = kind(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML: values pass through the `markdown` filter
        **options,
    )
    formats: dict[str, Callable[..., str]] = {
        "count": units.format_count,
        "signed_count": "{:+,}".format,
        "bytes": units.format_bytes,
        "duration": partial(units.format_duration, lang=lang),
        "loss": units.format_loss,
        "ms": units.format_milliseconds,
        "percent": units.format_percent,
        "signed_percent": partial(units.format_percent, signed=True),
        "significant": units.format_significant,
        "signed": "{:+.3f}".format,
        "time": units.format_time,
        "markdown": escape_markdown,
    }
    environment.filters |= {
        name: partial(_or_dash, render=render) for name, render in formats.items()
    }
    environment.filters |= {
        "spread": partial(_spread, formats=formats),
        "median_ms": _median_milliseconds,
        "code": escape_code,
        "shorten": shorten,
        "short_hash": shorten_hash,
    }
    return environment


def _spread(figure: Any, kind: str, formats: Mapping[str, Callable[..., str]]) -> str:
    """A figure over runs: mean ± standard deviation, with a ± only where it varied."""
    if not figure:
        return "-"
    render = formats[kind]
    if figure["n"] == 1 or figure["std"] == 0:
        return render(figure["mean"])
    return f"{render(figure['mean'])} ± {render(figure['std']).removeprefix('+')}"


def _median_milliseconds(phase: Any) -> str:
    if not phase:
        return "-"
    median, std = (units.format_milliseconds(phase[f"{n}_seconds"]) for n in ("median", "std"))
    return f"{median} ± {std}"


def _or_dash(value: Any, render: Callable[..., str]) -> str:
    return "-" if value is None else render(value)
