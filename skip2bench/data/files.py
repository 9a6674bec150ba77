"""Data files as people and programs write them, read whole into entries: a mapping a record.

JSON (a list, or what data frames are exported as), JSON Lines, CSV and TSV, Parquet, a folder with
a file for each side, and a folder that Hugging Face's `datasets` has saved. What an entry means is
the business of `records`.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skip2bench.config.run import EMBEDDED_DATA
from skip2bench.config.train import INPUT_PATHS, TrainConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.text import read_text

JSON_SUFFIXES = (".json", ".jsonl")
SUFFIXES = (*JSON_SUFFIXES, ".csv", ".tsv", ".parquet")
_SIDES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test",),
}
"""Names of files and splits, by what they are for."""
_SAVED = ("dataset_dict.json", "state.json")
"""One of these lies in a folder that `datasets` has saved."""
_EXTRA = "install it with: pip install 'skip2bench[data]'"
_NULL = "\\N"
"""How databases write an empty cell of a CSV file."""
_MOST_CELL = 2**31 - 1
_NO_TEXTS = ("auto", "none")
"""What `--domain-text` may be in place of a file."""


@dataclass(frozen=True, kw_only=True)
class Entries:
    """The entries of one file or split."""

    place: str
    """The file, to name it in errors."""
    values: Sequence[Any]
    """A mapping each, where the file is good."""
    remarks: tuple[str, ...] = ()
    """What was done with the file that nobody asked for."""
    first_number: int = 0
    """Of the first entry, in the words of the file: rows of a table begin with 1."""


@dataclass(frozen=True, kw_only=True)
class Sides:
    """What a folder or file has for training, validation and test; None where it has no such."""

    train: Entries
    val: Entries | None = None
    test: Entries | None = None


def is_data_place(data: str) -> bool:
    """True where `--data` names a file or folder for `read_sides`."""
    path = Path(data)
    return path.suffix.lower() in SUFFIXES or (os.path.isdir(path) and bool(_list_sides(path)))


def is_place(name: str, value: str) -> bool:
    """True where the value of an option that may name a file or folder does, and that is there.

    What the option knows by name comes first, whatever else is called so.
    """
    if name == "data":
        return value != EMBEDDED_DATA and is_data_place(value) and os.path.exists(value)
    if name == "prompt_style":
        return os.path.isfile(value)
    return value not in _NO_TEXTS and os.path.exists(value)


def list_inputs(config: TrainConfig) -> dict[str, str]:
    """Files and folders that a run reads beside its checkpoint, by option; those that are there."""
    values = {name: getattr(config, name) for name in INPUT_PATHS}
    return {name: str(it) for name, it in values.items() if it and is_place(name, str(it))}


def read_sides(path: Path) -> Sides:
    """Read a file, or a folder with a file or a split for each side.

    Raises:
        Skip2BenchError: it cannot be read.
    """
    if not os.path.isdir(path):
        return Sides(train=read_entries(path))
    if _is_saved(path):
        return _read_saved(path)
    files = _list_sides(path)
    if "train" not in files:
        others = f" beside {', '.join(it.name for it in files.values())}" if files else ""
        raise Skip2BenchError(
            f"data folder {str(path)!r} has no train.json{others}; add it, or give a file"
        )
    sides = {side: read_entries(file) for side, file in files.items()}
    return Sides(**sides)


def _list_sides(folder: Path) -> dict[str, Path]:
    """By side, the file of that name in a folder."""
    if _is_saved(folder):
        return {"train": folder}
    found: dict[str, Path] = {}
    for side, names in _SIDES.items():
        for path in (folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES):
            if os.path.isfile(path):
                found.setdefault(side, path)
    return found


def _is_saved(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in _SAVED)


def read_entries(path: Path) -> Entries:
    """Read one file.

    Raises:
        Skip2BenchError: it cannot be read, or holds no records.
    """
    suffix, name = path.suffix.lower(), f"data file {str(path)!r}"
    if os.path.isdir(path):
        return read_sides(path).train
    if suffix == ".parquet":
        return _read_parquet(path, name)
    if suffix not in SUFFIXES:
        raise Skip2BenchError(
            f"{name} ends in {suffix!r}; give {', '.join(SUFFIXES)}, or a folder with them"
        )
    text = read_text(path, "data file")
    if not text.strip():
        raise Skip2BenchError(f"{name} is empty; give a list of Alpaca records")
    if suffix in (".csv", ".tsv"):
        return _parse_table(text, path, name)
    return _parse_json(text, path, name)


# JSON and JSON Lines, whatever the file is called


def _parse_json(text: str, path: Path, name: str) -> Entries:
    is_lines = path.suffix.lower() == ".jsonl"
    try:
        content = parse_text(text)
    except JsonError as error:
        if not is_lines and not _is_json(text.lstrip().partition("\n")[0], dict):
            raise Skip2BenchError(f"{name} is not valid JSON: {error}; mend it") from error
        said = () if is_lines else (f"{path.name} holds a record a line, and is read so",)
        return Entries(place=str(path), values=_parse_lines(text, name), remarks=said)
    if is_lines and not (isinstance(content, list) and _is_list_of_records(content)):
        return Entries(place=str(path), values=_parse_lines(text, name))
    remarks: tuple[str, ...] = ()
    if is_lines:
        remarks = (f"{path.name} holds one list, and is read so",)
    if isinstance(content, dict):
        content, remarks = _unpack(content, path, name)
    if not isinstance(content, list):
        raise Skip2BenchError(
            f"{name} needs a list of at least 2 records, to train and to validate"
        )
    return Entries(place=str(path), values=content, remarks=remarks)


def _is_list_of_records(content: list[Any]) -> bool:
    return not content or isinstance(content[0], dict)


def _parse_lines(text: str, name: str) -> list[Any]:
    # not splitlines: a JSON string may hold other line separators as they are
    entries = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entries.append(parse_text(line))
        except JsonError as error:
            raise Skip2BenchError(
                f"line {number} of {name} is not valid JSON: {error}; mend it"
            ) from error
    return entries


def _unpack(content: dict[str, Any], path: Path, name: str) -> tuple[list[Any], tuple[str, ...]]:
    """The records of a mapping, as data frames and servers write them."""
    columns, rows = content.get("columns"), content.get("data")
    if isinstance(columns, list) and isinstance(rows, list):  # a data frame's "split"
        return [dict(zip(columns, row, strict=False)) for row in rows], (
            f"{path.name} holds columns and rows, and is read so",
        )
    lists = {
        key: value
        for key, value in content.items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    if len(lists) == 1:
        ((key, found),) = lists.items()
        if all(isinstance(it, dict) and isinstance(it.get("row"), dict) for it in found):
            found = [it["row"] for it in found]  # a server's answer
        others = sorted(set(content) - {key})
        left = f"; {', '.join(map(repr, others[:5]))} beside it not used" if others else ""
        return found, (f"{path.name} has its list under {key!r}{left}",)
    series = [value for value in content.values() if isinstance(value, dict)]
    if series and len(series) == len(content) and all(s.keys() == series[0].keys() for s in series):
        return [  # a data frame's "columns", the form that pandas writes by default
            {column: values[index] for column, values in content.items()} for index in series[0]
        ], (f"{path.name} holds a mapping for each column, and is read so",)
    where = f": move one of the lists {', '.join(map(repr, lists))} to the top" if lists else ""
    raise Skip2BenchError(f"{name} holds a mapping, not a list of records{where}")


class JsonError(Exception):
    """Why a text is no JSON that can be used."""


def parse_text(text: str) -> Any:
    """The value of a JSON text; a key that stands twice in a mapping is an error.

    Raises:
        JsonError: there is none.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}" if "\n" in text else error.colno
        where = where if isinstance(where, str) else f"column {where}"
        raise JsonError(f"{error.msg} ({where})") from error
    except RecursionError as error:
        raise JsonError("it is nested too deeply") from error
    except ValueError as error:  # int() refuses some thousands of digits
        raise JsonError("it holds a number with thousands of digits") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise JsonError(f"a record has the key {twice!r} twice")
    return made


def _is_json(text: str, kind: type) -> bool:
    try:
        return isinstance(parse_text(text), kind)
    except JsonError:
        return False


# tables


def _parse_table(text: str, path: Path, name: str) -> Entries:
    """Rows of a CSV or TSV file under its first one, whichever separator that has."""
    head = text.partition("\n")[0]
    separator = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=head.count)
    usual = csv.field_size_limit(_MOST_CELL)  # the whole process has one
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        raise Skip2BenchError(f"{name} is not valid CSV: {error}; mend it") from error
    finally:
        csv.field_size_limit(usual)
    names = [title.strip() for title in rows[0]]
    if len(names) < 2 or len(set(names)) < len(names) or not all(names[1:]):
        raise Skip2BenchError(
            f"{name} begins with {', '.join(map(repr, rows[0][:8]))}, which are no names of "
            "columns, all different; put them into the first line"
        )
    entries: list[Any] = []
    for row in rows[1:]:
        if not any(cell.strip() for cell in row):
            continue
        is_whole = len(row) == len(names)
        cells = (None if cell == _NULL else cell for cell in row)
        entries.append(dict(zip(names, cells, strict=True)) if is_whole else row)
    remarks = () if separator in ",\t" else (f"{path.name} is separated by {separator!r}",)
    return Entries(place=str(path), values=entries, remarks=remarks, first_number=1)


def _read_parquet(path: Path, name: str) -> Entries:
    if not os.path.isfile(path):
        raise Skip2BenchError(f"{name} does not exist; check the path")
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise Skip2BenchError(f"{name} needs pyarrow; {_EXTRA}") from error
    try:
        rows = read_table(path).to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise Skip2BenchError(f"{name} cannot be read ({reason}); write it again") from error
    return Entries(place=str(path), values=rows)


def _read_saved(path: Path) -> Sides:
    """A folder that `datasets` has saved: one data set, or several splits."""
    try:
        import datasets
    except ImportError as error:
        raise Skip2BenchError(
            f"data folder {str(path)!r} is one of Hugging Face's datasets; {_EXTRA}"
        ) from error
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Skip2BenchError(
            f"data folder {str(path)!r} cannot be read by datasets ({reason}); save it again with "
            "save_to_disk"
        ) from error
    if not isinstance(found, dict):
        return Sides(train=Entries(place=str(path), values=_to_rows(found)))
    splits = {
        side: next((name for name in names if name in found), None)
        for side, names in _SIDES.items()
    }
    if splits["train"] is None:
        raise Skip2BenchError(
            f"data folder {str(path)!r} has the splits {', '.join(map(str, found))} and no train; "
            "save the one that is meant by itself"
        )
    chosen = {side: name for side, name in splits.items() if name is not None}
    sides = {
        side: Entries(place=f"{path}/{name}", values=_to_rows(found[name]))
        for side, name in chosen.items()
    }
    return Sides(**sides)


def _to_rows(found: Iterable[Any]) -> list[Any]:
    return [dict(row) for row in found]


def is_nothing(value: Any) -> bool:
    """True for what programs write where there is no value: null, or a float that is no number."""
    return value is None or (isinstance(value, float) and math.isnan(value))
