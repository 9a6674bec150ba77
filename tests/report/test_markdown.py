"""Text that nothing obeys: in Markdown, in HTML made of it, in a terminal."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from skip2bench.report.markdown import (
    escape_code,
    escape_markdown,
    quote_code,
    shorten,
    shorten_hash,
    to_printable,
)

bounded = settings(deadline=None, max_examples=100, derandomize=True)


def render(markdown: str) -> str:
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\r\n b", "a b"),
        ("a|b", r"a\|b"),
        ("\\|", r"\\\|"),
        ("*a*", r"\*a\*"),
        (3, "3"),
        ("-", "-"),
        ("-3.5 %", "-3.5 %"),
        ("3.11.7", "3.11.7"),
        ("<b>", "&lt;b>"),
        ("a_b _c_", r"a_b \_c\_"),
        ("&lt;", "&amp;lt;"),
        ("# Title", r"\# Title"),
        ("> quoted", r"\> quoted"),
        ("- item", r"\- item"),
        ("--- -", r"\--- -"),
        ("+ item", r"\+ item"),
        ("1. item", r"1\. item"),
        ("~~~", r"\~~~"),
        ("[x](javascript:alert(1))", r"\[x\](javascript:alert(1))"),
        ("\u202egpj.exe", "\ufffdgpj.exe"),
        ("\x1b[31mred\x07", "\ufffd\\[31mred\ufffd"),
        ("a\u2028b\x85c", "a b c"),
        ("\ud800", "\ufffd"),
    ],
)
def test_escape_markdown(value: object, text: str) -> None:
    assert escape_markdown(value) == text


@bounded
@given(
    st.text(alphabet=st.one_of(st.sampled_from("#>-+*_=~`|<&[]()!.:1 \\\n\t@$"), st.characters()))
)
def test_escaped_text_is_read_as_itself(value: str) -> None:
    """In a list item and in a cell: one paragraph, one cell, no element of its own."""
    shown = escape_markdown(value)
    plain = re.sub(
        r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]",
        "\ufffd",
        " ".join(value.split()),
    )
    if not shown:
        return
    expected = (
        plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    )
    assert render(f"- {shown}: x\n") == f"<ul>\n<li>{expected}: x</li>\n</ul>\n"
    cells = re.findall(r"<td>(.*)</td>", render(f"| A | B |\n|---|---|\n| {shown} | x |\n"))
    assert cells == [expected, "x"]


@bounded
@given(st.text(alphabet="`|<ab \\"))
def test_code_within_a_cell_is_read_as_itself(value: str) -> None:
    cells = re.findall(
        r"<td>(.*)</td>", render(f"| A | B |\n|---|---|\n| {quote_code(f'x {value}')} | x |\n")
    )
    plain = f"x {' '.join(value.split())}".strip().replace("<", "&lt;")
    assert cells == [f"<code>{plain}</code>", "x"]


def test_code_cannot_end_its_block() -> None:
    assert escape_code("a | <b>\n```") == "a | <b> '''"
    assert escape_code("a \x1b]0;title\x07") == "a \ufffd]0;title\ufffd"


def test_a_text_for_a_terminal_or_a_file_holds_no_sequence_that_is_obeyed() -> None:
    assert to_printable("a\n\tb \x1b[0m \x9b \u202e \udcff ü") == (
        "a\n\tb \\u001b[0m \\u009b \\u202e \\udcff ü"
    )


def test_shorten() -> None:
    assert shorten("abc", 3) == "abc"
    assert shorten("abcd", 3) == "ab…"
    assert shorten_hash("a" * 64) == "a" * 12
    assert shorten_hash(None) is None
    assert shorten_hash("a" * 63) == "a" * 63
