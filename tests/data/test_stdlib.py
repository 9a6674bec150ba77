import ast

import pytest

from skip2bench.data.stdlib import (
    Module,
    read_modules,
    sample_documented_functions,
    strip_docstrings,
)

SOURCE = '''"""Module docstring."""
import os  # a comment stays


class Reader:
    """Read things.

    At length — with a dash that is three bytes long.
    """

    def read(self, n):
        """Read up to n bytes and return them.

        More text.
        """
        return os.read(self.fd, n)

    def close(self): "One-line body that is only a docstring."

    async def wait(self):
        "Wait until there is something to read."; await self.ready()
        return """not a docstring"""


class Empty:
    """Nothing but this."""
'''


def test_docstrings_go_and_all_else_stays():
    stripped = strip_docstrings(SOURCE)
    tree = ast.parse(stripped)
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    assert [ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, kinds)] == [None] * 6
    for kept in ("# a comment stays", 'return """not a docstring"""', "await self.ready()"):
        assert kept in stripped
    for gone in ("Module docstring", "dash", "More text", "only a docstring", "Nothing but"):
        assert gone not in stripped


def test_the_whole_standard_library_is_stripped_to_valid_source():
    modules = [module for module in read_modules() if module.parse() is not None]
    assert len(modules) > 300
    for module in modules[::12]:
        ast.parse(strip_docstrings(module.source))


def test_functions_come_without_docstring_and_with_summary():
    train, val = sample_documented_functions([Module(name="urllib.x", source=SOURCE)], 9, 9)
    functions = {f.qualname: f for f in val}
    assert train == []
    assert set(functions) == {"Reader.read", "Reader.wait"}  # close() has no body to read
    function = functions["Reader.read"]
    assert function.summary == "Read up to n bytes and return them."
    assert function.source == "def read(self, n):\n    return os.read(self.fd, n)"
    assert functions["Reader.wait"].source.startswith(
        "async def wait(self):\n    await self.ready()"
    )


@pytest.fixture(scope="module")
def sampled():
    return sample_documented_functions(read_modules(), 2000, 200)


def test_there_are_enough_functions_and_the_sides_share_no_package(sampled):
    train, val = sampled
    assert (len(train), len(val)) == (2000, 200)
    packages = [{f.module.name.partition(".")[0] for f in side} for side in sampled]
    assert not packages[0] & packages[1]
    assert len(packages[1]) > 10
    sources = [f.source for f in train + val]
    assert len(set(sources)) == len(sources)


def test_no_summary_is_left_in_its_source(sampled):
    for function in sampled[1]:
        tree = ast.parse(function.source)
        assert ast.get_docstring(tree.body[0]) is None


def test_sampling_is_deterministic(sampled):
    again = sample_documented_functions(read_modules(), 50, 10)
    assert [f.source for f in again[0]] == [f.source for f in sampled[0][:50]]
