"""Exporting runs: every method, every form; what is off is refused, and nothing half-written."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from litgpt.config import Config
from litgpt.model import GPT

import skip2bench.export.run as run_module
from skip2bench.data.load import load_data
from skip2bench.errors import Skip2BenchError
from skip2bench.export.run import run_export
from skip2bench.models.adapters import load_trained_model, merge_adapter


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_checkpoint, tiny_data):
    """A function that trains a method once and gives its folder."""
    from skip2bench.config.train import TrainConfig
    from skip2bench.train.run import run_training

    folder, made = tmp_path_factory.mktemp("runs"), {}

    def run(method, **changes):
        name = "-".join([method, *map(str, changes.values())])
        if name not in made:
            values = {
                "method": method,
                "checkpoint_dir": tiny_checkpoint,
                "data": str(tiny_data),
                "out_dir": folder / name,
                "max_steps": 6,
                "learning_rate": 3e-2,
                "device": "cpu",
            }
            if method.startswith("skip"):
                values |= {"blocks": "0,1,3", "skip_r": 4}
            run_training(TrainConfig(**(values | changes)), ["train"])
            made[name] = folder / name
        return made[name]

    return run


def _logits(folder, tokens):
    model = GPT(Config.from_file(folder / "model_config.yaml"))
    model.load_state_dict(torch.load(folder / "lit_model.pth", weights_only=True))
    with torch.no_grad():
        return model.eval()(tokens)


@pytest.mark.parametrize(
    "method",
    ["skip2", "skip", "lora", "lora-all", "lora-last", "last", "full", "full+lora"],
)
def test_every_method_becomes_a_litgpt_checkpoint(runs, tmp_path, method):
    run = runs(method)
    result = run_export(run, "litgpt", tmp_path / "out")
    tokens = torch.randint(320, (2, 9))
    with torch.no_grad():
        trained = load_trained_model(run / "final")[0](tokens)
    torch.testing.assert_close(_logits(tmp_path / "out", tokens), trained, rtol=0, atol=1e-3)
    assert result.relative_difference < 1e-4
    assert result.same_token_ratio == 1
    assert json.loads((tmp_path / "out" / "export.json").read_text())["to"] == "litgpt"
    assert (tmp_path / "out" / "prompt_style.yaml").is_file()
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize("method", ["skip2", "lora"])
@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_forms_of_others_hold_what_was_trained(runs, tmp_path, method, to):
    result = run_export(runs(method), to, tmp_path / "out", "float32")
    assert result.relative_difference < 1e-4
    assert (result.added_channels > 0) == (method == "skip2")
    assert result.positions > 50


def test_peft_is_a_base_and_an_adapter(runs, tmp_path):
    result = run_export(runs("skip2", share_b=True), "peft", tmp_path / "out")
    assert result.rank == result.added_channels == 4
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "README.md",
        "adapter",
        "base",
        "export.json",
    }
    settings = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "out" / "base")
    with pytest.raises(Skip2BenchError, match="--to peft is for Skip adapters"):
        run_export(runs("lora"), "peft", tmp_path / "lora")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "q8_0"])
def test_narrow_weights_stay_within_their_bounds(runs, tmp_path, dtype):
    to = "gguf" if dtype == "q8_0" else "litgpt"
    result = run_export(runs("skip2"), to, tmp_path / "out", dtype)
    assert result.relative_difference > 0
    assert abs(result.exported_val_loss - result.original_val_loss) < 0.02


def test_the_card_says_what_it_is(runs, tmp_path):
    run_export(runs("skip2"), "hf", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "tiny"
    assert "Skip2-LoRA" in card
    assert 'AutoModelForCausalLM.from_pretrained("out")' in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (0.5, "the exported model is not the trained one: logits differ by up to"),
        (float("nan"), "logits are not finite in float32; nothing was written"),
    ],
)
def test_an_export_that_is_off_is_refused_and_leaves_nothing(
    runs, tmp_path, monkeypatch, by, message
):
    make = run_module._make

    def spoil(*args):
        made = make(*args)
        made.weights["lm_head.weight"][3] += by
        return made

    monkeypatch.setattr(run_module, "_make", spoil)
    with pytest.raises(Skip2BenchError, match=message):
        run_export(runs("skip2"), "litgpt", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_too_little_disk_is_said_in_bytes_first(runs, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(Skip2BenchError, match=r"exporting needs .* which has 1,000 B free"):
        run_export(runs("skip2"), "litgpt", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": "raw"}, "features raw"),
        ({"target": "logits"}, "target logits"),
    ],
)
def test_what_is_not_exact_is_refused(runs, tmp_path, changes, words):
    with pytest.raises(Skip2BenchError, match=words):
        run_export(runs("skip2", **changes), "litgpt", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "onnx"}, "--to is 'onnx'; choose from litgpt, hf, gguf, peft"),
        ({"dtype": "int4"}, "--dtype is 'int4'; choose from auto, float32"),
        ({"to": "hf", "dtype": "q8_0"}, "--dtype q8_0 is GGUF's"),
    ],
)
def test_bad_arguments_are_one_line(runs, tmp_path, arguments, message):
    with pytest.raises(Skip2BenchError, match=message):
        run_export(runs("lora"), **({"to": "litgpt", "out_dir": tmp_path / "out"} | arguments))


def test_an_unfinished_run_is_refused(runs, tmp_path):
    run = shutil.copytree(runs("skip2"), tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"status": "interrupted"}))
    with pytest.raises(Skip2BenchError, match="has not ended well"):
        run_export(run, "litgpt", tmp_path / "out")


def test_no_run_and_a_folder_in_the_way_are_refused(runs, tmp_path):
    with pytest.raises(Skip2BenchError, match="is no folder; give a run's folder"):
        run_export(tmp_path / "none", "litgpt", tmp_path / "out")
    with pytest.raises(Skip2BenchError, match="holds nothing that was trained"):
        run_export(tmp_path, "litgpt", tmp_path / "out")
    with pytest.raises(Skip2BenchError, match="is there already; choose another --out-dir"):
        run_export(runs("skip2"), "litgpt", tmp_path)


@pytest.mark.parametrize("method", ["skip2", "lora", "last"])
def test_a_base_that_moved_is_named_by_checkpoint_dir(tiny_checkpoint, tmp_path, train, method):
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    run = train(method=method, checkpoint_dir=base, max_steps=2)[3]
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(Skip2BenchError, match="base"):
        run_export(run, "litgpt", tmp_path / "out")
    run_export(run, "litgpt", tmp_path / "out", checkpoint_dir=moved)
    if method != "skip2":
        merge_adapter(run / "final", moved)
        tokens = torch.randint(320, (2, 9))
        torch.testing.assert_close(
            _logits(run / "final", tokens), _logits(tmp_path / "out", tokens), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("method", ["skip2", "lora", "last"])
def test_another_base_is_refused(runs, tiny_checkpoint, tmp_path, method):
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    weights = torch.load(other / "lit_model.pth", weights_only=True)
    weights["lm_head.weight"] += 1
    torch.save(weights, other / "lit_model.pth")
    with pytest.raises(Skip2BenchError, match="trained on"):
        run_export(runs(method), "litgpt", tmp_path / "out", checkpoint_dir=other)
    assert not (tmp_path / "out").exists()


def test_a_run_whose_data_is_gone_is_compared_on_the_embedded_data(
    runs, tmp_path, monkeypatch, capsys
):
    asked = []

    def load(config, *rest):
        asked.append(config.data)
        return load_data(replace(config, data=own), *rest)

    run = shutil.copytree(runs("last"), tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    own, config["data"] = config["data"], str(tmp_path / "gone.json")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    # the embedded records are too long for the tiny model
    monkeypatch.setattr("skip2bench.export.source.load_data", load)
    monkeypatch.setattr("skip2bench.export.source.load_train_config", _refuse)
    run_export(run, "litgpt", tmp_path / "out")
    assert asked == ["pydoc"]
    assert "its own data cannot be read (gone); using pydoc" in capsys.readouterr().err


def _refuse(*_):
    raise Skip2BenchError("gone")


@pytest.mark.parametrize("to", ["litgpt", "hf", "gguf"])
def test_a_tied_head_is_written_as_a_head(train, tiny_checkpoint, tmp_path, to):
    """LoRA's base holds both in the same memory, which safetensors would write once."""
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    weights = torch.load(base / "lit_model.pth", weights_only=True)
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    torch.save(weights, base / "lit_model.pth")
    run = train(method="lora", checkpoint_dir=base, max_steps=2)[3]
    result = run_export(run, to, tmp_path / "out", "float32")
    assert result.relative_difference < 1e-4
