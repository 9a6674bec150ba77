"""Files of results read back as plain data, whatever is in them: text, JSON and YAML.

Results may come from a killed process, a full disk, another program or a stranger. What cannot be
trusted raises `DamagedFileError`, whose text is the reason alone; no file makes the reader crash,
hang, run code, or quote content that it should not show.
"""

import json
import math
import os
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from skip2bench.io.record import AnyRecord, Keys, explain, name_place, walk

MAX_BYTES = 64 * 2**20
"""More than any file of results has."""
MAX_DEPTH = 50
"""Nesting beyond this is an attack on the readers, not a result."""
MAX_YAML_VALUES = 100_000
"""YAML's aliases let a few lines stand for billions of values."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first is ten times as fast


class DamagedFileError(ValueError):
    """What is wrong with a file of results, in a few words and without a remedy."""


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, without a byte order mark; line ends as they are.

    Raises:
        DamagedFileError: it is no readable file of a sensible size, or not in UTF-8.
    """
    try:
        if path.is_dir():
            raise DamagedFileError(f"{path.name} is a folder, where a file was expected")
        if not path.exists():
            raise DamagedFileError(f"{path.name} is a link to nothing, or missing")
        if not path.is_file():
            raise DamagedFileError(f"{path.name} is no regular file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DamagedFileError(f"{path.name} cannot be opened: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise DamagedFileError(f"{path.name} is larger than {MAX_BYTES // 2**20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamagedFileError(
            f"{path.name} is not in UTF-8 ({error.reason} at byte {error.start})"
        ) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file: finite numbers and whole characters only.

    Raises:
        DamagedFileError: the file cannot be read or is no such JSON.
    """
    return parse_json(path.name, read_text(path))


def read_optional(kind: type[AnyRecord], path: Path) -> AnyRecord | None:
    """The record in a JSON file that may not be there; None then.

    Raises:
        DamagedFileError: the file cannot be read, or holds what cannot be trusted.
    """
    if not os.path.lexists(path):
        return None
    try:
        return kind.read(read_json(path))
    except ValidationError as error:
        raise DamagedFileError(f"{path.name}: {explain(error)}") from error


def parse_json(name: str, text: str) -> Any:
    """As `read_json`, of a text; its errors begin with `name`."""
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        reason = (
            "is empty" if not text.strip() else f"is no JSON: {error.msg} (line {error.lineno})"
        )
        raise DamagedFileError(f"{name} {reason}") from error
    except RecursionError as error:
        raise DamagedFileError(f"{name} is nested too deeply") from error
    except ValueError as error:  # _refuse_constant's, or Python's limit on the digits of a number
        reason = str(error) if isinstance(error, DamagedFileError) else "holds an enormous number"
        raise DamagedFileError(f"{name} {reason}") from error
    _check_plain(name, content)
    return content


def read_yaml(path: Path) -> Any:
    """The content of a YAML file of plain data; a tag that asks for code is refused, not run.

    Raises:
        DamagedFileError: the file cannot be read or is no such YAML.
    """
    text = read_text(path)
    try:
        _check_yaml_events(path.name, text)
        content = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        # without the error's snippet: the file may be a link to something that is not to be shown
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise DamagedFileError(f"{path.name} is no plain YAML: {error.problem}{line}") from error
    except yaml.YAMLError as error:
        raise DamagedFileError(f"{path.name} holds characters that YAML does not allow") from error
    except DamagedFileError:
        raise
    except (ValueError, TypeError, RecursionError) as error:  # a date such as 2026-99-99
        raise DamagedFileError(f"{path.name} holds a value that cannot be read") from error
    _check_plain(path.name, content, max_values=MAX_YAML_VALUES)
    return content


def _refuse_constant(name: str) -> float:
    raise DamagedFileError(f"holds {name}, which is no number")


def _check_yaml_events(name: str, text: str) -> None:
    """Refuse what the loader must not meet.

    Deep nesting would end the whole process in libyaml's loader, and merge keys can be made to
    double at every line.
    """
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise DamagedFileError(f"{name} is nested too deeply")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
            raise DamagedFileError(f"{name} has merge keys, which result files do not have")


def _check_plain(name: str, content: Any, max_values: int | None = None) -> None:
    """Refuse what the report cannot write down again.

    Raises:
        DamagedFileError: a value is of another type than JSON's, not finite, too deep, or holds
            half of a surrogate pair; or there are more than `max_values`.
    """
    for number, (keys, value) in enumerate(walk(content)):
        if max_values is not None and number >= max_values:
            raise DamagedFileError(f"{name} stands for more than {max_values:,} values")
        if len(keys) > MAX_DEPTH:
            raise DamagedFileError(f"{name} is nested too deeply")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise DamagedFileError(f"{name}: {key!r} is no text, as a key must be")
                _check_characters(name, key)
        else:
            _check_plain_value(name, value, keys)


def _check_plain_value(name: str, value: Any, keys: Keys) -> None:
    if isinstance(value, str):
        _check_characters(name, value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise DamagedFileError(f"{name}: {name_place(keys)} is {value}, no finite number")
    elif isinstance(value, date):
        place = name_place(keys)
        raise DamagedFileError(f"{name}: {place} is a date, where text or a number belongs")
    elif not isinstance(value, int | float | list | None):
        raise DamagedFileError(f"{name}: {name_place(keys)} is no plain value")


def _check_characters(name: str, text: str) -> None:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise DamagedFileError(f"{name} holds half of a surrogate pair")
