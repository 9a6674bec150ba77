"""Data as other programs write it: what each form comes to, and what is said of it."""

import json

import pytest

from skip2bench.config.train import TrainConfig, make_train_config
from skip2bench.data.files import read_entries, read_sides
from skip2bench.data.records import load_records, parse_fields
from skip2bench.errors import Skip2BenchError

ROWS = [{"instruction": f"ask {i}", "input": "", "output": f"say {i}"} for i in range(4)]


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def records(tmp_path):
    """Records of a file, all of them, whichever side they fell to."""

    def read(name, content, **changes):
        path = write(tmp_path / name, content)
        values = {"data": str(path), "val_split_fraction": 0.5, **changes}
        sides = load_records(make_train_config(values))
        return sorted([*sides.train, *sides.val], key=lambda record: str(record["instruction"]))

    return read


COLUMNS = {name: {str(i): row[name] for i, row in enumerate(ROWS)} for name in ROWS[0]}
FORMS = {
    "list.json": ROWS,
    "lines.json": "\n".join(map(json.dumps, ROWS)),
    "list.jsonl": ROWS,
    "columns.json": COLUMNS,
    "split.json": {"columns": [*ROWS[0]], "index": [0], "data": [[*row.values()] for row in ROWS]},
    "table.json": {"schema": {"fields": []}, "data": ROWS},
    "server.json": {"features": [], "rows": [{"row_idx": 0, "row": row} for row in ROWS]},
    "comma.csv": "instruction,input,output\n"
    + "".join(f'ask {i},,"say {i}"\r\n' for i in range(4)),
    "excel.csv": "\ufeffinstruction;input;output\n"
    + "".join(f"ask {i};;say {i}\n" for i in range(4)),
    "tabs.tsv": "instruction\tinput\toutput\n"
    + "".join(f"ask {i}\t\\N\tsay {i}\n" for i in range(4)),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_records(records, name):
    assert records(name, FORMS[name]) == ROWS


def test_a_cell_may_hold_lines_quotes_and_separators(records):
    text = 'instruction,output\n"a, ""b""\nc",1\nd,2\n'
    found = records("cells.csv", text)
    assert [record["instruction"] for record in found] == ['a, "b"\nc', "d"]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert read_entries(path).values == ROWS
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(Skip2BenchError, match="cannot be read"):
        read_entries(path)


def test_a_folder_that_datasets_has_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    own = datasets.Dataset.from_list(ROWS)
    own.save_to_disk(tmp_path / "one")
    assert read_sides(tmp_path / "one").train.values == ROWS
    both = datasets.DatasetDict(
        {"train": own, "validation": own.select([0]), "test": own.select([1])}
    )
    both.save_to_disk(tmp_path / "three")
    sides = read_sides(tmp_path / "three")
    assert (len(sides.train.values), sides.val.values, sides.test.values) == (
        4,
        ROWS[:1],
        ROWS[1:2],
    )


@pytest.mark.parametrize("val", ["val.json", "validation.jsonl", "dev.csv"])
def test_a_folder_with_a_file_for_each_side(tmp_path, val):
    write(tmp_path / "train.json", ROWS)
    content = {"json": json.dumps(ROWS[:2]), "jsonl": "\n".join(map(json.dumps, ROWS[:2]))}
    content["csv"] = "instruction,input,output\nask 0,,say 0\nask 1,,say 1\n"
    write(tmp_path / val, content[val.partition(".")[2]])
    write(tmp_path / "test.json", ROWS[3:])
    sides = load_records(TrainConfig(data=str(tmp_path)))
    assert (sides.train, sides.val, sides.asked) == (ROWS, ROWS[:2], ROWS[3:])


def test_files_for_sides_stand_over_the_folder_s(tmp_path):
    write(tmp_path / "train.json", ROWS)
    write(tmp_path / "val.json", ROWS)
    own = str(write(tmp_path / "mine.json", ROWS[:1]))
    sides = load_records(TrainConfig(data=str(tmp_path), val_data=own, test_data=own))
    assert (sides.train, sides.val, sides.test) == (ROWS, ROWS[:1], ROWS[:1])


SHAPES = {
    "dolly": {"instruction": "q", "context": "c", "response": "a", "category": "x"},
    "gsm8k": {"question": "q", "answer": "a"},
    "orca": {"id": 1, "system_prompt": "s", "question": "q", "response": "a"},
    "flan": {"inputs": "q", "targets": "a"},
    "squad": {"question": "q", "context": "c", "answers": {"text": ["a"], "answer_start": [0]}},
    "pairs": {"input": "q", "output": "a"},
    "completions": {"prompt": "q", "completion": "a"},
    "math": {"problem": "q", "solution": "a", "level": "5"},
}


@pytest.mark.parametrize("name", SHAPES)
def test_known_data_sets_are_recognised_and_named(records, name, capsys):
    entry = SHAPES[name]
    record = records("shape.json", [entry] * 2)[0]
    assert (record["instruction"], record["output"]) == ("q", "a")
    assert record["input"] == entry.get("context", "")
    assert record.get("sys_prompt", "") == entry.get("system_prompt", "")
    err = capsys.readouterr().err
    assert "as output" in err or name == "pairs"
    for field in ("category", "level", "id"):
        assert (field in err) is (field in entry)


def test_a_field_with_content_stands_before_one_without(records):
    entry = {"prompt": None, "question": "q", "output": None, "answer": "a"}
    record = records("shape.json", [entry] * 2)[0]
    assert (record["instruction"], record["output"]) == ("q", "a")


def test_fields_are_named_by_the_user(records, capsys):
    entry = {"q": "what", "a": {"best": "this"}, "output": "not this", "about": "it"}
    named = {"instruction": "q", "output": "a.best", "input": "about"}
    record = records("own.json", [entry] * 2, fields=named)[0]
    assert record == {"instruction": "what", "input": "it", "output": "this"}
    assert "fields that do not reach the model: output" in capsys.readouterr().err
    with pytest.raises(
        Skip2BenchError, match=r"fields names 'x' for output, and data file .* has q"
    ):
        records("own.json", [entry] * 2, fields={"output": "x"})


@pytest.mark.parametrize("given", ["question", "ask=question", "output=", "input=a,input=b"])
def test_fields_that_mean_nothing(given):
    with pytest.raises(Skip2BenchError, match="fields"):
        parse_fields(given.split(","))


def test_empty_and_plain_values_are_taken_as_they_are_meant(records, capsys):
    rows = [
        {"instruction": "a", "input": None, "output": 42},
        {"instruction": "b", "input": float("nan"), "output": 42.0},
        {"instruction": "c", "input": "NaN", "output": True},
        {"instruction": "d", "input": "<noinput>", "output": ["one"]},
    ]
    found = records("frame.json", rows)
    assert [record["input"] for record in found] == [""] * 4
    assert [record["output"] for record in found] == ["42", "42", "true", "one"]
    err = capsys.readouterr().err
    assert "1 record: int under 'output' taken as text" in err
    assert "1 record: '<noinput>' under 'input' taken as empty" in err


def test_what_cannot_be_taken_is_counted_over_the_whole_file(records, capsys):
    rows = [
        *ROWS,
        {"instruction": "x"},
        {"instruction": "y", "output": None},
        "text",
        {"output": {}},
    ]
    with pytest.raises(Skip2BenchError) as error:
        records("bad.json", rows)
    text = str(error.value)
    assert text.startswith("4 of 8 records in data file ")
    for part in (
        "record 4 has no text under 'output' (its fields: instruction)",
        "record 5 has nothing under 'output'",
        "record 6 is no mapping",
        "record 7 has a mapping under 'output'",
        "--drop-records",
    ):
        assert part in text
    assert records("bad.json", rows, drop_records=True) == ROWS
    assert "left out" in capsys.readouterr().err


def test_of_many_faults_the_first_ten_are_named(records):
    with pytest.raises(Skip2BenchError, match=r"15 of 19 records .*; and 5 more"):
        records("bad.json", [*ROWS, *[{"instruction": "x"}] * 15])


def test_a_row_with_too_many_cells_is_a_fault_of_its_own(records):
    text = FORMS["comma.csv"] + "one,two,three,four\n"
    with pytest.raises(Skip2BenchError, match="record 5 has 4 cells"):
        records("cells.csv", text)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("head.csv", "ask me,ask me\n1,2\n", "are no names of columns"),
        ("one.csv", "text\na\n", "are no names of columns"),
        ("quote.csv", 'a,b\n"1,2\n', "is not valid CSV"),
        ("lists.json", {"train": [{"a": 1}], "test": [{"a": 1}]}, "move one of the lists 'train'"),
    ],
)
def test_what_is_no_table(records, name, content, says):
    with pytest.raises(Skip2BenchError, match=says):
        records(name, content)
