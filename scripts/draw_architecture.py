"""Draw docs/architecture.svg: the packages of skip2bench in their layers, and their real imports.

    python scripts/draw_architecture.py            # writes the picture
    python scripts/draw_architecture.py --check    # exit status 1 where it is not up to date

Packages are the folders of `skip2bench/`; their words are the first line of their `__init__.py`. A
dot says that the row's package imports from the column's, at a module's top or inside a function;
one that does not go down a layer is red. So the picture changes when an edge between packages does.
"""

import ast
import re
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

from made_files import write_or_check

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"
TORCH_FREE = ("cli", "config", "io", "results", "report", "errors")
LEGEND = (
    "A dot: the row's package imports from the column's.",
    "Green: without torch. Red: an import that does not go down a layer.",
)

MARGIN, NAME_WIDTH, WORDS_WIDTH, CELL, ROW_HEIGHT, LAYER_GAP, HEAD = 16, 108, 336, 30, 40, 7, 78


def _read_layers() -> dict[str, int]:
    """Number of each package's layer, from the top; as import-linter has them in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(r"^layers = \[(.*?)^\]", text, flags=re.MULTILINE | re.DOTALL)
    assert match
    rows = re.findall(r'"([^"]+)"', match[1])
    return {name: index for index, row in enumerate(rows) for name in row.split(" | ")}


LAYER = _read_layers()


@dataclass
class Package:
    """A folder of modules, or a single module that is a layer by itself."""

    name: str
    words: str = ""
    imports: set[str] = field(default_factory=set)


def read_packages(folder: Path) -> dict[str, Package]:
    """The packages below `folder`, with what each of them imports from the others.

    Raises:
        SystemExit: there is a package in no layer.
    """
    packages: dict[str, Package] = {}
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).parts[0].removesuffix(".py")
        if name in ("__init__", "__main__"):
            continue
        package = packages.setdefault(name, Package(name))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path in (folder / name / "__init__.py", folder / f"{name}.py"):
            package.words = (ast.get_docstring(tree) or "").partition("\n")[0]
        package.imports |= set(_imported(tree, folder.name)) - {name}
    if unknown := sorted(packages.keys() - LAYER.keys()):
        raise SystemExit(f"no layer for {', '.join(unknown)}; give it one in pyproject.toml")
    return packages


def _imported(tree: ast.AST, root: str) -> Iterable[str]:
    """First names below `root` of all that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []  # what types alone need is no import at run time
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == root and len(parts) > 1 and not parts[1].startswith("__"):
                yield parts[1]


def render_picture(packages: dict[str, Package]) -> str:
    """The picture as SVG text; the same packages give the same bytes."""
    names = [name for name in LAYER if name in packages]
    left = MARGIN + NAME_WIDTH + WORDS_WIDTH
    x = {name: left + CELL * index + CELL // 2 for index, name in enumerate(names)}
    y = {}  # upper edges of the rows; layers stand apart
    bottom = MARGIN + HEAD
    for name, before in zip(names, [names[0], *names], strict=False):
        y[name] = bottom + (LAYER_GAP if LAYER[before] != LAYER[name] else 0)
        bottom = y[name] + ROW_HEIGHT
    width, height = left + CELL * len(names) + MARGIN, bottom + 52
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        "<title>The packages of skip2bench in their layers, and what they import</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for name in names:
        parts += _draw_row(packages[name], y[name], width)
        parts.append(
            f'<text transform="translate({x[name] + 4} {MARGIN + HEAD - 8}) rotate(-60)" '
            f'fill="#334">{name}</text>'
        )
        parts += _draw_dots(packages[name], x, y[name] + ROW_HEIGHT // 2)
    for index, line in enumerate(LEGEND):
        parts.append(f'<text x="{MARGIN}" y="{height - 30 + 17 * index}" fill="#556">{line}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _draw_row(package: Package, y: int, width: int) -> list[str]:
    fill, stroke = ("#e3f3e6", "#4a8f5a") if package.name in TORCH_FREE else ("#e6edf8", "#4a6fa5")
    lines = textwrap.wrap(package.words, 54, max_lines=2, placeholder=" …")
    first = y + 24 - 8 * (len(lines) - 1)
    return [
        f'<rect x="{MARGIN}" y="{y + 1}" width="{width - 2 * MARGIN}" '
        f'height="{ROW_HEIGHT - 2}" rx="4" fill="#f6f8fa"/>',
        f'<rect x="{MARGIN}" y="{y + 1}" width="{NAME_WIDTH - 10}" height="{ROW_HEIGHT - 2}" '
        f'rx="4" fill="{fill}" stroke="{stroke}"/>',
        f'<text x="{MARGIN + 9}" y="{y + 25}" font-size="14" font-weight="bold" fill="#112">'
        f"{package.name}</text>",
        *(
            f'<text x="{MARGIN + NAME_WIDTH}" y="{first + 15 * index}" fill="#223">'
            f"{escape(line)}</text>"
            for index, line in enumerate(lines)
        ),
    ]


def _draw_dots(package: Package, x: dict[str, int], y: int) -> Iterable[str]:
    yield f'<circle cx="{x[package.name]}" cy="{y}" r="3" fill="#9ab"/>'  # the diagonal
    for target in (target for target in x if target in package.imports):
        fill = "#4a6fa5" if LAYER[target] > LAYER[package.name] else "#c0392b"
        yield (
            f'<circle cx="{x[target]}" cy="{y}" r="8" fill="{fill}">'
            f"<title>{package.name} imports {target}</title></circle>"
        )


def main() -> int:
    """Write the picture, or compare what is there with what would be written."""
    text = render_picture(read_packages(ROOT / "skip2bench"))
    return write_or_check({PICTURE: text}, __doc__.splitlines()[0])


if __name__ == "__main__":
    sys.exit(main())
