"""How a field of a configuration is an option, and how values become those of its type.

Values from flags and YAML are brought to the types of the fields, or refused.
"""

import difflib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from skip2bench.config.blocks import blocks_text
from skip2bench.errors import Skip2BenchError

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


Role = Literal[
    # What is compared: what trains. Runs that differ in it are different configurations.
    "adapter",
    # How the same adapter is computed: configurations of their own as well, and no condition, since
    # not every method has it, which would leave nothing to compare with.
    "variant",
    # What must be equal for runs to be compared.
    "condition",
    # A condition that also decides what the frozen layers compute: a Skip-Cache is kept for it.
    "backbone",
    # What a run reads. Runs had the same where environment.json has the same hash.
    "input",
    # What each configuration is tried at; the best is compared.
    "tuned",
    # What repetitions of a configuration differ in.
    "repetition",
    # When something is measured. It changes nothing of what is trained.
    "measuring",
    # Where a run keeps what it needs and what it writes beside its figures, which are the same.
    "place",
    # Of this call alone: where it writes, what it makes of what is there. No run records it.
    "call",
    # Which runs a comparison has.
    "matrix",
]
CONDITIONS: tuple[Role, ...] = ("condition", "backbone")
"""Roles in which runs must agree to be compared."""


def option(default: Any, text: str, *, role: Role, **facets: Any) -> Any:
    """A dataclass field that is also a flag and a YAML key.

    Args:
        default: Its value where none is given.
        text: The flag's help; a field without one gets no flag.
        role: What it is for.
        facets: What few options have: `recorded_as`, the key of `summary.json` with what the run
            made of it, which then counts and not what was asked for; `taken_by`, the property of a
            method that takes it; `set_by_matrix`, what to do instead where a comparison sets it for
            each run; `repeatable`; `one_way`, for a switch that has no --no form; `also`, the
            flag's other name; `is_path`, for text that may be a path.
    """
    return field(default=default, metadata={"help": text, "role": role, **facets})


def same_option(config: Any, name: str) -> Any:
    """A field that is an option of another configuration: its default, help and facets."""
    (item,) = (item for item in fields(config) if item.name == name)
    return field(default=item.default, metadata=item.metadata)


def check_pairs(name: str, texts: Sequence[str], *, may_be_bare: bool = False) -> None:
    """Raise a Skip2BenchError for what is not NAME=VALUE, or a NAME twice.

    Args:
        name: Of the option.
        texts: Its values.
        may_be_bare: A NAME alone is one, too.
    """
    for text in texts:
        key, equals, value = text.partition("=")
        if not key.strip() or not (value.strip() or (may_be_bare and not equals)):
            raise Skip2BenchError(f"{name} has {text!r}; write NAME=VALUE")
    if len(read_pairs(texts)) < len(texts):
        raise Skip2BenchError(f"{name} has a name twice; give each once")


def read_pairs(texts: Sequence[str]) -> dict[str, str]:
    """Values of an option that holds NAME=VALUE, by name; of a NAME alone the empty text."""
    return {key.strip(): value for key, _, value in (text.partition("=") for text in texts)}


def list_options(config: Any, *roles: Role) -> Iterator[Field[Any]]:
    """Options of a configuration or its class that have one of the roles, in their order."""
    return (item for item in fields(config) if item.metadata["role"] in roles)


def option_names(config: Any, *roles: Role) -> list[str]:
    """Names of the options that `list_options` gives."""
    return [item.name for item in list_options(config, *roles)]


def default_of(item: Field[Any]) -> Any:
    """An option's value where none is given."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def is_switch(item: Field[Any]) -> bool:
    """True for a condition or variant that is off unless it is asked for."""
    is_off = item.default is False or (item.default is None and item.metadata["role"] in CONDITIONS)
    is_open = "recorded_as" not in item.metadata  # else None means what the run makes of it
    return item.metadata["role"] in (*CONDITIONS, "variant") and is_off and is_open


def switch_names(config: Any, *roles: Role) -> list[str]:
    """Names of the switches of a configuration or its class that have one of the roles."""
    return [item.name for item in list_options(config, *roles) if is_switch(item)]


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
        is_word = value in _list_words(hints[key])
        if _takes_list(hints[key]) and isinstance(value, str | int | float) and not is_word:
            # what may be repeated has commas of its own: blocks
            is_one = not isinstance(value, str) or listed[key].metadata.get("repeatable")
            value = [value] if is_one else [part.strip() for part in str(value).split(",")]
        if listed[key].metadata.get("is_path"):
            value = expand_path(key, value)
        result[key] = _coerce_value(key, value, hints[key])
    return result


def refuse_unknown(values: Iterable[str], known: Collection[str], prefix: str = "") -> None:
    """Raise a Skip2BenchError for keys that are not known, all of them, with the nearest ones.

    Args:
        values: Keys that were given.
        known: Keys that there are.
        prefix: Where they stand, to name them in full.
    """
    unknown = [str(key) for key in values if key not in known]
    if not unknown:
        return
    nearest = {
        key: difflib.get_close_matches(key.rpartition(".")[2], known, n=1) for key in unknown
    }
    all_known = f"known keys: {', '.join(sorted(known))}"
    if len(unknown) == 1:
        (near,) = nearest.values()
        remedy = f"did you mean {near[0]}?" if near else all_known
        raise Skip2BenchError(f"unknown key {prefix + unknown[0]!r}; {remedy}")
    named = ", ".join(
        f"{prefix + key!r}" + (f" (did you mean {near[0]}?)" if near else "")
        for key, near in nearest.items()
    )
    remedy = "" if all(nearest.values()) else f"; {all_known}"
    raise Skip2BenchError(f"unknown keys {named}{remedy}")


def _takes_none(hint: Any) -> bool:
    return NoneType in get_args(hint)


def _takes_list(hint: Any) -> bool:
    return any(get_origin(kind) is tuple for kind in (hint, *get_args(hint)))


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


def _coerce_value(key: str, value: Any, hint: Any) -> Any:
    """Bring one value to the type of its field; numbers may come as text (YAML reads 2e-4 so)."""
    if value is None:
        return None
    words = _list_words(hint)
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
    if hint is Path:
        value = expand_path(key, value)
    if hint is Path or hint is str:
        return _coerce_text(key, value, hint)
    made = (value if isinstance(value, bool) else None) if hint is bool else _number(value, hint)
    if made is None:
        wanted = " or ".join([_KINDS[hint], *words])
        raise Skip2BenchError(f"{key} is {value!r}; give {wanted}")
    return made


def _list_words(hint: Any) -> list[Any]:
    """Words that stand beside other types, as `auto` beside a number."""
    literals = (kind for kind in get_args(hint) if get_origin(kind) is Literal)
    return [word for literal in literals for word in get_args(literal)]


def _number(value: Any, hint: type[int] | type[float]) -> int | float | None:
    """The value as a number of that type; None where it is none."""
    is_fraction = hint is int and isinstance(value, float)
    if not isinstance(value, int | float | str) or isinstance(value, bool) or is_fraction:
        return None
    try:
        return hint(value)
    except (ValueError, OverflowError):  # no number, or one beyond all floats
        return None


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def expand_path(key: str, value: Any) -> Any:
    """A path with `~` and variables of the environment written out; anything else as it is.

    Raises:
        Skip2BenchError: it is an address.
    """
    if not isinstance(value, str):
        return value
    if _ADDRESS.match(value):
        raise Skip2BenchError(
            f"{key} is {value!r}: addresses are not read; download it, and give the path"
        )
    return os.path.expanduser(os.path.expandvars(value))


def _coerce_text(key: str, value: Any, hint: type) -> Any:
    if not isinstance(value, str | Path):
        raise Skip2BenchError(f"{key} is {value!r}; give {_KINDS.get(hint, 'text')}")
    if not str(value).strip():
        raise Skip2BenchError(f"{key} is empty; give {_KINDS.get(hint, 'text')}, or leave it out")
    if "\0" in str(value):
        raise Skip2BenchError(f"{key} is {str(value)!r}, which holds a NUL; take it out")
    return hint(value)


def to_plain(config: Any) -> dict[str, Any]:
    """The configuration as YAML can hold it, by field name, to be read back and run again.

    What holds for one call alone is left out, such as where it writes: a repetition goes elsewhere.
    """
    of_call = option_names(config, "call")
    own = (item.name for item in fields(config) if item.name not in of_call)
    return {name: _as_plain(getattr(config, name)) for name in own}


def _as_plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: str(it) if isinstance(it, Path) else it for key, it in value.items()}
    return list(value) if isinstance(value, tuple) else value
