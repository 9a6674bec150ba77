"""Write docs/reference.md: every command and flag, from the command line itself.

    python scripts/write_reference.py            # writes the page
    python scripts/write_reference.py --check    # exit status 1 where the page is not up to date

The words are those of `--help`; a default stands in a column of its own, and a flag that another
command shares with `train`, word for word, is named there and described once.
"""

import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import typer.main

from made_files import write_or_check
from skip2bench.cli.app import app

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference.md"
OPENING = """\
# Commands and flags

Made from the command line by `scripts/write_reference.py`; `skip2bench COMMAND --help` says the
same.

- A flag of `train` or `compare` is also a YAML key and an argument in Python: `--max-steps`,
  `max_steps`. A YAML file (`--config`) stands before the defaults, and a flag before both.
- LitGPT's spellings are taken too: `--out_dir`, `--train.max_steps`,
  `--skip2lora_block_indices '[0, 1]'`.
- Sizes are typed as `500MB` or `2GiB`, lists with commas.
- N is a whole number, X any number.
"""
DEFAULT = re.compile(r" ?\[default: (?P<value>[^\]]*)\]$")
LETTERS = {bool: "", int: " N", float: " X", Path: " PATH"}


def render_page() -> str:
    """Text of the page: a section a command, those of `cache` among them."""
    group: Any = typer.main.get_command(app)
    shared = _rows(group.commands["train"])
    return "\n".join([OPENING, *_sections(group, "", shared)])


def _sections(group: Any, path: str, shared: dict[str, str]) -> list[str]:
    result = []
    seen: dict[str, str] = {}  # rows of `train`, once its section is written
    for name, command in group.commands.items():
        result.append(_section(command, f"{path}{name}", seen))
        if hasattr(command, "commands"):
            result += _sections(command, f"{path}{name} ", shared)
        if name == "train":
            seen = shared
    return result


def _section(command: Any, name: str, seen: dict[str, str]) -> str:
    """One command; rows that were `seen` are named, not repeated."""
    text = [f"## {name}", "", " ".join(command.help.split()), ""]
    arguments = [item for item in command.params if item.param_type_name == "argument"]
    words = [item.name.upper() if item.required else f"[{item.name.upper()}]" for item in arguments]
    rows = _rows(command)
    ending = "COMMAND" if hasattr(command, "commands") else "[FLAGS]" if rows else ""
    text += [f"    skip2bench {' '.join([name, *words, ending])}".rstrip(), ""]
    for word, argument in zip(words, arguments, strict=True):
        text += [f"- `{word}`: {argument.help}", ""]
    own = [row for flag, row in rows.items() if seen.get(flag) != row]
    if own:
        text += ["| flag | default | |", "|---|---|---|", *own, ""]
    if len(own) < len(rows):
        names = ", ".join(flag for flag, row in rows.items() if seen.get(flag) == row)
        text += [*textwrap.wrap(f"As for `train`: {names}.", 110, break_on_hyphens=False), ""]
    return "\n".join(text)


def _rows(command: Any) -> dict[str, str]:
    """Table rows of the options, by flag."""
    kinds = _kinds(command.callback)
    options = [item for item in command.params if item.param_type_name == "option"]
    return {f"`{item.opts[0]}`": _row(item, kinds.get(item.name, bool)) for item in options}


def _row(option: Any, kind: type) -> str:
    value = f" {option.metavar}" if option.metavar else LETTERS.get(kind, " TEXT")
    names = [f"`{name}{value}`" for name in (*option.opts, *option.secondary_opts)]
    default, text = "required" if option.required else "", option.help
    if match := DEFAULT.search(text):
        default, text = match["value"], text[: match.start()]
    elif isinstance(option.default, str | int | float) and not isinstance(option.default, bool):
        default = default or str(option.default)  # of a command whose options are its arguments
    if option.multiple and "repeat" not in text:
        text += " Repeatable."
    cells = (cell.replace("|", "\\|") for cell in (" ".join(names), default, text))
    return f"| {' | '.join(cells)} |"


def _kinds(callback: Callable[..., Any] | None) -> dict[str, type]:
    """Type of each parameter's value: int, where it is `Annotated[Optional[int], ...]`."""
    parameters = inspect.signature(callback).parameters if callback else {}
    annotated = {name: get_args(item.annotation)[0] for name, item in parameters.items()}
    return {name: (*get_args(kind), kind)[0] for name, kind in annotated.items()}


def main() -> int:
    """Write the page, or compare what is there with what would be written."""
    return write_or_check({PAGE: render_page()}, __doc__.splitlines()[0])


if __name__ == "__main__":
    sys.exit(main())
