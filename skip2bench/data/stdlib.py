"""The Python standard library's own source, as a corpus and as documented functions.

The one real text that every user of this tool has at hand, offline: `pystd` is pretrained on its
code without docstrings, `pydoc` (see `load`) fine-tunes on its docstrings. Modules are divided
once, by the name of their top-level package, so that neither pretraining nor fine-tuning has seen a
validation module.
"""

import ast
import hashlib
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INSTRUCTION = "Write the summary line of this Python function's docstring."
MAX_SOURCE_CHARS = 900
MIN_SUMMARY_CHARS = 12
MAX_SUMMARY_CHARS = 240

# Not source that a person wrote to be read: tests, generated tables, bundled wheels, build
# settings.
_EXCLUDED_FOLDERS = frozenset(
    (
        "test",
        "tests",
        "idle_test",
        "site-packages",
        "dist-packages",
        "encodings",
        "pydoc_data",
        "_bundled",
    )
)
_EXCLUDED_PREFIXES = ("_sysconfigdata", "config-", "__phello__")
# A salt under which no single package makes up the validation side (tkinter alone has a ninth of
# all functions).
_SPLIT_SALT = "skip2bench 39"

_Documentable = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True)
class Module:
    """One source file of the standard library."""

    name: str
    """Dotted name, such as `asyncio.events`."""
    source: str

    def parse(self) -> ast.Module | None:
        """Syntax tree; None for the few files of no valid source (templates, deliberate errors)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in somebody else's source
            try:
                return ast.parse(self.source)
            except (SyntaxError, ValueError):
                return None

    @property
    def is_validation(self) -> bool:
        """True for one top-level package in ten.

        It is chosen by the hash of its name: the same on every machine.
        """
        package = self.name.partition(".")[0]
        return hashlib.sha256(f"{_SPLIT_SALT} {package}".encode()).digest()[0] < 26


@dataclass(frozen=True, kw_only=True)
class DocumentedFunction:
    """A function whose docstring has a summary that can be learnt from its source."""

    module: Module
    qualname: str
    source: str
    """The function's source without any docstring, dedented to the margin."""
    summary: str
    """First paragraph of the docstring, on one line."""


def read_modules(root: Path | None = None) -> list[Module]:
    """Read every module below `root` (default: this Python's standard library), sorted by name."""
    root = root or Path(sysconfig.get_path("stdlib"))
    modules = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if _EXCLUDED_FOLDERS.intersection(parts) or any(
            p.startswith(_EXCLUDED_PREFIXES) for p in parts
        ):
            continue
        try:
            with tokenize.open(path) as file:
                source = file.read()
        except (SyntaxError, UnicodeDecodeError):
            continue
        modules.append(Module(name=".".join(parts).removesuffix(".__init__"), source=source))
    return sorted(modules, key=lambda module: module.name)


def strip_docstrings(source: str) -> str:
    """Return `source` with every module, class and function docstring removed, all else untouched.

    A body that was only a docstring becomes `pass`, so that the result still parses.
    """
    # ast counts columns in UTF-8 bytes, so the cutting is done on bytes
    lines = source.encode().splitlines(keepends=True)
    for node in _docstring_nodes(ast.parse(source)):
        body, docstring = node.body, node.body[0]
        first = docstring.lineno - 1
        last = (docstring.end_lineno or docstring.lineno) - 1
        before, after = (
            lines[first][: docstring.col_offset],
            lines[last][docstring.end_col_offset :],
        )
        filler = b"pass" if len(body) == 1 and not isinstance(node, ast.Module) else b""
        kept = before + filler + (after.lstrip(b" \t;") if not filler else after)
        lines[first : last + 1] = [kept] if kept.strip() else []
    return b"".join(lines).decode()


def sample_documented_functions(
    modules: list[Module], n_train: int, n_val: int
) -> tuple[list[DocumentedFunction], list[DocumentedFunction]]:
    """Sample functions with a docstring and a body of moderate length.

    Returns the training and the validation side.

    The order is that of a hash over module and function name: deterministic, and nearly the same
    for neighbouring Python versions. No source appears twice, on either side.
    """
    wanted = {False: n_train, True: n_val}
    taken: dict[bool, list[DocumentedFunction]] = {False: [], True: []}
    seen: set[str] = set()
    for candidate in sorted(_candidates(modules), key=_Candidate.order):
        side = taken[candidate.module.is_validation]
        if len(side) == wanted[candidate.module.is_validation]:
            continue
        function = candidate.extract()
        if function is not None and function.source not in seen:
            seen.add(function.source)
            side.append(function)
    return taken[False], taken[True]


def _docstring_nodes(tree: ast.Module) -> list[_Documentable]:
    """Nodes of `tree` that have a docstring, the last in the file first.

    In that order, cutting one out moves none of the rest.
    """
    nodes = [
        node
        for node in ast.walk(tree)
        if isinstance(node, _Documentable) and ast.get_docstring(node, clean=False) is not None
    ]
    return sorted(nodes, key=lambda node: node.body[0].lineno, reverse=True)


def _functions(
    node: ast.AST, prefix: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif not isinstance(child, ast.expr):
            yield from _functions(child, prefix)


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A function with a usable docstring, before its source is cut out."""

    module: Module
    qualname: str
    summary: str
    first_line: int
    last_line: int

    def order(self) -> bytes:
        return hashlib.sha256(
            f"{self.module.name}:{self.qualname}:{self.summary}".encode()
        ).digest()

    def extract(self) -> DocumentedFunction | None:
        """Cut the source out; None where it is too long, or shares its first line with others."""
        lines = self.module.source.splitlines(keepends=True)[self.first_line - 1 : self.last_line]
        margin = len(lines[0]) - len(lines[0].lstrip())
        text = "".join(line[margin:] if not line[:margin].strip() else line for line in lines)
        try:
            text = strip_docstrings(text).strip()
        except SyntaxError:
            return None
        if len(text) > MAX_SOURCE_CHARS:
            return None
        return DocumentedFunction(
            module=self.module, qualname=self.qualname, source=text, summary=self.summary
        )


def _candidates(modules: list[Module]) -> Iterator[_Candidate]:
    for module in modules:
        tree = module.parse()
        for qualname, node in _functions(tree, prefix="") if tree is not None else ():
            docstring = ast.get_docstring(node)
            if docstring is None or len(node.body) < 2:
                continue
            summary = " ".join(docstring.split("\n\n")[0].split())
            if MIN_SUMMARY_CHARS <= len(summary) <= MAX_SUMMARY_CHARS:
                yield _Candidate(
                    module=module,
                    qualname=qualname,
                    summary=summary,
                    first_line=node.lineno,
                    last_line=node.end_lineno or node.lineno,
                )
