"""Text and YAML files that a user names: read whole, or refused in one line that says what to do.

YAML is plain values under text keys, each key once. PyYAML takes the last of two equal keys, reads
`1:30` as 90 and `010` as 8, turns `no` into a key that is no text, and follows aliases however
often they multiply; here each of these is an error that names its line.
"""

import os
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from skip2bench.errors import Skip2BenchError


def read_text(path: Path, what: str) -> str:
    """Read a UTF-8 file, with a byte order mark or without.

    Args:
        path: The file.
        what: What it is, to name it in errors: "data file".

    Raises:
        Skip2BenchError: there is no such file, or it cannot be read, or it is not UTF-8.
    """
    name = f"{what} {str(path)!r}"
    if os.path.isdir(path):  # of a name that no system takes, Path.is_dir would raise
        raise Skip2BenchError(f"{name} is a folder; give a file")
    if not os.path.isfile(path):
        raise Skip2BenchError(f"{name} does not exist; check the path")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Skip2BenchError(
            f"{name} cannot be read ({error.strerror}); check its permissions"
        ) from error
    try:
        text = content.decode("utf-8-sig")  # Windows editors put a byte order mark first
    except UnicodeDecodeError as error:
        raise _wrong_encoding(name, path, content) from error
    if "\0" in text[:4]:  # Latin letters of UTF-16 are valid UTF-8 with NULs between them
        raise _wrong_encoding(name, path, content)
    return text


def check_folder(name: str, folder: Path | None) -> None:
    """Check that `folder` is one that can be written to, or can be made; nothing is written.

    Args:
        name: The option that gave it.
        folder: None is good.

    Raises:
        Skip2BenchError: it is a file, lies below one, or may not be written to.
    """
    if folder is None:
        return
    remedy = f"choose another --{name.replace('_', '-')}"
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        relation = "is" if nearest == folder else f"lies below {str(nearest)!r}, which is"
        raise Skip2BenchError(f"{name} {str(folder)!r} {relation} no folder; {remedy}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise Skip2BenchError(
            f"{name} {str(folder)!r} cannot be written to ({str(nearest)!r} is read-only here); "
            f"{remedy}"
        )


def _wrong_encoding(name: str, path: Path, content: bytes) -> Skip2BenchError:
    guess = _guess_encoding(content)
    if guess is None:
        return Skip2BenchError(f"{name} is no text (it holds binary data); give a UTF-8 text file")
    new = path.with_name(f"{path.stem}-utf8{path.suffix}")
    command = shlex.join(["iconv", "-f", guess, "-t", "UTF-8", str(path)])
    return Skip2BenchError(
        f"{name} is not UTF-8 but perhaps {guess}; convert it: {command} > {shlex.quote(str(new))}"
    )


def _guess_encoding(content: bytes) -> str | None:
    """What a file that is not UTF-8 may be in, by iconv's name; None where it is no text."""
    if content.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    if content.startswith((b"\x1f\x8b", b"PK", b"PAR1")):  # gzip, zip, Parquet
        return None
    if b"\0" in content[:4]:
        for guess, bytes_above in (("UTF-16BE", content[:1000:2]), ("UTF-16LE", content[1:1000:2])):
            if bytes_above.count(0) > len(bytes_above) / 2:
                return guess
    if b"\0" in content:
        return None
    try:
        text = content.decode("cp932")
    except UnicodeDecodeError:
        return "ISO-8859-1"
    has_kana = any("\u3040" <= char <= "\u30ff" or "\u4e00" <= char <= "\u9fff" for char in text)
    return "CP932" if has_kana else "ISO-8859-1"


MAX_CHARACTERS = 1_000_000
_MAX_VALUES = 100_000
"""Values of a file with its aliases written out."""
_TEXT_TAG, _MERGE_TAG = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def read_yaml(path: Path, what: str) -> Any:
    """Read one YAML document of plain values.

    Args:
        path: The file.
        what: What it is, to name it in errors: "config file".

    Raises:
        Skip2BenchError: it cannot be read, or is not what this module says.
    """
    return parse_yaml(read_text(path, what), f"{what} {str(path)!r}")


def parse_yaml(text: str, name: str) -> Any:
    """Parse what `read_yaml` reads; `name` names it in errors.

    Raises:
        Skip2BenchError: it is not what this module says.
    """
    if len(text) > MAX_CHARACTERS:
        raise Skip2BenchError(
            f"{name} has {len(text):,} characters; a configuration has at most {MAX_CHARACTERS:,}"
        )
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_values(node, {}) > _MAX_VALUES:
            raise Skip2BenchError(
                f"{name} has over {_MAX_VALUES:,} values with its aliases written out; shorten it"
            )
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise Skip2BenchError(f"{name} is not valid YAML: {_describe(error)}") from error
    except RecursionError as error:
        raise Skip2BenchError(f"{name} is nested too deeply; write it flat") from error


class _Loader(yaml.SafeLoader):
    """Safe: it makes plain values only, and no tag of Python's."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag not in (_TEXT_TAG, _MERGE_TAG):
                shown = key.value if isinstance(key, yaml.ScalarNode) else "[…]"
                raise _error(f"the key {shown!r} is no text to YAML; put it in quotes", key)
            if key.value in lines:
                problem = f"the key {key.value!r} is there already, in line {lines[key.value]}"
                raise _error(f"{problem}; keep one", key)
            lines[key.value] = line
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if not re.fullmatch(r"[-+]?(0|[1-9][0-9_]{0,30})", node.value):
            raise _error(f"{node.value!r} is no plain number; put text in quotes", node)
        return int(super().construct_yaml_int(node))

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        if ":" in node.value:
            raise _error(f"{node.value!r} is no plain number; put text in quotes", node)
        return float(super().construct_yaml_float(node))


_UNUSED = tuple(f":{name}" for name in ("binary", "timestamp", "omap", "pairs", "set"))
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if not str(tag).endswith(_UNUSED)
}


# dates stay text, as everything that reads these files takes them
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def _count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """Values below `node`, each alias counted as often as it is used."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in counts:
        if not counts[id(node)]:
            raise _error("an alias contains itself", node)
        return counts[id(node)]
    counts[id(node)] = 0  # it is open
    parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
    counts[id(node)] = 1 + sum(_count_values(part, counts) for part in parts)
    return counts[id(node)]


def _error(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _describe(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        reason = str(error).partition("\n")[0].replace("'<unicode string>'", "it")
        return f"{reason}; write plain text"
    problem = error.problem or error.context or "it cannot be parsed"
    problem = re.sub(
        r".* the tag 'tag:yaml.org,2002:(.*)'", r"the tag '!!\1' is not allowed", problem
    )
    mark = error.problem_mark or error.context_mark
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else problem
