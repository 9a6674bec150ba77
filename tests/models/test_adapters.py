import shutil

import pytest
import torch
import yaml
from litgpt.config import Config
from litgpt.model import GPT

from skip2bench.config.commands import BenchConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.models.adapters import load_skip_model, merge_adapter, save_adapter
from skip2bench.models.base import load_checkpoint
from skip2bench.models.methods import build_model, resolve_method

CPU = torch.device("cpu")


@pytest.fixture
def save(tiny_checkpoint, tmp_path):
    def run(method: str, blocks: str = "0,2"):
        base = load_checkpoint(tiny_checkpoint, CPU, torch.float32)
        settings = resolve_method(method, blocks, BenchConfig(lora_dropout=0.0), base.config)
        model = build_model(settings, base, CPU, seed=1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name or (parameter.requires_grad and name == "lm_head.weight"):
                torch.nn.init.normal_(parameter)
        save_adapter(model, settings, tmp_path / "final", tiny_checkpoint, "32-true", "alpaca")
        return model.eval(), tmp_path / "final"

    return run


def test_a_skip_adapter_is_small_and_comes_back(save):
    model, folder = save("skip")
    assert {path.name for path in folder.iterdir()} == {
        "adapter.safetensors",
        "adapter_config.yaml",
        "prompt_style.yaml",
    }
    tokens = torch.randint(320, (2, 7))
    assert torch.equal(load_skip_model(folder)(tokens), model(tokens))
    config = yaml.safe_load((folder / "adapter_config.yaml").read_text())
    assert (config["blocks"], config["r"], config["target"]) == ([0, 2], 16, "hidden")


def test_an_adapter_refuses_another_base(save, tiny_checkpoint, tmp_path):
    import shutil

    _, folder = save("skip2")
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    weights = torch.load(other / "lit_model.pth", weights_only=True)
    weights["lm_head.weight"][0, 0] += 1
    torch.save(weights, other / "lit_model.pth")
    with pytest.raises(Skip2BenchError, match="was trained on other weights than those in"):
        load_skip_model(folder, checkpoint_dir=other)


def test_a_broken_adapter_is_an_error(save):
    _, folder = save("skip")
    (folder / "adapter.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(Skip2BenchError, match=r"cannot be loaded .*; train it again"):
        load_skip_model(folder)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("scaled", "adapter.safetensors lacks adapters.relative_sizes"),
        ("raw", "its base has no adapters.relative_sizes"),
    ],
)
def test_features_of_another_kind_than_the_adapter_s_are_refused(train, features, message):
    other = {"raw": "scaled", "scaled": "raw"}[features]
    folder = train(method="skip2", features=other, max_steps=1)[3] / "final"
    settings = folder / "adapter_config.yaml"
    settings.write_text(settings.read_text().replace(f"features: {other}", f"features: {features}"))
    with pytest.raises(Skip2BenchError, match=message):
        load_skip_model(folder)


def test_an_adapter_from_before_there_was_a_choice_reads_raw_features(train):
    folder = train(method="skip2", features="raw", max_steps=3)[3] / "final"
    now = load_skip_model(folder)
    settings = folder / "adapter_config.yaml"
    lines = settings.read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("features", "share_b"))]
    settings.write_text("\n".join(kept))
    tokens = torch.randint(320, (2, 7))
    assert torch.equal(load_skip_model(folder)(tokens), now(tokens))


def test_a_folder_without_an_adapter_is_an_error(tmp_path):
    with pytest.raises(Skip2BenchError, match="holds no Skip adapter; give the 'final' folder"):
        load_skip_model(tmp_path)
    with pytest.raises(
        Skip2BenchError, match="holds no adapter; give the 'final' folder of a lora run"
    ):
        merge_adapter(tmp_path)


def test_a_skip_adapter_cannot_be_merged(save):
    _, folder = save("skip2")
    with pytest.raises(
        Skip2BenchError, match="a Skip adapter cannot be merged into weights of the same shapes"
    ):
        merge_adapter(folder)


@pytest.mark.parametrize("method", ["lora", "lora-all", "lora-last", "last"])
def test_a_merged_checkpoint_gives_the_logits_of_the_trained_model(save, method):
    model, folder = save(method)
    path = merge_adapter(folder)
    merged = GPT(Config.from_file(folder / "model_config.yaml"))
    merged.load_state_dict(torch.load(path, weights_only=True))
    tokens = torch.randint(320, (2, 7))
    torch.testing.assert_close(merged(tokens), model(tokens), rtol=1e-4, atol=1e-4)


def test_a_merge_that_was_killed_can_be_made_again(save):
    """LitGPT's takes any file of the name for the model that it would make."""
    _, folder = save("lora")
    (folder / "lit_model.pth").write_bytes(b"half of one")
    merged = torch.load(merge_adapter(folder), weights_only=True)
    assert "lm_head.weight" in merged


@pytest.mark.parametrize("method", ["lora", "last"])
def test_a_merged_checkpoint_has_the_dtype_of_its_base(train, tmp_path, method):
    base = shutil.copytree(train.checkpoint, tmp_path / "narrow")
    weights = torch.load(base / "lit_model.pth", weights_only=True)
    torch.save({k: v.bfloat16() for k, v in weights.items()}, base / "lit_model.pth")
    folder = train(method=method, checkpoint_dir=base, max_steps=1)[3]
    merged = torch.load(merge_adapter(folder / "final"), weights_only=True)
    assert merged.keys() == weights.keys()
    assert {value.dtype for value in merged.values()} == {torch.bfloat16}


@pytest.mark.parametrize("method", ["full", "full+lora"])
def test_a_fully_trained_model_is_saved_as_a_litgpt_checkpoint(save, method):
    model, folder = save(method)
    saved = load_checkpoint(folder, CPU, torch.float32)
    plain = GPT(saved.config)
    plain.load_state_dict(saved.weights)
    tokens = torch.randint(320, (2, 7))
    torch.testing.assert_close(plain(tokens), model(tokens), rtol=1e-4, atol=1e-4)


def test_the_weights_of_last_are_no_skip_adapter(save):
    _, folder = save("last")
    with pytest.raises(Skip2BenchError, match="holds no Skip adapter"):
        load_skip_model(folder)
