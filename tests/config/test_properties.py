"""Whatever comes in is a configuration or a Skip2BenchError, and what is written reads back."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skip2bench.config.blocks import BLOCK_PRESETS, parse_blocks
from skip2bench.config.compare import load_compare_config
from skip2bench.config.load import load_train_config
from skip2bench.config.options import to_plain
from skip2bench.config.train import TrainConfig
from skip2bench.data.load import load_data
from skip2bench.data.records import load_records
from skip2bench.errors import Skip2BenchError, error_line
from skip2bench.io.units import MAX_BYTES, parse_bytes
from skip2bench.models.tokenizer import load_tokenizer

bounded = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FIELDS = sorted(TrainConfig.__dataclass_fields__)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["lora", "skip2", "0,1", "all", "1e-3", "auto", "", "\0"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
KEYS = st.sampled_from([*FIELDS, "train", "eval", "optimizer", "quantize", "log"]) | st.text()
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def _answer(load, *arguments):
    """What `load` gives; None where it refuses, which must be one line that can be printed."""
    try:
        return load(*arguments)
    except Skip2BenchError as error:
        line = error_line(error)
        assert line.isprintable()
        assert line.encode().startswith(b"error: ")
        return None


@bounded
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_mapping_is_a_configuration_or_an_error(values):
    found = _answer(load_train_config, values)
    assert found is None or isinstance(found[0], TrainConfig)
    _answer(load_compare_config, values)


@bounded
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_mapping_in_a_file_is_one_or_an_error(tmp_path, values):
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(values))
    _answer(load_train_config, {}, path)
    _answer(load_compare_config, {}, path)


@bounded
@given(st.text() | st.text("abe:-[]{}&*!<>|'\"#,\n\t 01", max_size=60))
def test_any_text_is_yaml_that_can_be_used_or_an_error(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    _answer(load_train_config, {}, path)


@bounded
@given(st.binary(max_size=60))
def test_any_bytes_are_data_that_can_be_used_or_an_error(tmp_path, content):
    (tmp_path / "c.yaml").write_bytes(content)
    _answer(load_train_config, {}, tmp_path / "c.yaml")
    for name in ("d.json", "d.jsonl", "d.csv", "d.tsv"):
        (tmp_path / name).write_bytes(content)
        _answer(load_records, TrainConfig(data=str(tmp_path / name), val_split_fraction=0.5))


GOOD = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from(["lora", "full", "skip", "skip2"]),
        "blocks": st.sampled_from(["all", "fast", "0,3", "[1, 2]", "5"]),
        "target": st.sampled_from(["hidden", "logits"]),
        "learning_rate": st.floats(1e-9, 10, exclude_min=True),
        "lora_dropout": st.floats(0, 1, exclude_max=True),
        "val_split_fraction": st.floats(0, 1, exclude_min=True, exclude_max=True),
        "epochs": st.integers(1, 10**9),
        "max_steps": st.none() | st.integers(1, 10**9),
        "skip_r": st.integers(1, 2**16),
        "seed": st.integers(0, 2**32 - 1),
        "mask_prompt": st.none() | st.booleans(),
        "lora_key": st.booleans(),
        "cache_max_bytes": st.none() | st.integers(1, MAX_BYTES).map(str),
        "checkpoint_dir": st.none() | st.text("ab/. -é日", min_size=1).filter(str.strip).map(Path),
        "data": TEXT.filter(lambda text: text.strip() and "\0" not in text),
    },
)


@bounded
@given(GOOD)
def test_what_is_written_reads_back(tmp_path, values):
    config = TrainConfig(**values)
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(to_plain(config), allow_unicode=True), encoding="utf-8")
    again, ignored = load_train_config({}, path)
    assert again == config
    assert ignored == []


@bounded
@given(st.text() | st.text("0123456789,[]() -", max_size=12), st.integers(1, 40))
def test_blocks_are_numbers_of_the_model_or_an_error(text, n_layer):
    blocks = _answer(parse_blocks, text, n_layer)
    if blocks is not None:
        assert blocks == tuple(sorted(set(blocks)))
        assert blocks
        assert set(blocks) <= set(range(n_layer))


@bounded
@given(st.sets(st.integers(0, 39), min_size=1), st.sampled_from(["{}", "[{}]", "({})", " {} "]))
def test_blocks_read_back(blocks, form):
    for separator in (",", ", "):
        text = form.format(separator.join(map(str, blocks)))
        assert parse_blocks(text, 40) == tuple(sorted(blocks))
    for name, count in BLOCK_PRESETS.items():
        assert parse_blocks(name, 40) == tuple(range(count))


@bounded
@given(st.text() | st.text("0123456789.kKMGiB ", max_size=12))
def test_sizes_are_bytes_or_an_error(text):
    size = _answer(parse_bytes, "size", text)
    assert size is None or 0 <= size <= MAX_BYTES


@bounded
@given(st.integers(0, 2**53), st.sampled_from(["", "k", "M", "GB", " KiB", "mib"]))
def test_sizes_read_back(number, unit):
    factor = {"": 1, "k": 10**3, "M": 10**6, "GB": 10**9, " KiB": 2**10, "mib": 2**20}[unit]
    size = _answer(parse_bytes, "size", f"{number}{unit}")
    assert size == (number * factor if number * factor <= MAX_BYTES else None) or size == int(
        float(number) * factor
    )


RECORDS = st.lists(
    st.fixed_dictionaries(
        {"instruction": TEXT, "output": TEXT.filter(str.strip)}, optional={"input": TEXT}
    ),
    min_size=4,
    max_size=6,
)


@bounded
@given(RECORDS)
def test_records_come_back_as_they_went_in(tmp_path, tiny_checkpoint, records):
    tokenizer = load_tokenizer(tiny_checkpoint)
    (tmp_path / "d.json").write_text(json.dumps(records))
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    (tmp_path / "d.jsonl").write_bytes("\n".join(lines).encode())
    whole = [{"input": "", **record} for record in records]
    hashes = set()
    for name in ("d.json", "d.jsonl"):
        sides = load_records(TrainConfig(data=str(tmp_path / name), val_split_fraction=0.5))
        both = (*sides.train, *sides.val)
        found = [json.dumps(record, sort_keys=True) for record in both]
        assert sorted(found) == sorted(json.dumps(record, sort_keys=True) for record in whole)
        config = TrainConfig(data=str(tmp_path / name), val_split_fraction=0.5)
        data = load_data(config, tokenizer, 96)
        assert len(data.train) + len(data.val) + data.dropped == len(records)
        hashes.add(data.sha256)
    assert len(hashes) == 1


@pytest.mark.parametrize("text", ["1:30", "010", "0x10", "1_0_0"])
def test_yaml_numbers_that_surprise(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(f"epochs: {text}\n")
    found = _answer(load_train_config, {}, path)
    assert (found and found[0].epochs) == (100 if text == "1_0_0" else None)
