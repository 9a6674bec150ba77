from pathlib import Path

import pytest
import yaml

from skip2bench.config.compare import load_compare_config
from skip2bench.config.load import load_train_config
from skip2bench.config.options import coerce
from skip2bench.config.train import EMBEDDED_DEFAULTS, TrainConfig
from skip2bench.errors import Skip2BenchError

HUB = Path(__file__).parents[2] / "config_hub" / "finetune"


@pytest.fixture
def write(tmp_path):
    def run(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return run


def test_defaults_are_litgpts_except_for_the_embedded_model():
    config, _ = load_train_config({"checkpoint_dir": "somewhere"})
    assert (config.epochs, config.lr_warmup_steps, config.micro_batch_size) == (5, None, None)
    assert config.global_batch_size == 16
    embedded, _ = load_train_config({})
    for name, value in EMBEDDED_DEFAULTS.items():
        assert getattr(embedded, name) == value


@pytest.mark.parametrize(
    ("values", "rate"),
    [
        ({}, 3e-3),
        ({"method": "skip"}, 3e-3),
        ({"method": "lora"}, 1e-3),
        ({"features": "raw"}, 1e-3),
        ({"learning_rate": 5e-4}, 5e-4),
    ],
)
def test_scaled_features_have_a_learning_rate_of_their_own(values, rate):
    assert load_train_config({"checkpoint_dir": "somewhere", **values})[0].learning_rate == rate
    embedded = load_train_config(values)[0].learning_rate
    assert embedded == values.get("learning_rate", 3e-3)


def test_flags_win_over_yaml_and_yaml_over_defaults(write):
    path = write("epochs: 3\nseed: 7\nlr_warmup_steps: 2\n")
    config, _ = load_train_config({"epochs": 4}, path)
    assert (config.epochs, config.seed, config.lr_warmup_steps) == (4, 7, 2)
    assert config.global_batch_size == 16


def test_the_guides_baseline_file():
    config, ignored = load_train_config(
        {"out_dir": "out/x"}, HUB / "llama-2-7b" / "lora_baseline.yaml"
    )
    assert (config.method, config.lora_r, config.data) == ("lora", 4, "alpaca2k")
    assert (config.learning_rate, config.weight_decay) == (2e-4, 0.0)
    assert (config.adam_beta1, config.adam_beta2) == (0.9, 0.95)
    assert (config.max_seq_length, config.max_steps, config.eval_interval) == (512, None, 25)
    assert config.out_dir == Path("out/x")
    assert config.precision == "bf16-true"
    assert ignored == []


def test_the_guides_skip2_file_and_its_flags():
    flags = {"blocks": "[0, 1, 2, 3]", "max_steps": 10}
    config, _ = load_train_config(flags, HUB / "llama-2-7b" / "skip2lora.yaml")
    assert (config.method, config.skip_r, config.target) == ("skip2", 16, "hidden")
    assert (config.blocks, config.max_steps) == ("[0, 1, 2, 3]", 10)
    assert load_train_config({}, HUB / "llama-2-7b" / "skip2lora.yaml")[0].blocks == "0,1,2,3,4,5"


@pytest.mark.parametrize("folder", ["llama-2-7b", "pystd"])
def test_shipped_pairs_differ_in_the_adapter_alone(folder):
    pair = [
        load_train_config({}, HUB / folder / f"{name}.yaml")[0]
        for name in ("lora_baseline", "skip2lora")
    ]
    adapter = {"method", "blocks", "lora_r", "skip_r", "out_dir"}
    for name in TrainConfig.__dataclass_fields__:
        if name not in adapter:
            assert getattr(pair[0], name) == getattr(pair[1], name), name


def test_shipped_files_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, _ = load_train_config({}, Path("config_hub/finetune/pystd/skip2lora.yaml"))
    assert config.blocks == "0,1,2,3"


def test_lora_r_is_the_rank_of_whichever_adapter_trains(write):
    path = write("lora_r: 32\n")
    assert load_train_config({"method": "skip2"}, path)[0].skip_r == 32
    lora = load_train_config({"method": "lora"}, path)[0]
    assert (lora.lora_r, lora.skip_r) == (32, 16)
    both = write("method: skip2\nlora_r: 4\nskip_r: 8\n")
    assert load_train_config({}, both)[0].skip_r == 8


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("lora_r: 8\n", "lora"),
        ("train:\n  epochs: 1\n", "full"),
        ("train:\n  epochs: 1\nlora_key: true\n", "lora"),
        ("skip2lora_enabled: false\nskip2lora_block_indices: []\nbatch_size: 8\n", "lora"),
        ("skip2lora_block_indices: [0]\n", "skip2"),
        ("skip2lora_enabled: true\n", "skip2"),
        ("skip2lora_enabled: false\nskip2lora_block_indices: [0]\n", "lora"),
        ("epochs: 1\n", "skip2"),
        ("method: skip\nskip2lora_block_indices: [0]\n", "skip"),
    ],
)
def test_the_method_follows_from_a_litgpt_file(write, text, method):
    assert load_train_config({}, write(text))[0].method == method


def test_a_rank_of_the_other_adapter_is_said_to_have_no_effect():
    assert load_train_config({"lora_r": 8})[1] == ["lora_r (skip2 takes skip_r)"]
    assert load_train_config({"method": "lora", "skip_r": 8})[1] == ["skip_r (lora takes lora_r)"]
    assert load_train_config({"skip_r": 8})[1] == []


def test_an_empty_block_and_a_single_number_are_no_mistakes(write):
    config, _ = load_train_config({}, write("train:\neval:\noptimizer:\nblocks: 3\n"))
    assert config.blocks == "3"


def test_keys_without_effect_are_named(write):
    text = "train:\n  save_interval: 200\n  log_interval: 1\n"
    text += "eval:\n  max_iters: 100\n  max_new_tokens:\n"
    config, ignored = load_train_config({}, write(text))
    assert ignored == ["train.log_interval", "eval.max_iters (the whole validation side counts)"]
    assert config.save_interval == 200


def test_data_in_litgpts_form(write):
    text = "data:\n  class_path: litgpt.data.JSON\n"
    text += "  init_args:\n    json_path: a.json\n    mask_prompt: true\n"
    config, _ = load_train_config({}, write(text))
    assert (config.data, config.mask_prompt) == ("a.json", True)


def test_numbers_written_without_a_point_are_numbers(write):
    assert load_train_config({}, write("learning_rate: 2e-4\n"))[0].learning_rate == 2e-4


@pytest.mark.parametrize("quantize", ["bnb.nf4", "bnb.int8-training"])
def test_the_switches_have_litgpts_names(write, quantize):
    text = f"lora_r: 8\nquantize: {quantize}\ndevices: 1\n"
    config, ignored = load_train_config({}, write(text))
    assert (config.method, config.quantize, ignored) == ("lora", quantize, [])
    flags = {"gradient_checkpointing": True, "compile": True}
    config, ignored = load_train_config(flags, write(text))
    assert (config.gradient_checkpointing, config.compile, ignored) == (True, True, [])
    _, ignored = load_train_config(flags | {"method": "skip"}, write(text))
    assert ignored == ["gradient_checkpointing (no backward of skip walks the blocks)"]


def test_nulls_mean_the_default(write):
    config, _ = load_train_config(
        {}, write("epochs:\nmax_steps:\nquantize:\ntrain:\n  max_norm:\n")
    )
    assert (config.epochs, config.max_steps) == (5, None)


ERRORS = [
    ("epoch: 3\n", "unknown key 'epoch'; did you mean epochs?"),
    ("zzz: 3\n", "unknown key 'zzz'; known keys: adam_beta1, adam_beta2, algebra, blocks, "),
    ("epochs: three\n", "epochs is 'three'; give a whole number"),
    ("epochs: 1.5\n", "epochs is 1.5; give a whole number"),
    ("epochs: true\n", "epochs is True; give a whole number"),
    ("mask_prompt: 1\n", "mask_prompt is 1; give true or false"),
    ("learning_rate: [1]\n", "learning_rate is [1]; give a number"),
    ("data: 3\n", "data is 3; give text"),
    ("- a\n", "holds no mapping; write lines such as 'epochs: 3'"),
    ("1: a\n", "the key '1' is no text to YAML; put it in quotes (line 1, column 1)"),
    ("a: [\n", "is not valid YAML: "),
    ("quantize: nf4\n", "quantize is 'nf4'; choose from bnb.nf4, bnb.nf4-dq, bnb.fp4, "),
    ("quantize: [bnb.nf4]\n", "quantize is ['bnb.nf4']; choose from bnb.nf4, "),
    ("train:\n  max_norm: 0\n", "max_norm is 0.0; give a number above 0"),
    (
        "train:\n  max_tokens: 9\n",
        "LitGPT's key 'train.max_tokens' is not supported; leave it empty (use max_steps)",
    ),
    (
        "train:\n  lr_warmup_iters: 9\n",
        "'train.lr_warmup_iters' is not supported; leave it empty (micro-batches; use lr_warmup",
    ),
    (
        "optimizer: SGD\n",
        "optimizer 'SGD' is not supported; every method trains with torch.optim.AdamW",
    ),
    (
        "optimizer:\n  class_path: torch.optim.AdamW\n  init_args:\n    betas: 0.9\n",
        "betas 0.9 is no pair",
    ),
    (
        "optimizer:\n  class_path: AdamW\n  init_args:\n    amsgrad: true\n",
        "optimizer has 'amsgrad', which is no option here; lr, weight_decay and betas are",
    ),
    ("optimizer:\n  init_args: [1]\n", "init_args of optimizer is [1]; write a mapping below it"),
    ("data:\n  class_path: litgpt.data.JSON\n  init_args: abc\n", "init_args of data is 'abc'"),
    ("data:\n  json_path: x\n", "data needs class_path (and init_args)"),
    ("data:\n  class_path: litgpt.data.JSON\n", "data of class JSON needs init_args: json_path"),
    (
        "method: dora\n",
        "method is 'dora'; choose from lora, lora-all, lora-last, lora-top, "
        "lora-top-uncached, full, full+lora, last, bias, skip, skip2",
    ),
    ("devices: 0\n", "devices is 0; give 1 or more"),
]


def test_everything_that_is_wrong_is_named_at_once(write):
    text = "epoch: 3\ntrian: 1\ntrain:\n  max_step: 4\n"
    with pytest.raises(Skip2BenchError) as raised:
        load_train_config({}, write(text))
    assert "unknown keys 'epoch' (did you mean epochs?), 'trian'" in str(raised.value)
    assert "'train.max_step' (did you mean max_steps?)" in str(raised.value)
    text = "train:\n  max_tokens: 5\n  max_time: 3\n"
    with pytest.raises(Skip2BenchError, match=r"max_tokens.*max_time"):
        load_train_config({}, write(text))


def test_what_litgpts_file_leaves_to_litgpt_is_litgpts_and_said(write, capsys):
    text = "checkpoint_dir: somewhere\nout_dir: out/finetune/full\neval:\n  interval: 7\n"
    config, _ = load_train_config({"data": "mine.json"}, write(text))
    assert (config.method, config.eval_interval, config.data) == ("full", 7, "mine.json")
    assert (config.lr_warmup_steps, config.save_interval, config.learning_rate) == (100, 1000, 1e-3)
    said = capsys.readouterr().err
    assert "method full; where it is silent, LitGPT's own: lr_warmup_steps 100" in said
    assert "data alpaca" not in said
    lora, _ = load_train_config({"data": "mine.json"}, write(text + "lora_alpha: 8\n"))
    assert (lora.method, lora.lora_r) == ("lora", 8)


def test_the_forks_own_baseline(write):
    text = (
        "skip2lora_enabled: false\nskip2lora_block_indices: []\nskip2lora_output_layer: lm_head\n"
    )
    text += "batch_size: 8\nlog_interval: 1\nlora_r: 4\ncheckpoint_dir: somewhere\n"
    config, ignored = load_train_config({}, write(text))
    assert (config.method, config.lora_r, config.global_batch_size) == ("lora", 4, 8)
    assert ignored == ["log_interval", "skip2lora_output_layer (skip2lora_enabled is false)"]
    with pytest.raises(Skip2BenchError, match="names no block"):
        load_train_config({}, write("skip2lora_enabled: true\nskip2lora_block_indices: []\n"))


def test_keys_of_a_file_that_its_method_does_not_take_are_named(write):
    text = "method: skip2\nlora_key: true\nlora_mlp: false\n"
    assert load_train_config({}, write(text))[1] == [
        "lora_key (only lora, lora-top and lora-top-uncached take it)"
    ]


def test_older_releases_spelled_it_otherwise(write):
    text = "io:\n  checkpoint_dir: somewhere\ntrain:\n  learning_rate: 3e-4\n  beta2: 0.95\n"
    text += "data:\n  class_path: litgpt.data.JSON\n"
    text += "  init_args: {json_path: x.json, test_split_fraction: 0.2}\n"
    config, _ = load_train_config({}, write(text))
    assert config.checkpoint_dir == Path("somewhere")
    assert (config.learning_rate, config.adam_beta2) == (3e-4, 0.95)
    assert (config.data, config.val_split_fraction) == ("x.json", 0.2)


def test_what_litgpt_writes_where_nobody_has_said_anything(write):
    text = "lora_r: 4\ndata: null\ntrain: {epochs: 2}\noptimizer: AdamW\ndevices: auto\n"
    config, ignored = load_train_config({}, write(text))
    assert config.data == "alpaca"
    assert ignored == ["devices (auto: one is used; give their number)"]


def test_arguments_of_a_module_reach_it(write):
    text = "lora_r: 4\ndata:\n  class_path: litgpt.data.FLAN\n"
    text += "  init_args: {subsets: aqua_train, url: null, num_workers: 4}\n"
    config, _ = load_train_config({}, write(text))
    assert (config.data, config.data_options) == ("flan", ("subsets=aqua_train",))
    with pytest.raises(Skip2BenchError, match="data_options has 'subsets'; write NAME=VALUE"):
        load_train_config({"data_options": ["subsets"]})


def test_a_file_of_pretraining_is_called_that(write):
    with pytest.raises(Skip2BenchError, match="litgpt pretrain"):
        load_train_config({}, write("model_name: pythia-14m\ntrain:\n  max_tokens: 100\n"))


def test_a_comparison_takes_litgpts_file(capsys):
    config = load_compare_config({}, HUB / "llama-2-7b" / "lora_baseline.yaml")
    cell = config.cell_config({"method": "lora"})
    assert (cell.lora_r, cell.epochs, cell.weight_decay) == (4, 4, 0.0)
    assert (config.learning_rates, config.out_dir) == ((2e-4,), None)
    assert "out_dir (it is one run's)" in capsys.readouterr().err
    skip = load_compare_config({}, HUB / "llama-2-7b" / "skip2lora.yaml")
    assert skip.blocks == ("0,1,2,3,4,5",)
    assert skip.cell_config({"method": "skip2"}).skip_r == 16


@pytest.mark.parametrize("key", ["data", "cache_dir", "out_dir", "domain_text"])
def test_paths_are_written_out_and_addresses_are_none(key, monkeypatch, write):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PLACE", "there")
    config, _ = load_train_config({}, write(f"{key}: ~/$PLACE/x.json\n"))
    assert str(getattr(config, key)) == "/home/me/there/x.json"
    with pytest.raises(Skip2BenchError, match=r"'https://a.b/c.json': addresses are not read"):
        load_train_config({}, write(f"{key}: https://a.b/c.json\n"))


def test_a_name_is_looked_up_where_litgpt_downloads_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints" / "org" / "model").mkdir(parents=True)
    config, _ = load_train_config({"checkpoint_dir": "org/model"})
    assert config.checkpoint_dir == Path("checkpoints/org/model")


@pytest.mark.parametrize(("text", "error"), ERRORS)
def test_bad_files(write, text, error):
    with pytest.raises(Skip2BenchError) as raised:
        load_train_config({}, write(text))
    assert error in str(raised.value)


def test_a_file_that_does_not_exist():
    with pytest.raises(
        Skip2BenchError, match=r"config file 'no\.yaml' does not exist; check the path"
    ):
        load_train_config({}, Path("no.yaml"))


def test_what_a_run_writes_can_be_read_back(write):
    from skip2bench.config.options import to_plain

    config = TrainConfig(
        method="skip2", blocks="0,3", skip_r=5, checkpoint_dir=Path("x"), mask_prompt=False
    )
    again, ignored = load_train_config({}, write(yaml.safe_dump(to_plain(config))))
    assert again == config
    assert ignored == []


def test_coerce_leaves_good_values_alone():
    values = {"epochs": 3, "learning_rate": 1, "out_dir": "x", "mask_prompt": None}
    assert coerce(TrainConfig, values) == {
        "epochs": 3,
        "learning_rate": 1.0,
        "out_dir": Path("x"),
        "mask_prompt": None,
    }


def test_the_model_has_two_names(write):
    """As in `bench` and `doctor`, where `checkpoint_dir` is the other one."""
    assert load_train_config({}, write("model: somewhere\n"))[0].checkpoint_dir == Path("somewhere")
    embedded = load_train_config({"checkpoint_dir": "pystd"})[0]
    assert embedded == load_train_config({})[0]
    compared = load_compare_config({"checkpoint_dir": "pystd"})
    assert compared.cell_config({}).checkpoint_dir is None
