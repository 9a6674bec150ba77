"""Text from files and users as plain text inside Markdown: it can neither end nor start anything.

A label, an error or a path may hold markup, line breaks, escape sequences of a terminal, or
characters that turn the direction of writing; a reader sees them, and nothing obeys them.
"""

import re

ERROR_LENGTH = 200
HASH_LENGTH = 12
# control characters, those that turn the direction of writing, and halves of surrogate pairs
_UNSEEN = "\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff"
_UNPRINTABLE = re.compile(f"[{_UNSEEN}]")
# what starts a heading, list, quotation, fence or rule at the beginning of a list item
_BLOCK_START = re.compile(r"^(?=#{1,6}(?:\s|$)|[-+](?:\s|[-+\s]+$)|>|~~~|==)")
_NUMBERED_START = re.compile(r"^(\d{1,9})(?=[.)](?:\s|$))")


def to_line(value: object) -> str:
    """`value` as one line, with U+FFFD for each character that cannot be printed."""
    return _UNPRINTABLE.sub("\ufffd", re.sub(r"\s+", " ", str(value)).strip())


def to_printable(text: str) -> str:
    """`text` with the characters escaped, as in JSON, that a terminal obeys or UTF-8 lacks."""
    return re.sub(f"(?![\\n\\t])[{_UNSEEN}]", lambda match: f"\\u{ord(match[0]):04x}", text)


def escape_markdown(value: object) -> str:
    """`value` as one line of plain text inside Markdown prose or a table cell."""
    # an underscore within a word starts no emphasis
    text = re.sub(r"([\\`*\[\]|]|(?<!\w)_|_(?!\w))", r"\\\1", to_line(value))
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return _NUMBERED_START.sub(r"\1\\", _BLOCK_START.sub(r"\\", text))


def escape_code(value: object) -> str:
    """`value` as one line that cannot end the fenced code block it stands in."""
    return to_line(value).replace("```", "'''")


def quote_code(value: object) -> str:
    """`value` as code within a line, also within a table cell, with as many backticks as it needs.

    In a table, a bar ends the cell even within code, unless a backslash stands before it.
    """
    text = to_line(value).replace("|", "\\|")
    longest = max(map(len, re.findall("`+", text)), default=0)
    if not longest:
        return f"`{text}`"
    return f"{'`' * (longest + 1)} {text} {'`' * (longest + 1)}"


def shorten(value: object, length: int = ERROR_LENGTH) -> str:
    """The first `length` characters of `value`, with an ellipsis where some were cut."""
    text = str(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def shorten_hash(value: object) -> object:
    """The first digits of a sha256; any other value as it is."""
    is_hash = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return str(value)[:HASH_LENGTH] if is_hash else value
