"""The report as one HTML page: the Markdown report, with its charts inside it.

One file, no script, no request to any network. `templates/report.html.j2` holds the page and its
style: light and dark, print, tables that scroll by themselves on a phone.
"""

import re
from collections.abc import Mapping
from html import escape

from skip2bench.config import Language
from skip2bench.resources import find_resource


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
