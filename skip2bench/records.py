"""Alpaca records from a user's JSON or JSONL file: read, checked, divided as LitGPT does it."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Dataset, random_split

from skip2bench.errors import Skip2BenchError

SUFFIXES = (".json", ".jsonl")
_SPLIT_SEED = 42
"""LitGPT's seed of the split: the same records validate here and there."""

Record = dict[str, str]


def load_records(path: Path, val_split_fraction: float) -> tuple[list[Record], list[Record]]:
    """Read an Alpaca file and divide it into training and validation records.

    Fields other than instruction, input and output are left out.

    Raises:
        Skip2BenchError: the file cannot be read, a record lacks text, or a side would be empty.
    """
    entries = _read_entries(path)
    if not isinstance(entries, list) or len(entries) < 2:
        raise Skip2BenchError(
            f"data file {str(path)!r} needs a list of at least 2 records, to train and to validate"
        )
    records = [_check_record(entry, number, path) for number, entry in enumerate(entries)]
    n_val = int(len(records) * val_split_fraction)
    if n_val == 0:
        raise Skip2BenchError(
            f"data file {str(path)!r} has {len(records)} records, which leaves none to validate at "
            f"val_split_fraction {val_split_fraction}; give --val-split-fraction 0.5"
        )
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    shares = [1.0 - val_split_fraction, val_split_fraction]
    # random_split takes whatever has a length; its annotation asks for a Dataset
    train, val = random_split(cast("Dataset[Record]", records), shares, generator)
    return [records[i] for i in train.indices], [records[i] for i in val.indices]


def _read_entries(path: Path) -> Any:
    if path.is_dir():
        raise Skip2BenchError(f"data {str(path)!r} is a folder; give a .json or .jsonl file")
    if not path.is_file():
        raise Skip2BenchError(f"data file {str(path)!r} does not exist; check the path")
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows editors put a byte order mark first
        if path.suffix == ".json":
            return json.loads(text)
        # not splitlines: a JSON string may hold other line separators as they are
        lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
        return [_parse_line(line, number, path) for number, line in lines]
    except UnicodeDecodeError as error:
        raise Skip2BenchError(
            f"data file {str(path)!r} is not UTF-8 ({error.reason}); convert it"
        ) from error
    except json.JSONDecodeError as error:
        raise Skip2BenchError(
            f"data file {str(path)!r} is not valid JSON: {error}; mend it"
        ) from error


def _parse_line(line: str, number: int, path: Path) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise Skip2BenchError(
            f"line {number} of data file {str(path)!r} is not valid JSON: {error.msg}; mend it"
        ) from error


def _check_record(entry: Any, number: int, path: Path) -> Record:
    fields = entry if isinstance(entry, dict) else {}
    record = {key: fields.get(key) for key in ("instruction", "input", "output")}
    for key in ("instruction", "output"):
        if not isinstance(record[key], str):
            raise Skip2BenchError(
                f"record {number} of {str(path)!r} has no text under {key!r}; add it"
            )
    record["input"] = "" if record["input"] is None else str(record["input"])
    try:
        "".join(record.values()).encode()  # type: ignore[arg-type]
    except UnicodeEncodeError as error:
        raise Skip2BenchError(
            f"record {number} of {str(path)!r} holds half of a surrogate pair; mend the text"
        ) from error
    return record  # type: ignore[return-value]
