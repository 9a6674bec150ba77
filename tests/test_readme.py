"""What README.md, README.ja.md and docs/ name is there: packages, commands, flags, files."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from skip2bench.cli.app import app
from skip2bench.cli.flags import normalise_flags

ROOT = next(path for path in Path(__file__).parents if (path / "pyproject.toml").is_file())
READMES = ("README.md", "README.ja.md")
PAGES = (*READMES, "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))
COMMANDS: Any = typer.main.get_command(app).commands
pytestmark = pytest.mark.skipif(not (ROOT / "results/reference").is_dir(), reason="not a checkout")


def _read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def _command_lines(page: str) -> list[str]:
    """Lines of the page's `bash` blocks, those that go on with a backslash joined."""
    blocks = re.findall(r"```bash\n(.*?)```", _read(page), flags=re.DOTALL)
    return [
        line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()
    ]


def _skip2bench_commands(page: str) -> list[list[str]]:
    """Arguments of each `skip2bench ...` in the page's `bash` blocks."""
    commands = []
    for line in _command_lines(page):
        words = shlex.split(line.partition(" > ")[0], comments=True)
        if "skip2bench" in words:
            commands.append(words[words.index("skip2bench") + 1 :])
    return commands


def _inline_code(page: str) -> list[str]:
    prose = re.sub(r"```.*?```", "", _read(page), flags=re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def _tree_of_packages(page: str) -> list[str]:
    """Names of the lines below `skip2bench/` in the tree of a README."""
    tree = _read(page).split("\nskip2bench/\n", 1)[1].split("```")[0]
    return re.findall(r"^  (\w+)/ +\S", tree, flags=re.MULTILINE)


@pytest.mark.parametrize("page", READMES)
def test_the_tree_has_every_package_once(page):
    packages = [path.parent.name for path in (ROOT / "skip2bench").glob("*/__init__.py")]
    named = _tree_of_packages(page)
    assert sorted(named) == sorted([*packages, "assets"])


@pytest.mark.parametrize("page", READMES)
def test_the_folders_beside_the_package_are_there(page):
    tree = _read(page).split("\nskip2bench/\n", 1)[1].split("```")[0]
    folders = re.findall(r"^(\w+)/", tree, flags=re.MULTILINE)
    assert len(folders) >= 6
    assert all((ROOT / folder).is_dir() for folder in folders)


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_ones_that_parse(page):
    for words in _skip2bench_commands(page):
        arguments = normalise_flags(words)
        command, name = COMMANDS[arguments.pop(0)], words[0]
        if hasattr(command, "commands"):
            command, name = command.commands[arguments.pop(0)], words[1]
        command.make_context(name, list(arguments))  # raises where one is unknown or misses a value


def test_the_readme_shows_every_command_that_a_newcomer_needs():
    shown = [words[0] for words in _skip2bench_commands("README.md")]
    shown_first = ["bench", "train", "compare", "tune", "report", "train", "generate", "export"]
    assert shown == [*shown_first, "compare", "report"]


@pytest.mark.parametrize("page", PAGES)
def test_flags_in_the_text_exist(page):
    known = {"--help"}
    for command in COMMANDS.values():
        for one in (command, *getattr(command, "commands", {}).values()):
            known.update(name for item in one.params for name in item.opts + item.secondary_opts)
    for code in _inline_code(page):
        flags = re.findall(r"--[a-z][\w.-]*", code)
        assert set(normalise_flags(flags)) <= known, f"{code} in {page}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_exist(page):
    for code in _inline_code(page):
        if match := re.match(r"skip2bench ([a-z]+)", code):
            assert match[1] in COMMANDS, f"{code} in {page}"


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page):
    targets = re.findall(r"^([\w-]+):", _read("Makefile"), flags=re.MULTILINE)
    named = [match[1] for line in _command_lines(page) if (match := re.match(r"make (\S+)", line))]
    named += [match[1] for code in _inline_code(page) if (match := re.match(r"make (\S+)", code))]
    assert set(named) <= set(targets)


@pytest.mark.parametrize("page", PAGES)
def test_scripts_that_are_run_exist(page):
    for line in _command_lines(page):
        for path in re.findall(r"(?:scripts|benchmarks|tests)/\S+", line):
            assert (ROOT / path).is_file(), f"{line} in {page}"


@pytest.mark.parametrize("page", PAGES)
def test_python_files_in_the_text_exist(page):
    for code in _inline_code(page):
        if re.fullmatch(r"[\w/]+\.py", code):
            places = (ROOT / code, ROOT / "skip2bench" / code)
            assert any(place.is_file() for place in places), f"{code} in {page}"


def test_both_readmes_say_the_same():
    assert _tree_of_packages("README.md") == _tree_of_packages("README.ja.md")
    ours, japanese = map(_skip2bench_commands, READMES)
    assert [words[0] for words in ours] == [words[0] for words in japanese]
    linked = [set(re.findall(r"\]\((docs/[\w.-]+)", _read(page))) for page in READMES]
    assert linked[1] - linked[0] == {"docs/guide.ja.md"}
    assert linked[0] <= linked[1]


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in _read(page)])
def test_imports_in_python_blocks_work(page):
    for block in re.findall(r"```python\n(.*?)```", _read(page), flags=re.DOTALL):
        for line in block.splitlines():
            if line.startswith(("import ", "from ")):
                exec(line, {})
