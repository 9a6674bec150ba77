"""Records: what a file of results holds, defined once to be written, read, checked and documented.

A record is a frozen pydantic model. Its fields' types are the units of result files (`Seconds`,
`Bytes`, ...), with the bounds within which a figure can be shown and computed with; a figure that
was not measured is None. Who reads a file judges every value by them (`Record.read`); what a run
has measured is written whatever it is, as its figures must not be lost. Keys of a newer version are
kept and stand after the known ones. Only what was set is written, in the order of the fields. Which
records there are is other modules' business.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from skip2bench.errors import printable

_LARGEST = 1e30
"""Beyond this, and below its inverse, ratios and their intervals would leave what floats hold."""
_FOREIGN_UNITS = {
    "seconds": ("_minutes", "_hours", "_ms", "_milliseconds", "_microseconds"),
    "bytes": ("_kb", "_mb", "_gb", "_kib", "_mib", "_gib"),
    "ratios": ("_percent", "_pct"),
}
_MAPPING_ERRORS = ("model_type", "dict_type")
_LIST_ERRORS = ("list_type", "tuple_type")

_READ = {"is_read": True}
"""Context of a validation that judges."""
Keys = tuple[str | int, ...]
AnyRecord = TypeVar("AnyRecord", bound="Record")


class Record(BaseModel):
    """Content of a file of results, or a part of it."""

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _name_missing(cls, content: Any) -> Any:
        """Let the type of a field that must be there say that it is not."""
        if not isinstance(content, dict):
            return content
        return {**dict.fromkeys(_list_required(cls)), **content}

    @classmethod
    def read(cls: type[AnyRecord], content: Any) -> AnyRecord:
        """The record of what a file holds, if it can be trusted.

        Raises:
            ValidationError: a value is not what its name says; see `explain`.
        """
        return cls.model_validate(content, context=_READ)

    @model_validator(mode="after")
    def _check_others(self, info: ValidationInfo) -> "Record":
        """Check what this version does not know: it is kept, so it must be harmless."""
        if not is_read(info):
            return self
        for keys, value in walk(self.model_extra or {}):
            if keys and isinstance(keys[-1], str):
                _check_unit(keys[-1], keys)
            is_figure = isinstance(value, int | float) and not isinstance(value, bool)
            if is_figure and not is_number(value):
                raise refusal(f"is {describe(value)}, where {_SENSIBLE} was expected", *keys)
        return self

    def to_plain(self) -> dict[str, Any]:
        """As JSON and YAML can hold it: what was set, in the order of the fields."""
        return self.model_dump(exclude_unset=True)

    @classmethod
    def of(cls: type[AnyRecord], *parts: "Record", **values: Any) -> AnyRecord:
        """A record made of others, each with some of its fields, and of single values."""
        return cls(**{name: value for part in parts for name, value in _list_set(part)} | values)

    def joined(self: AnyRecord, other: "Record") -> AnyRecord:
        """This record with what another one says, which has some of its fields."""
        return self.model_copy(update=dict(_list_set(other)))


def _list_set(record: Record) -> list[tuple[str, Any]]:
    return [(name, getattr(record, name)) for name in record.model_fields_set]


def _list_required(record: type[Record]) -> list[str]:
    """Fields that are never None."""
    return [
        name
        for name, field in record.model_fields.items()
        if field.is_required() and NoneType not in get_args(field.annotation)
    ]


@dataclass(frozen=True, eq=False)
class Kind:
    """What a value must be; in an annotation it is pydantic's validator of the type before it."""

    says: str
    """Of a value that does not fit, in an error, behind its place; `{found}` is the value."""
    fits: Callable[[Any], bool]
    schema: dict[str, Any]
    """As JSON Schema has it."""
    is_said_of_missing: bool = False
    """True where an error on a value that is missing says as well what was expected."""

    def find_fault(self, value: Any) -> str | None:
        """What is wrong with a value, to stand behind its place; None where nothing is."""
        if isinstance(value, float) and not math.isfinite(value):
            return None  # written as null, like None; a reader meets none
        if self.fits(value):
            return None
        if value is None and not self.is_said_of_missing:
            return "is missing"
        return self.says.replace("{found}", describe(value))

    def check(self, value: Any, info: ValidationInfo) -> Any:
        """The value, a list as a tuple."""
        if is_read(info) and (fault := self.find_fault(value)) is not None:
            raise refusal(fault)
        return tuple(value) if isinstance(value, list) else value

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return self.schema


def is_read(info: ValidationInfo) -> bool:
    """True where a value comes from a file, and not from what this process has measured."""
    return info.context is _READ


def kind_of(annotation: Any) -> Kind:
    """The kind in a type such as `Seconds`."""
    kind: Kind = get_args(annotation)[1]
    return kind


def refusal(says: str, *below: str | int) -> PydanticCustomError:
    """The error of a value; `says` stands behind its place, which lies `below` the checked one."""
    return PydanticCustomError("refused", "{says}", {"says": says, "below": below})


def sentence(text: str) -> PydanticCustomError:
    """An error that needs no place before it."""
    return PydanticCustomError("sentence", "{says}", {"says": text})


def explain(error: ValidationError) -> str:
    """The first thing that is wrong, in one line that names the place and the value."""
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    if first["type"] == "sentence":
        return str(context["says"])
    place = name_place((*first["loc"], *context.get("below", ())))
    if first["type"] == "refused":
        return f"{place} {context['says']}"
    if first["type"] == "missing":
        return f"{place} is missing"
    wanted = "a mapping" if first["type"] in _MAPPING_ERRORS else first["msg"]
    wanted = "a list" if first["type"] in _LIST_ERRORS else wanted
    return f"{place or 'it'} is {describe(first['input'])}, where {wanted} was expected"


def walk(content: Any) -> Iterator[tuple[Keys, Any]]:
    """Every value below `content` with the keys that lead to it, `content` itself first.

    Without recursion: what is nested deeply is walked like anything else.
    """
    waiting: list[tuple[Keys, Any]] = [((), content)]
    while waiting:
        keys, value = waiting.pop()
        yield keys, value
        if isinstance(value, dict):
            waiting += [((*keys, key), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [((*keys, number), inner) for number, inner in enumerate(value)]


def name_place(keys: Keys) -> str:
    """Keys as a reader finds them: `configurations[0].phases`, `cells.'lora-seed1'.role`."""
    text = ""
    for before, key in zip((None, *keys), keys, strict=False):
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += f".{shown(key) if before == 'cells' else key}"
    return printable(text.removeprefix(".")).replace("\n", "\\n")


def describe(value: Any) -> str:
    """A wrong value in an error: itself where it is short, else its kind."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return "missing" if value is None else shown(value)


def shown(value: Any) -> str:
    """The beginning of `repr(value)`; what cannot be printed is escaped."""
    if isinstance(value, int) and abs(value) > 10**40:
        return "an enormous number"
    text = repr(value[:41] if isinstance(value, str) else value)
    return text if len(text) <= 42 else f"{text[:40]}…"


def is_number(value: Any) -> bool:
    """True for a number that can be computed with: neither a boolean nor beyond all measure."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == 0 or 1 / _LARGEST <= abs(value) <= _LARGEST


def is_count(value: Any) -> bool:
    """True for a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 10**18


def parse_time(text: Any) -> float | None:
    """Seconds since 1970 of an ISO 8601 time with its zone; None where it is none."""
    try:
        time = datetime.fromisoformat(text)
        return None if time.tzinfo is None else time.astimezone(timezone.utc).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _check_unit(key: str, keys: Keys) -> None:
    for unit, foreign in _FOREIGN_UNITS.items():
        if key.endswith(foreign):
            raise refusal(f"is in another unit than the {unit} of result files", *keys)


def one_of(words: tuple[str, ...]) -> Kind:
    """The kind of a value that is one of some words."""
    says = f"is {{found}}, none of {', '.join(words)}"
    return Kind(
        says,
        lambda value: isinstance(value, str) and value in words,
        {"enum": list(words)},
        is_said_of_missing=True,
    )


def _expected(wanted: str) -> str:
    return f"is {{found}}, where {wanted} was expected"


def _between(wanted: str, low: float, high: float, *, at_least: float = 0.0) -> Kind:
    """A number from `low` to `high`; other than 0 it is not below `at_least` in size."""
    return Kind(
        _expected(wanted),
        lambda value: (
            is_number(value) and low <= value <= high and (value == 0 or abs(value) >= at_least)
        ),
        {"type": "number", "minimum": low, "maximum": high},
    )


def _whole(wanted: str, minimum: int = 0) -> Kind:
    return Kind(
        _expected(wanted),
        lambda value: is_count(value) and value >= minimum,
        {"type": "integer", "minimum": minimum, "maximum": 10**18},
    )


def _list_of(says: str, fits: Callable[[Any], bool], item: dict[str, Any]) -> Kind:
    return Kind(
        says,
        lambda value: isinstance(value, list | tuple) and all(map(fits, value)),
        {"type": "array", "items": item},
    )


_SENSIBLE = "a number of a sensible size"
_COUNT = {"type": "integer", "minimum": 0}
_text = Kind(_expected("text"), lambda value: isinstance(value, str), {"type": "string"})
_sensible = _between(_SENSIBLE, -_LARGEST, _LARGEST)

Seconds = Annotated[float, _between("a number of seconds", 0, 1e10, at_least=1e-12)]
Bytes = Annotated[int, _whole("a whole number of bytes")]
Loss = Annotated[float, _between("a loss", 0, 1e12)]
Flops = Annotated[int, _between("a number of operations", 0, _LARGEST)]
Share = Annotated[float, _between("a ratio", 0, 1e12)]
RatioFigure = Annotated[float, _between("a ratio", 0, _LARGEST)]
FromZero = Annotated[float, _between("a number from 0", 0, _LARGEST)]
Number = Annotated[float, _sensible]
"""Of any sign."""
Count = Annotated[int, _whole("a whole number")]
FromOne = Annotated[int, _whole("a whole number from 1", 1)]
Flag = Annotated[
    bool, Kind(_expected("true or false"), lambda it: isinstance(it, bool), {"type": "boolean"})
]
Text = Annotated[str, _text]
Time = Annotated[
    str,
    Kind(
        _expected("a time with zone"),
        lambda value: parse_time(value) is not None,
        {"type": "string", "format": "date-time"},
    ),
]
Counts = Annotated[tuple[int, ...], _list_of("is not a list of whole numbers", is_count, _COUNT)]
Texts = Annotated[tuple[str, ...], _list_of("is not a list of texts", _text.fits, _text.schema)]
Numbers = Annotated[
    tuple[float, ...],
    replace(
        _list_of("is {found}, where numbers were expected", is_number, {"type": "number"}),
        fits=lambda value: (
            isinstance(value, list | tuple) and bool(value) and all(map(is_number, value))
        ),
    ),
]
PlainNumber = Annotated[float, _between("a number", 0, _LARGEST)]
SignedNumber = Annotated[float, _between("a number", -_LARGEST, _LARGEST)]
Spread = Annotated[float, replace(_between(_SENSIBLE, 0, _LARGEST), is_said_of_missing=True)]
Middle = Annotated[float, replace(_sensible, is_said_of_missing=True)]
