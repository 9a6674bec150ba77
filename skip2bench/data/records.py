"""Alpaca records from a user's JSON or JSONL file: read, checked, divided as LitGPT does it."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Dataset, random_split

from skip2bench.errors import Skip2BenchError
from skip2bench.io.text import read_text
from skip2bench.io.units import format_amount

SUFFIXES = (".json", ".jsonl")
MAX_CHARACTERS = 1_000_000
"""Longest text of a record. The context keeps a few thousand tokens of it, and a tokenizer takes
seconds for each million."""
_FIELDS = ("instruction", "input", "output")
_SPLIT_SEED = 42
"""LitGPT's seed of the split: the same records validate here and there."""

Record = dict[str, Any]
"""Text under instruction, input and output; under choices, where a record has some, texts."""


def is_records_file(data: str) -> bool:
    """True where `--data` names a file for `load_records`."""
    return Path(data).suffix.lower() in SUFFIXES


def load_records(path: Path, val_split_fraction: float) -> tuple[list[Record], list[Record]]:
    """Read an Alpaca file and divide it into training and validation records.

    Other fields are left out, but for a list of texts under choices.

    Raises:
        Skip2BenchError: the file cannot be read, a record lacks text, or a side would be empty.
    """
    name = f"data file {str(path)!r}"
    entries = _read_entries(path, name)
    if len(entries) < 2:
        raise Skip2BenchError(
            f"{name} needs a list of at least 2 records, to train and to validate"
        )
    records = [_check_record(entry, number, path) for number, entry in enumerate(entries)]
    if not any(record["output"].strip() for record in records):
        raise Skip2BenchError(f"{name} has nothing under 'output' in any record; fill them in")
    n_val = int(len(records) * val_split_fraction)
    if n_val == 0:
        raise Skip2BenchError(
            f"{name} has {format_amount(len(records), 'record')}, which leaves none to validate at "
            f"val_split_fraction {val_split_fraction}; give --val-split-fraction 0.5"
        )
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    shares = [1.0 - val_split_fraction, val_split_fraction]
    # random_split takes whatever has a length; its annotation asks for a Dataset
    train, val = random_split(cast("Dataset[Record]", records), shares, generator)
    if not len(train):
        raise Skip2BenchError(
            f"{name} has {format_amount(len(records), 'record')}, which leaves none to train on at "
            f"val_split_fraction {val_split_fraction}; give --val-split-fraction 0.5"
        )
    return [records[i] for i in train.indices], [records[i] for i in val.indices]


def _read_entries(path: Path, name: str) -> list[Any]:
    text = read_text(path, "data file")
    if not text.strip():
        raise Skip2BenchError(f"{name} is empty; give a list of Alpaca records")
    if path.suffix.lower() == ".jsonl":
        return _parse_lines(text, name)
    try:
        entries = _parse(text)
    except _JsonError as error:
        if _is_json(text.lstrip().partition("\n")[0], dict):
            raise Skip2BenchError(
                f"{name} holds a record a line (JSON Lines); rename it to end in .jsonl"
            ) from error
        raise Skip2BenchError(f"{name} is not valid JSON: {error}; mend it") from error
    if isinstance(entries, dict):
        inner = next((key for key, value in entries.items() if isinstance(value, list)), None)
        where = f": move the list under {inner!r} to the top" if inner is not None else ""
        raise Skip2BenchError(f"{name} holds a mapping, not a list of records{where}")
    if not isinstance(entries, list):
        raise Skip2BenchError(
            f"{name} needs a list of at least 2 records, to train and to validate"
        )
    return entries


def _parse_lines(text: str, name: str) -> list[Any]:
    # not splitlines: a JSON string may hold other line separators as they are
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    entries = []
    for number, line in lines:
        try:
            entries.append(_parse(line))
        except _JsonError as error:
            if number == lines[0][0] and _is_json(text, list):
                raise _list_in_lines(name) from error
            raise Skip2BenchError(
                f"line {number} of {name} is not valid JSON: {error}; mend it"
            ) from error
    if len(entries) == 1 and isinstance(entries[0], list):
        raise _list_in_lines(name)
    return entries


def _list_in_lines(name: str) -> Skip2BenchError:
    return Skip2BenchError(f"{name} holds one JSON list, not a record a line; rename it to .json")


class _JsonError(Exception):
    """Why a text is no JSON that can be used."""


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}" if "\n" in text else error.colno
        where = where if isinstance(where, str) else f"column {where}"
        raise _JsonError(f"{error.msg} ({where})") from error
    except RecursionError as error:
        raise _JsonError("it is nested too deeply") from error
    except ValueError as error:  # int() refuses some thousands of digits
        raise _JsonError("it holds a number with thousands of digits") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _JsonError(f"a record has the key {twice!r} twice")
    return made


def _is_json(text: str, kind: type) -> bool:
    try:
        return isinstance(_parse(text), kind)
    except _JsonError:
        return False


def _check_record(entry: Any, number: int, path: Path) -> Record:
    name = f"record {number} of {str(path)!r}"
    if not isinstance(entry, dict):
        raise Skip2BenchError(
            f'{name} is no mapping; write {{"instruction": "…", "input": "", "output": "…"}}'
        )
    record = {key: entry.get(key) for key in _FIELDS}
    if record["input"] is None:
        record["input"] = ""
    for key, value in record.items():
        if not isinstance(value, str):
            if key in entry:
                raise Skip2BenchError(f"{name} has {value!r} under {key!r}; put text there")
            found = ", ".join(map(str, entry)) or "none"
            raise Skip2BenchError(f"{name} has no text under {key!r} (its fields: {found}); add it")
        if len(value) > MAX_CHARACTERS:
            raise Skip2BenchError(
                f"{name} has {len(value):,} characters under {key!r}; "
                f"cut it to {MAX_CHARACTERS:,} or fewer"
            )
    texts: list[Any] = [record[key] for key in _FIELDS]
    if _are_choices(entry.get("choices")):
        record["choices"] = entry["choices"]
        texts += entry["choices"]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise Skip2BenchError(f"{name} holds half of a surrogate pair; mend the text") from error
    return record


def _are_choices(value: Any) -> bool:
    """True for two texts or more to choose from."""
    is_list = isinstance(value, list) and len(value) > 1
    return is_list and all(isinstance(text, str) and text.strip() for text in value)
