"""How a field of a configuration is an option, and how values become those of its type.

Values from flags and YAML are brought to the types of the fields, or refused.
"""

import difflib
from collections.abc import Collection, Iterable
from dataclasses import field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from skip2bench.config.blocks import blocks_text
from skip2bench.errors import Skip2BenchError

if TYPE_CHECKING:
    pass


def option(default: Any, text: str, **metadata: Any) -> Any:
    """A dataclass field whose `text` is also the flag's help."""
    return field(default=default, metadata={"help": text, **metadata})


MAX_COUNT = 10**9
"""Beyond it a count is a slip: nothing here can have or do so many."""
MAX_RANK = 2**16
MAX_RANKS = 4096
MAX_REPEATS = 100_000


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise a Skip2BenchError unless `value` is one of `choices`."""
    if value not in choices:
        raise Skip2BenchError(f"{name} is {value!r}; choose from {', '.join(choices)}")


def check_positive(name: str, value: int, most: int = MAX_COUNT) -> None:
    """Raise a Skip2BenchError unless `value` is from 1 to `most`."""
    if value < 1:
        raise Skip2BenchError(f"{name} is {value}; give 1 or more")
    if value > most:
        raise Skip2BenchError(f"{name} is {value}; give at most {most}")


Config = TypeVar("Config")


def coerce(config_class: type[Config], values: dict[str, Any]) -> dict[str, Any]:
    """Check `values` against the fields of `config_class` and bring them to the fields' types.

    A null on a field that takes none means its default.

    Raises:
        Skip2BenchError: an unknown key (the nearest known one is named) or a value of the wrong
            type.
    """
    hints = get_type_hints(config_class)
    listed = {item.name: item for item in fields(config_class)}  # type: ignore[arg-type]
    refuse_unknown(values, listed.keys())
    result = {}
    for key, value in values.items():
        if value is None and not _takes_none(hints[key]):
            continue
        if get_origin(hints[key]) is tuple and isinstance(value, str | int | float):
            # what may be repeated has commas of its own: blocks
            is_one = not isinstance(value, str) or listed[key].metadata.get("repeatable")
            value = [value] if is_one else [part.strip() for part in str(value).split(",")]
        result[key] = _coerce_value(key, value, hints[key])
    return result


def refuse_unknown(values: Iterable[str], known: Collection[str], prefix: str = "") -> None:
    """Raise a Skip2BenchError for the first key that is not known; it names the nearest one.

    Args:
        values: Keys that were given.
        known: Keys that there are.
        prefix: Where they stand, to name them in full.
    """
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            remedy = (
                f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"
            )
            raise Skip2BenchError(f"unknown key {prefix + str(key)!r}; {remedy}")


def _takes_none(hint: Any) -> bool:
    return NoneType in get_args(hint)


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


def _coerce_value(key: str, value: Any, hint: Any) -> Any:
    """Bring one value to the type of its field; numbers may come as text (YAML reads 2e-4 so)."""
    if value is None:
        return None
    words = [word for choice in get_args(hint) for word in _words_of(choice)]
    if value in words:
        return value
    if get_origin(hint) in (Union, UnionType):
        hint = next(inner for inner in get_args(hint) if inner is not NoneType)
    if get_origin(hint) is Literal:
        return value  # __post_init__ names the choices
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple) or None in value:
            raise Skip2BenchError(f"{key} is {value!r}; give a list without empty entries")
        kind = get_args(hint)[0]
        items = (blocks_text(item) if key == "blocks" else item for item in value)
        return tuple(_coerce_value(key, item, kind) for item in items)
    if hint is Path or hint is str:
        return _coerce_text(key, value, hint)
    made = (value if isinstance(value, bool) else None) if hint is bool else _number(value, hint)
    if made is None:
        wanted = " or ".join([_KINDS[hint], *words])
        raise Skip2BenchError(f"{key} is {value!r}; give {wanted}")
    return made


def _words_of(hint: Any) -> tuple[Any, ...]:
    """Choices of a Literal."""
    return get_args(hint) if get_origin(hint) is Literal else ()


def _number(value: Any, hint: type[int] | type[float]) -> int | float | None:
    """The value as a number of that type; None where it is none."""
    is_fraction = hint is int and isinstance(value, float)
    if not isinstance(value, int | float | str) or isinstance(value, bool) or is_fraction:
        return None
    try:
        return hint(value)
    except (ValueError, OverflowError):  # no number, or one beyond all floats
        return None


def _coerce_text(key: str, value: Any, hint: type) -> Any:
    if not isinstance(value, str | Path):
        raise Skip2BenchError(f"{key} is {value!r}; give {_KINDS.get(hint, 'text')}")
    if not str(value).strip():
        raise Skip2BenchError(f"{key} is empty; give {_KINDS.get(hint, 'text')}, or leave it out")
    if "\0" in str(value):
        raise Skip2BenchError(f"{key} is {str(value)!r}, which holds a NUL; take it out")
    return hint(value)
