import json

import pytest
import torch
from litgpt.tokenizer import Tokenizer

from skip2bench.config.train import TrainConfig
from skip2bench.data.load import load_data, pydoc_records
from skip2bench.data.samples import (
    IGNORE_INDEX,
    Samples,
    collate,
    count_steps,
    global_batches,
    length_buckets,
    micro_batches,
)
from skip2bench.errors import Skip2BenchError


@pytest.fixture
def load(tiny_checkpoint):
    def run(data, **changes):
        config = TrainConfig(data=str(data), **changes)
        return load_data(config, Tokenizer(tiny_checkpoint), config.max_seq_length or 96)

    return run


def test_batches_depend_on_seed_and_epoch_alone():
    batches = global_batches(50, 16, seed=1, epoch=0)
    assert [len(batch) for batch in batches] == [16, 16, 16, 2]
    assert sorted(i for batch in batches for i in batch) == list(range(50))
    torch.manual_seed(99)
    assert global_batches(50, 16, seed=1, epoch=0) == batches
    assert global_batches(50, 16, seed=1, epoch=1) != batches
    assert global_batches(50, 16, seed=2, epoch=0) != batches


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"), [(2, None, 8), (2, 5, 5), (1, 5, 4), (3, 100, 12)]
)
def test_number_of_steps(epochs, max_steps, steps):
    assert count_steps(50, 16, epochs, max_steps) == steps


def test_micro_batches_are_sorted_by_length_and_complete():
    lengths = [5, 1, 4, 2, 3]
    assert micro_batches([0, 1, 2, 3, 4], lengths, 2) == [[1, 3], [4, 2], [0]]


def test_buckets_keep_to_their_budget_and_pad_little():
    torch.manual_seed(0)
    lengths = torch.randint(1, 300, (400,)).tolist()
    buckets = length_buckets(range(400), lengths, 2048)
    assert sorted(i for bucket in buckets for i in bucket) == list(range(400))
    padded = [len(bucket) * max(lengths[i] for i in bucket) for bucket in buckets]
    assert max(padded) <= 2048
    assert sum(padded) < 1.05 * sum(lengths)
    assert length_buckets([0], [5000], 2048) == [[0]]


def test_collate_pads_on_the_right():
    samples = Samples(
        input_ids=[torch.tensor([1, 2, 3]), torch.tensor([4])],
        labels=[torch.tensor([IGNORE_INDEX, 2, 3]), torch.tensor([4])],
    )
    ids, labels = collate(samples, [1, 0])
    assert ids.tolist() == [[4, 0, 0], [1, 2, 3]]
    assert labels.tolist() == [[4, IGNORE_INDEX, IGNORE_INDEX], [IGNORE_INDEX, 2, 3]]
    assert samples.supervised_counts == [2, 0]


def test_pydoc_is_in_alpaca_form():
    train, val = pydoc_records()
    assert (len(train), len(val)) == (2000, 200)
    assert all(set(record) == {"instruction", "input", "output"} for record in train + val)
    assert all(record["output"] and record["input"] for record in train + val)


def test_the_hash_covers_ids_and_labels(load, tiny_data):
    first = load(tiny_data).sha256
    assert load(tiny_data).sha256 == first
    assert load(tiny_data, mask_prompt=True).sha256 != first
    assert load(tiny_data, val_split_fraction=0.2).sha256 != first


def test_the_hash_covers_what_is_asked(load, tiny_data, tmp_path):
    asked = tmp_path / "test.json"
    asked.write_text('[{"instruction": "a", "output": "b"}]')
    first = load(tiny_data, test_data=str(asked))
    assert first.held_out == ({"instruction": "a", "input": "", "output": "b"},)
    assert first.sha256 != load(tiny_data).sha256
    asked.write_text('[{"instruction": "a", "output": "c"}]')
    assert load(tiny_data, test_data=str(asked)).sha256 != first.sha256


def test_jsonl_gives_the_same_samples_as_json(load, tiny_data, tmp_path):
    lines = tmp_path / "tiny.jsonl"
    lines.write_text("\n".join(json.dumps(record) for record in json.loads(tiny_data.read_text())))
    assert load(lines).sha256 == load(tiny_data).sha256


def test_samples_with_nothing_left_to_learn_are_counted_and_left_out(load, tiny_data, tmp_path):
    records = json.loads(tiny_data.read_text())
    for record in records[::2]:
        record["instruction"] = "x" * 500
    path = tmp_path / "long.json"
    path.write_text(json.dumps(records))
    data = load(path, mask_prompt=True)
    assert data.dropped == 20
    assert len(data.train) + len(data.val) == 20
    assert max(data.train.lengths) <= 96


def test_train_samples_limits_the_training_side_only(load, tiny_data):
    assert (
        len(load(tiny_data, train_samples=5).train),
        len(load(tiny_data, train_samples=5).val),
    ) == (5, 2)


def test_val_samples_limits_the_validation_side_only(load, tiny_data):
    data = load(tiny_data, val_samples=1)
    assert (len(data.train), len(data.val)) == (len(load(tiny_data).train), 1)


ERRORS = {
    "missing.json": (None, "data file '{path}' does not exist; check the path"),
    "text.json": ("not json", "data file '{path}' is not valid JSON: "),
    "latin.json": (b'[{"instruction": "\xe9"}]', "data file '{path}' is not UTF-8"),
    "mapping.json": ("{}", "data file '{path}' holds a mapping, not a list of records"),
    "one.json": ('[{"instruction": "a", "output": "b"}]', "needs a list of at least 2 records"),
    "field.json": (
        '[{"instruction": "a", "output": "b"}, {"instruction": "a"}]',
        "1 of 2 records in data file '{path}' cannot be used: record 1 has no text under 'output' "
        "(its fields: instruction); mend them, or leave them out with --drop-records",
    ),
    "type.json": (
        '[{"instruction": {"a": 3}, "output": "b"}, {}]',
        "cannot be used: record 0 has a mapping under 'instruction'; put text there; record 1 has",
    ),
    "half.jsonl": (
        '{"instruction": "a", "output": "b"}\n\n{"instr',
        "line 3 of data file '{path}' is not valid JSON: ",
    ),
    "surrogate.json": (
        '[{"instruction": "a", "output": "b"}, {"instruction": "a", "output": "\\ud800"}]',
        "record 1 holds half of a surrogate pair; mend the text",
    ),
    "few.json": (
        json.dumps([{"instruction": "a", "output": "b"}] * 5),
        "has 5 records, which leaves none to validate at val_split_fraction 0.05; "
        "give --val-split-fraction 0.5",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_files_are_named(load, tmp_path, name):
    content, text = ERRORS[name]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Skip2BenchError) as error:
        load(path)
    assert text.format(path=path) in str(error.value)


def test_a_folder_is_named_as_one(load, tmp_path):
    folder = tmp_path / "folder.json"
    folder.mkdir()
    with pytest.raises(Skip2BenchError, match=r"has no train.json; add it"):
        load(folder)


def test_what_editors_and_other_tools_leave_in_a_file_does_no_harm(load, tiny_data, tmp_path):
    """A byte order mark, blank lines, line separators in strings, fields of other tools."""
    records = json.loads(tiny_data.read_text())
    records[0]["prompt"] = records[1]["self"] = "x"
    records[2]["output"] = "one\u2028two"
    plain, other = tmp_path / "plain.json", tmp_path / "other.jsonl"
    plain.write_text(json.dumps(records))
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    other.write_text("\ufeff" + "\r\n".join(lines) + "\n\n", encoding="utf-8")
    assert load(plain).sha256 == load(other).sha256


def test_unknown_data_names_the_modules(load):
    with pytest.raises(
        Skip2BenchError, match=r"'alpacca' is neither 'pydoc'.*modules: alpaca, alpaca2k"
    ):
        load("alpacca")


def test_data_that_must_be_downloaded_is_a_clear_error_offline(load, monkeypatch):
    import litgpt.data

    def refuse(self):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(litgpt.data.Alpaca, "prepare_data", refuse)
    with pytest.raises(
        Skip2BenchError, match=r"'alpaca' could not be downloaded \(ConnectionError\)"
    ):
        load("alpaca")


def test_unknown_prompt_style_is_named(load, tiny_data):
    with pytest.raises(Skip2BenchError, match="prompt_style is 'poem'; choose from auto, alpaca"):
        load(tiny_data, prompt_style="poem")
