"""The report's templates: the shipped ones, and users' own in a sandbox.

A user's template may come from anywhere, so it sees the data and nothing else: it calls Jinja's own
functions and the methods of plain values, never those of a path or another object, and its output
and its arithmetic are limited.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import BuiltinMethodType
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, TemplateError
from jinja2.exceptions import SecurityError
from jinja2.runtime import BlockReference, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner

from skip2bench.errors import Skip2BenchError
from skip2bench.io import units
from skip2bench.io.resources import find_resource
from skip2bench.io.units import Language
from skip2bench.report.markdown import (
    escape_code,
    escape_markdown,
    quote_code,
    shorten,
    shorten_hash,
)
from skip2bench.report.tables.cells import show_median, show_middle, show_spread
from skip2bench.results.bench_records import PhaseTimes
from skip2bench.results.comparison_records import FigureSummary

MAX_TEXT = 20_000_000
"""Characters that a user's template may make; a report has some ten thousand."""
_PADDING_METHODS = frozenset(("center", "expandtabs", "ljust", "rjust", "zfill"))
_PADDING_FILTERS = ("batch", "center", "format", "indent", "slice", "wordwrap")
# a width or a precision of four digits, or one that an argument gives
_WIDE_FORMAT = re.compile(r"%(\([^)]*\))?[-#0 +]*(\d{4}|\*|\d*\.(\d{4}|\*))")
_PLAIN = (str, int, float, bool, list, tuple, dict, range)
_JINJAS_OWN = (Macro, BlockReference, LoopContext, Joiner)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, by its own hooks made stricter: by default it calls what it can reach."""

    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        """Without what makes text of any length."""
        super().__init__(**options)
        del self.globals["lipsum"]
        for name in _PADDING_FILTERS:
            # a copy of Jinja's table, of this environment alone
            del self.filters[name]

    def is_safe_callable(self, obj: Any) -> bool:
        """True for Jinja's own callables and for methods of plain values."""
        if isinstance(obj, _JINJAS_OWN) or any(obj is one for one in self.globals.values()):
            return True
        owner = getattr(obj, "__self__", None)
        if isinstance(obj, BuiltinMethodType):
            # of exactly these types: a class method such as dict.fromkeys has a type as its owner
            return type(owner) in _PLAIN and obj.__name__ not in _PADDING_METHODS
        return isinstance(owner, Cycler | LoopContext)

    def call_binop(self, context: Any, operator_name: str, left: Any, right: Any) -> Any:
        """Arithmetic of numbers; of `*`, `**` and `%` nothing that could fill the memory."""
        numbers = all(isinstance(it, int | float) for it in (left, right))
        if operator_name == "*" and not numbers:
            raise SecurityError("only numbers can be multiplied")
        if operator_name == "**" and not (numbers and abs(left) < 1e9 and abs(right) < 100):
            raise SecurityError("the power is too large")
        if operator_name == "%" and isinstance(left, str) and _WIDE_FORMAT.search(left):
            raise SecurityError("the width of a format is too large")
        return super().call_binop(context, operator_name, left, right)


def render_shipped(lang: Language, data: Mapping[str, Any]) -> str:
    """The report that `templates/report.<lang>.md.j2` makes of `data`."""
    environment = _prepare(Environment, lang, loader=FileSystemLoader(find_resource("templates")))
    return environment.get_template(f"report.{lang}.md.j2").render(**data)


def render_users(path: Path, lang: Language, data: Mapping[str, Any]) -> str:
    """The report that a user's own template makes of `data`.

    Raises:
        Skip2BenchError: it cannot be read, or asks for what is not there or not allowed.
    """
    try:
        source = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Skip2BenchError(f"the template {str(path)!r} cannot be read ({error})") from error
    try:
        template = _prepare(TemplateSandbox, lang).from_string(source)
        return _render_within_limit(template, data)
    # whatever a template does wrong with the data is the template's error, and its user's to mend
    except (
        *(TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError),
        *(RecursionError, MemoryError, AssertionError, NotImplementedError),
    ) as error:
        reason = " ".join(str(error).split())
        raise Skip2BenchError(
            f"the template {str(path)!r} cannot be rendered "
            f"({type(error).__name__}: {shorten(reason)}); start from templates/report.en.md.j2"
        ) from error


def _render_within_limit(template: Template, data: Mapping[str, Any]) -> str:
    parts, length = [], 0
    for part in template.generate(**data):
        length += len(part)
        if length > MAX_TEXT:
            raise SecurityError(f"it makes more than {MAX_TEXT:,} characters")
        parts.append(part)
    return "".join(parts)


def _prepare(kind: type[Environment], lang: Language, **options: Any) -> Environment:
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
        "median_ms": _median,
        "code": escape_code,
        "code_span": quote_code,
        "shell_word": lambda value: shlex.quote(str(value)),
        "shorten": shorten,
        "short_hash": shorten_hash,
    }
    return environment


def _spread(figure: Any, kind: str, formats: Mapping[str, Callable[..., str]]) -> str:
    """A figure over runs, a loss as mean ± standard deviation, others as median [quartiles]."""
    show = show_spread if kind == "loss" else show_middle
    return show(FigureSummary.model_validate(figure), formats[kind]) if figure else "-"


def _median(phase: Any) -> str:
    return show_median(PhaseTimes.model_validate(phase) if phase else None)


def _or_dash(value: Any, render: Callable[..., str]) -> str:
    return "-" if value is None else render(value)
