import pytest

from skip2bench.config.blocks import parse_blocks
from skip2bench.config.commands import BenchConfig, ReportConfig
from skip2bench.config.options import to_plain
from skip2bench.config.train import TrainConfig
from skip2bench.errors import Skip2BenchError


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("0,1,2,3", (0, 1, 2, 3)),
        ("[0, 1, 2, 3]", (0, 1, 2, 3)),
        ("(3, 1)", (1, 3)),
        ("7", (7,)),
        ("last:3", (5, 6, 7)),
        ("even:2", (3, 7)),
        ("even:3", (1, 4, 7)),
        ("Last:99", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("even:8", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("fast", (0, 1, 2, 3)),
        ("balanced", (0, 1, 2, 3, 4, 5)),
        ("accurate", tuple(range(8))),
        ("ALL", tuple(range(8))),
    ],
)
def test_blocks(text, blocks):
    assert parse_blocks(text, 8) == blocks


def test_a_preset_takes_what_a_small_model_has():
    assert parse_blocks("accurate", 3) == (0, 1, 2)


NO_LIST = (
    "is no list of block numbers; give e.g. 0,1,2,3, or all, last:8, even:8, fast, balanced, "
    "accurate"
)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", f"blocks '' {NO_LIST}"),
        ("[]", f"blocks '[]' {NO_LIST}"),
        ("quick", f"blocks 'quick' {NO_LIST}"),
        ("0-3", f"blocks '0-3' {NO_LIST}"),
        ("-1", f"blocks '-1' {NO_LIST}"),
        ("0,one", f"blocks '0,one' {NO_LIST}"),
        ("0,1.5", f"blocks '0,1.5' {NO_LIST}"),
        ("last:0", f"blocks 'last:0' {NO_LIST}"),
        ("even:", f"blocks 'even:' {NO_LIST}"),
        ("1,1", "blocks '1,1' names a block twice; give each block once"),
        ("0,8", "block 8 does not exist; the model has blocks 0 to 7"),
    ],
)
def test_blocks_that_are_none(text, error):
    with pytest.raises(Skip2BenchError) as raised:
        parse_blocks(text, 8)
    assert str(raised.value) == error


POSITIVE = [
    "epochs",
    "global_batch_size",
    "micro_batch_size",
    "lora_r",
    "skip_r",
    "eval_interval",
    "lora_alpha",
]
POSITIVE += ["max_steps", "train_samples", "val_samples", "max_seq_length"]
TRAIN_ERRORS = [
    (
        {"method": "dora"},
        "method is 'dora'; choose from lora, lora-all, lora-last, lora-top, "
        "lora-top-uncached, full, full+lora, last, bias, skip, skip2",
    ),
    (
        {"method": "lora", "stream_blocks": True},
        "stream_blocks needs method 'skip2', which runs each block once; method is 'lora'",
    ),
    ({"target": "middle"}, "target is 'middle'; choose from hidden, logits"),
    (
        {"precision": "fp8"},
        "precision is 'fp8'; choose from auto, 32-true, bf16-true, bf16-mixed, 16-true, 16-mixed",
    ),
    ({"device": "tpu"}, "device is 'tpu'; choose from auto, cpu, cuda, mps"),
    (
        {"logger": "neptune"},
        "logger is 'neptune'; choose from csv, tensorboard, wandb, mlflow, litlogger",
    ),
    ({"devices": 0}, "devices is 0; give 1 or more"),
    ({"learning_rate": 0.0}, "learning_rate is 0.0; give a number above 0, such as 3e-3"),
    ({"learning_rate": float("nan")}, "learning_rate is nan; give a number above 0, such as 3e-3"),
    ({"weight_decay": -0.1}, "weight_decay is -0.1; give 0 or more"),
    ({"lr_warmup_steps": -1}, "lr_warmup_steps is -1; give 0 or more"),
    ({"weight_decay": float("nan")}, "weight_decay is nan; give 0 or more"),
    ({"seed": 2**32}, "seed is 4294967296; give a number from 0 to 4294967295"),
    ({"seed": -1}, "seed is -1; give a number from 0 to 4294967295"),
    ({"adam_beta2": 1.0}, "adam_beta2 is 1.0; give a number from 0 to below 1"),
    ({"lora_dropout": 1.0}, "lora_dropout is 1.0; give a share from 0 to below 1"),
    ({"val_split_fraction": 1.0}, "val_split_fraction is 1.0; give a share between 0 and 1"),
    (
        {"method": "lora", "lora_query": False, "lora_value": False},
        "no LoRA target is on; turn on at least one of lora_query, lora_key, lora_value, "
        "lora_projection, lora_mlp, lora_head",
    ),
    *(({name: 0}, f"{name} is 0; give 1 or more") for name in POSITIVE),
]


@pytest.mark.parametrize(("values", "error"), TRAIN_ERRORS)
def test_train_config_refuses(values, error):
    with pytest.raises(Skip2BenchError) as raised:
        TrainConfig(**values)
    assert str(raised.value) == error


@pytest.mark.parametrize(
    "name", ["batch_size", "seq_length", "rounds", "iterations", "lora_r", "skip_r"]
)
def test_bench_config_refuses_sizes_below_one(name):
    with pytest.raises(Skip2BenchError, match=f"{name} is -2; give 1 or more"):
        BenchConfig(**{name: -2})


def test_other_refusals():
    with pytest.raises(Skip2BenchError, match="methods is 'dora'; choose from lora, lora-all"):
        BenchConfig(methods=("lora", "dora"))
    with pytest.raises(Skip2BenchError, match="lang is 'fr'; choose from ja, en"):
        ReportConfig(lang="fr")


def test_plain_form_holds_what_repeats_a_run():
    plain = to_plain(TrainConfig())
    assert plain["method"] == "skip2"
    assert plain["checkpoint_dir"] is None
    assert not {"out_dir", "force"} & set(plain)  # a repetition goes elsewhere
    assert to_plain(BenchConfig())["blocks"] == ["fast", "balanced", "accurate"]
