"""Methods are told apart by what they are; their names stand in the table, and in configuration."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import skip2bench
from skip2bench.config.methods import METHODS, MethodName, find_method, list_names

PACKAGE = Path(skip2bench.__file__).parent
TABLE = PACKAGE / "config" / "methods.py"
CONFIGURATION = PACKAGE / "config"
"""Defaults, flows, and the keys of files that say which method they mean."""
UNMISTAKABLE = set(METHODS) - {"full", "last", "bias"}


def test_the_names_that_are_typed_are_those_of_the_table():
    assert get_args(MethodName) == tuple(METHODS)


def test_what_follows_from_what_a_method_trains():
    def having(name: str) -> set[str]:
        return {method.name for method in METHODS.values() if getattr(method, name)}

    top = {"lora-top", "lora-top-uncached"}
    assert having("walks_blocks_backward") == {
        *("lora", "lora-all", "full", "full+lora", "bias"),
        *top,
    }
    assert having("has_lora") == {"lora", "lora-all", "lora-last", "full+lora", *top}
    assert having("is_traditional") == {"lora"}
    assert list_names("is_skip") == "skip and skip2"
    assert list_names("is_cached") == "lora-top and skip2"
    assert list_names("serves_rows") == "skip2"


@pytest.mark.parametrize("name", [None, "skip3", ["lora"], 7])
def test_a_method_of_another_version_has_no_property(name):
    method = find_method(name)
    flags = (method.is_skip, method.is_cached, method.is_traditional, method.has_lora)
    assert (any(flags), method.walks_blocks_backward, method.rank_name) == (False, False, None)


def texts(node: ast.AST | None) -> Iterator[str]:
    """Strings that an expression is or lists."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        for item in node.elts:
            yield from texts(item)


def asked_for(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of every question whether something is, or begins like, a method's name."""
    for node in ast.walk(tree):
        asked: list[ast.AST | None] = []
        if isinstance(node, ast.Compare):
            asked = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            asked = [node.value]
        elif isinstance(node, ast.Dict):
            asked = list(node.keys)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            asked = list(node.args) if node.func.attr in ("startswith", "endswith") else []
        for one in asked:
            yield from ((node.lineno, text) for text in texts(one) if text in METHODS)


@pytest.mark.parametrize(
    "question",
    [
        *('m == "skip2"', 'm in ("skip", "x")', '"lora" in m', 'm.startswith("skip")'),
        *('{"lora": 1}[m]', 'match m:\n case "full":\n  pass'),
    ],
)
def test_a_question_for_a_name_is_seen(question):
    assert list(asked_for(ast.parse(question)))


def test_no_module_but_the_table_asks_for_a_method_by_its_name():
    modules = [path for path in sorted(PACKAGE.rglob("*.py")) if path != TABLE]
    found = [
        f"{path.name}:{line} asks for {name!r}"
        for path in modules
        for line, name in asked_for(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert len(modules) > 50
    assert found == []


def test_no_module_beside_the_configuration_names_a_method_at_all():
    found = [
        f"{path.name}:{node.lineno} says {node.value!r}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent != CONFIGURATION
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in UNMISTAKABLE
    ]
    assert found == []
