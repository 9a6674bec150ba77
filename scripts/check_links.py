"""Check that links between the project's own pages lead somewhere: files, folders and headings.

    python scripts/check_links.py

Reads the pages as GitHub shows them, where a heading's anchor is its text in lower case, without
punctuation, with `-` for spaces. Links to the outside are left alone. mkdocs checks the site by its
own rules.
"""

import re
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "README.ja.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md")


def find_broken_links(root: Path) -> list[str]:
    """Links that lead nowhere, each with its page: `docs/a.md: b.md#c (no such heading)`."""
    broken = []
    for page in sorted(path for pattern in PAGES for path in root.glob(pattern)):
        for link in read_links(page.read_text(encoding="utf-8")):
            if problem := _find_problem(page, link, root):
                broken.append(f"{page.relative_to(root).as_posix()}: {link} ({problem})")
    return broken


def _find_problem(page: Path, link: str, root: Path) -> str | None:
    if re.match(r"[a-z]+:", link):  # https:, mailto:
        return None
    path, _, anchor = unquote(link).partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.is_relative_to(root):
        return "outside the checkout"
    if not target.exists():
        return "no such file"
    if anchor and target.suffix == ".md":
        anchors = read_anchors(target.read_text(encoding="utf-8"))
        return None if anchor in anchors else "no such heading"
    return None


def read_links(text: str) -> Iterable[str]:
    """Targets of the links and pictures of a Markdown text."""
    for token in _inline(text):
        for child in token.children or ():
            if target := child.attrs.get("href") or child.attrs.get("src"):
                yield str(target)


def read_anchors(text: str) -> set[str]:
    """Anchors of the headings of a Markdown text; those of equal headings are numbered."""
    anchors: set[str] = set()
    tokens = MarkdownIt().parse(text)
    for before, token in pairwise(tokens):
        if before.type == "heading_open":
            words = "".join(child.content for child in token.children or ()).lower()
            anchor = name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
            count = 0
            while anchor in anchors:
                count += 1
                anchor = f"{name}-{count}"
            anchors.add(anchor)
    return anchors


def _inline(text: str) -> Iterable[Token]:
    tokens = MarkdownIt().enable("table").parse(text)
    return (token for token in tokens if token.type == "inline")


if __name__ == "__main__":
    broken_links = find_broken_links(ROOT)
    print(*broken_links, sep="\n", end="\n" * bool(broken_links), file=sys.stderr)
    sys.exit(bool(broken_links))
