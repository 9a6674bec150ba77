"""Alpaca records from the entries of a data file: fields found, values brought to text, divided.

Whatever cannot be taken is counted over the whole file and named in one line. Whatever part of an
entry does not reach the model is named too.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Dataset, random_split

from skip2bench.config.train import TrainConfig
from skip2bench.data.chat import (
    ChatError,
    as_conversation,
    find_messages,
    list_unread,
    read_messages,
    summarise_messages,
)
from skip2bench.data.files import Entries, is_nothing, read_entries, read_sides
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note, warn
from skip2bench.io.units import format_amount

MAX_CHARACTERS = 1_000_000
"""Longest text of a record. The context keeps a few thousand tokens of it, and a tokenizer takes
seconds for each million."""
_SPLIT_SEED = 42
"""LitGPT's seed of the split: the same records validate here and there."""
_SHOWN = 10
"""Faults, and fields, that are named."""

Record = dict[str, Any]
"""Text under instruction, input and output. Where a record has them: texts under choices, text
under sys_prompt, and under messages a conversation up to the answer that `output` is."""

ROLES = ("instruction", "input", "output", "system", "messages", "choices")
"""What a field can be named for by `--fields`."""
_CANDIDATES: dict[str, tuple[str, ...]] = {
    "instruction": (
        *("instruction", "prompt", "question", "query", "inputs", "problem", "human", "user"),
        "input",
    ),
    "output": (
        *("output", "response", "completion", "answer", "answers.text", "targets", "target"),
        *("solution", "assistant"),
    ),
    "input": ("input", "context"),
    "system": ("system", "system_prompt", "sys_prompt"),
    "choices": ("choices",),
}
"""Fields of the instruction data sets that people have, the usual ones first: Alpaca, Dolly,
OpenOrca, FLAN, SQuAD, GSM8K, MATH."""
_BLANKS = frozenset(("nan", "none", "null", "n/a", "#n/a", "nat", "<na>", "<noinput>", "\\n"))
"""What programs write into a field that may be empty, in small letters."""
_MOST_DIGITS = 15
"""Of a whole number that a table of floats holds exactly."""


@dataclass(frozen=True, kw_only=True)
class RecordSides:
    """Records by what they are for."""

    train: list[Record]
    val: list[Record]
    test: list[Record] | None
    """What `--score` asks; None for those that validate."""

    @property
    def asked(self) -> list[Record]:
        """Records that `--score` asks."""
        return self.val if self.test is None else self.test

    def as_conversations(self) -> "RecordSides":
        """The same, each record a conversation."""
        train, val = ([as_conversation(one) for one in side] for side in (self.train, self.val))
        test = None if self.test is None else [as_conversation(one) for one in self.test]
        return RecordSides(train=train, val=val, test=test)


def load_records(config: TrainConfig) -> RecordSides:
    """Read what `data`, `val_data` and `test_data` name, and divide it where it is one file.

    Raises:
        Skip2BenchError: a file cannot be read, records cannot be used, or a side would be empty.
    """
    sides = read_sides(Path(config.data))
    val = sides.val if config.val_data is None else read_entries(Path(config.val_data))
    test = sides.test if config.test_data is None else read_entries(Path(config.test_data))
    reader = _Reader(fields=parse_fields(config.fields), may_drop=config.drop_records)
    train = reader.read(sides.train)
    if val is None:
        kept, held = _split(train, sides.train.place, config.val_split_fraction)
    else:
        kept, held = train, reader.read(val)
    asked = None if test is None else reader.read(test)
    reader.say()
    for side, records, place in (("train on", kept, sides.train), ("validate", held, val)):
        if not records and place is not None:
            raise Skip2BenchError(f"data file {place.place!r} has no record to {side}; add some")
    return RecordSides(train=kept, val=held, test=asked)


def parse_fields(given: Sequence[str]) -> dict[str, str]:
    """By role, the field that `--fields role=field` names.

    Raises:
        Skip2BenchError: there is no such role, or no field.
    """
    found: dict[str, str] = {}
    for text in given:
        role, equals, name = text.partition("=")
        role, name = role.strip(), name.strip()
        if role not in ROLES or not equals or not name:
            raise Skip2BenchError(
                f"fields has {text!r}; write ROLE=FIELD, with a role of {', '.join(ROLES)}"
            )
        if role in found:
            raise Skip2BenchError(f"fields names {role} twice; give it once")
        found[role] = name
    return found


def _split(
    records: list[Record], place: str, val_split_fraction: float
) -> tuple[list[Record], list[Record]]:
    name, n = f"data file {place!r}", len(records)
    if n < 2:
        raise Skip2BenchError(
            f"{name} needs a list of at least 2 records, to train and to validate"
        )
    shares = [1.0 - val_split_fraction, val_split_fraction]
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    kept: Sequence[Any] = ()
    if int(n * val_split_fraction):
        # random_split takes whatever has a length; its annotation asks for a Dataset
        kept = random_split(cast("Dataset[Record]", records), shares, generator)
    for what, side in (("validate", kept), ("train on", kept and kept[0])):
        if not len(side):
            raise Skip2BenchError(
                f"{name} has {format_amount(n, 'record')}, which leaves none to {what} at "
                f"val_split_fraction {val_split_fraction}; give --val-split-fraction 0.5, or "
                "--val-data"
            )
    train, val = kept
    return [records[i] for i in train.indices], [records[i] for i in val.indices]


class _FaultError(Exception):
    """Why an entry cannot be used; its text follows the record's name."""


@dataclass(kw_only=True)
class _Reader:
    """Brings entries to records, and counts what a user must hear of."""

    fields: Mapping[str, str]
    """By role, as the user has named them."""
    may_drop: bool
    remarks: list[str] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    """By what was done with some records, how many."""

    def read(self, entries: Entries) -> list[Record]:
        """The records of one file.

        Raises:
            Skip2BenchError: some cannot be used, and none may be left out.
        """
        self.remarks += entries.remarks
        name, n = f"data file {entries.place!r}", len(entries.values)
        places = self._find_fields(entries)
        records: list[Record] = []
        faults: list[str] = []
        for number, entry in enumerate(entries.values, start=entries.first_number):
            try:
                records.append(self._read(entry, places))
            except _FaultError as fault:
                faults.append(f"record {number} {fault}")
        if faults:
            judge_faults(faults, f"{format_amount(n, 'record')} in {name}", n, self.may_drop)
        if n > 1 and records and not any(record["output"].strip() for record in records):
            raise Skip2BenchError(
                f"{name} has nothing under {places.get('output', 'output')!r} in any record; fill "
                "them in, or name another field with --fields output=FIELD"
            )
        return records

    def say(self) -> None:
        """What was done that nobody asked for, in a line each."""
        for text in dict.fromkeys(self.remarks):
            note(text)
        for text, count in self.counts.items():
            note(f"{format_amount(count, 'record')}: {text}")
        if self.unused:
            names = [name for name, _ in self.unused.most_common(_SHOWN)]
            more = f" and {len(self.unused) - _SHOWN} more" if len(self.unused) > _SHOWN else ""
            note(
                f"fields that do not reach the model: {', '.join(map(str, names))}{more}; --fields "
                "input=FIELD brings one in"
            )

    def _find_fields(self, entries: Entries) -> dict[str, str]:
        """By role, the field of a file that has it.

        Raises:
            Skip2BenchError: a field that was named is in no entry.
        """
        mappings = [entry for entry in entries.values if isinstance(entry, dict)]
        known = dict.fromkeys(key for entry in mappings for key in entry)
        for role, name in self.fields.items():
            if mappings and not any(_get(entry, name) is not None for entry in mappings):
                raise Skip2BenchError(
                    f"fields names {name!r} for {role}, and data file {entries.place!r} has "
                    f"{', '.join(map(str, [*known][:_SHOWN])) or 'no fields'}"
                )
        found: dict[str, str] = {}
        for role, candidates in _CANDIDATES.items():
            if role in self.fields:
                found[role] = self.fields[role]
                continue
            taken = {*found.values(), *self.fields.values()}
            free = [name for name in candidates if name not in taken]
            filled = (
                name
                for name in free
                if any(not is_nothing(_get(entry, name)) for entry in mappings)
            )
            # a field that is empty everywhere is better than none: its records are named by it
            chosen = next(filled, next((name for name in free if name in known), None))
            if chosen is not None:
                found[role] = chosen
        if "messages" in self.fields:
            found["messages"] = self.fields["messages"]
        self._remark_fields(found, entries)
        return found

    def _remark_fields(self, found: Mapping[str, str], entries: Entries) -> None:
        """Say which fields were taken for what, where they are not called so."""
        others = {
            role: name
            for role, name in found.items()
            if role in ("instruction", "input", "output") and name != role
        }
        is_chosen = bool(others) and not self.fields.keys() >= others.keys()
        if is_chosen and {"instruction", "output"} <= found.keys():
            taken = ", ".join(f"{name} as {role}" for role, name in others.items())
            self.remarks.append(
                f"{Path(entries.place).name}: {taken}; --fields ROLE=FIELD names others"
            )

    def _read(self, entry: Any, places: Mapping[str, str]) -> Record:
        """One record.

        Raises:
            _FaultError: it cannot be used.
        """
        if isinstance(entry, list):
            raise _FaultError(f"has {len(entry)} cells, which is not as many as the first line")
        if not isinstance(entry, dict):
            raise _FaultError(
                'is no mapping; write {"instruction": "…", "input": "", "output": "…"}'
            )
        found = find_messages(entry, places.get("messages"))
        if found is not None and "output" not in self.fields:
            return self._read_chat(entry, *found, places)
        texts = self._read_texts(entry, places)
        if "output" not in texts:
            raise _FaultError(_say_missing("output", entry, places))
        if "instruction" not in texts:
            if not texts.get("input"):
                raise _FaultError(_say_missing("instruction", entry, places))
            texts["instruction"] = ""
        record: Record = {role: texts.get(role, "") for role in ("instruction", "input", "output")}
        if texts.get("system"):
            record["sys_prompt"] = texts["system"]
        if choices := _read_choices(_get(entry, places.get("choices", "choices"))):
            record["choices"] = choices
        self._check_texts(record)
        used = places if choices else {k: v for k, v in places.items() if k != "choices"}
        self._count_unused(entry, used)
        return record

    def _read_texts(self, entry: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, str]:
        """By role, the text that an entry has."""
        texts: dict[str, str] = {}
        for role in ("instruction", "input", "output", "system"):
            value = _get(entry, places[role]) if role in places else None
            text = self._to_text(value, places.get(role, role))
            is_optional = role in ("input", "system")
            if text is not None and is_optional and text.strip().lower() in _BLANKS:
                self.counts[f"{text.strip()!r} under {places[role]!r} taken as empty"] += 1
                text = None
            if text is not None:
                texts[role] = text
        return texts

    def _to_text(self, value: Any, name: str) -> str | None:
        """A value as text; None where there is none.

        Raises:
            _FaultError: it is neither.
        """
        if is_nothing(value) or isinstance(value, str):
            return None if is_nothing(value) else value
        if isinstance(value, list | tuple):
            if not value:
                return None
            if len(value) == 1 and isinstance(value[0], str):
                return str(value[0])
            raise _FaultError(f"has a list of {len(value)} under {name!r}; put one text there")
        if isinstance(value, dict):
            raise _FaultError(f"has a mapping under {name!r}; put text there")
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError as error:
                raise _FaultError(f"has bytes under {name!r} that are no text") from error
        self.counts[f"{type(value).__name__} under {name!r} taken as text"] += 1
        if isinstance(value, bool):
            return str(value).lower()
        is_whole = isinstance(value, float) and value.is_integer()
        return str(int(value)) if is_whole and abs(value) < 10**_MOST_DIGITS else str(value)

    def _read_chat(
        self, entry: Mapping[str, Any], name: str, value: Any, places: Mapping[str, str]
    ) -> Record:
        """A conversation, whose last answer is the output."""
        system = (
            self._to_text(_get(entry, places["system"]), "system") if "system" in places else ""
        )
        try:
            messages, remarks = read_messages(value, system or "")
        except ChatError as error:
            raise _FaultError(f"{error} under {name!r}") from error
        for remark in remarks:
            self.counts[remark] += 1
        record = summarise_messages(messages)
        self._check_texts(record)
        for key in list_unread(value):
            self.unused[f"{name}.{key}"] += 1
        self._count_unused(entry, {"messages": name, **_only(places, "system")})
        return record

    def _check_texts(self, record: Record) -> None:
        """Raise a _FaultError for text that no tokenizer should get."""
        for key, text in _list_texts(record):
            if len(text) > MAX_CHARACTERS:
                raise _FaultError(
                    f"has {len(text):,} characters under {key!r}; cut it to {MAX_CHARACTERS:,} or "
                    "fewer"
                )
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise _FaultError("holds half of a surrogate pair; mend the text") from error

    def _count_unused(self, entry: Mapping[str, Any], places: Mapping[str, str]) -> None:
        used = {name.partition(".")[0] for name in places.values()}
        for name, value in entry.items():
            if name and name not in used and not is_nothing(value) and value not in ("", [], {}):
                self.unused[name] += 1


def judge_faults(faults: Sequence[str], what: str, n: int, may_drop: bool) -> None:
    """Refuse data with records that cannot be used, or say that they were left out.

    Args:
        faults: Of each such record.
        what: All records, in words.
        n: How many they are.
        may_drop: The user has said that such records may be left out.

    Raises:
        Skip2BenchError: they may not, or none is left.
    """
    shown = "; ".join(faults[:_SHOWN])
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    text = f"{len(faults)} of {what} cannot be used: {shown}{more}"
    if not may_drop:
        raise Skip2BenchError(f"{text}; mend them, or leave them out with --drop-records")
    if len(faults) == n:
        raise Skip2BenchError(f"{text}; none is left")
    warn(f"{text}; left out")


def _get(entry: Mapping[str, Any], name: str) -> Any:
    """What an entry has under a field, or under fields of fields: answers.text."""
    if name in entry:
        return entry[name]
    value: Any = entry
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return value


def _only(places: Mapping[str, str], role: str) -> dict[str, str]:
    return {role: places[role]} if role in places else {}


def _say_missing(role: str, entry: Mapping[str, Any], places: Mapping[str, str]) -> str:
    name = places.get(role)
    if name is not None and name in entry:
        return f"has nothing under {name!r}"
    found = ", ".join(map(str, entry)) or "none"
    return f"has no text under {name or role!r} (its fields: {found})"


def _list_texts(record: Record) -> Iterator[tuple[str, str]]:
    for key, value in record.items():
        if isinstance(value, str):
            yield key, value
        elif key == "choices":
            yield from ((key, text) for text in value)
        else:
            yield from ((key, message["content"]) for message in value)


def _read_choices(value: Any) -> list[str] | None:
    """Two texts or more to choose from; None for what is no such thing.

    ARC's have their letters beside them, in order.
    """
    if isinstance(value, dict) and isinstance(labels := value.get("label"), list):
        letters = [chr(ord("A") + i) for i in range(len(labels))]
        value = value.get("text") if labels == letters else None
    is_list = isinstance(value, list) and len(value) > 1
    if not is_list or not all(isinstance(text, str) and text.strip() for text in value):
        return None
    return list(value)
