"""Folders that are no LitGPT checkpoint: called what they are, with what works on them."""

import json
import shutil

import pytest
from litgpt.config import name_to_config

from skip2bench.errors import Skip2BenchError
from skip2bench.models import convert
from skip2bench.models.base import check_checkpoint
from skip2bench.models.folders import convert_command, describe_wrong_model, list_model_names

LLAMA = {
    **{"hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32},
    **{"num_key_value_heads": 4, "intermediate_size": 5632, "vocab_size": 32000},
}


def make(folder, *files):
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["lit_model.pth.lora", "hyperparameters.yaml"], "holds a LoRA adapter.*skip2bench merge"),
        (["adapter.safetensors", "adapter_config.yaml"], "export .* --to litgpt --out-dir MODEL"),
        (["adapter_config.json", "adapter_model.bin"], "holds a PEFT adapter"),
        (["config.json", "model.safetensors"], "is a Hugging Face checkpoint; convert it: litgpt"),
        (["config.json", "pytorch_model-00001-of-00002.bin"], "is a Hugging Face checkpoint"),
        (["model-q8_0.gguf"], "holds GGUF files"),
        (["summary.json", "final/lit_model.pth.lora"], "run's folder: its 'final' holds a LoRA"),
        (["summary.json", "final/adapter.safetensors"], "run's folder: its 'final' holds an ad"),
        (["summary.json", "final/lit_model.pth", "final/model_config.yaml"], "its model is --che"),
        (
            ["org/name/lit_model.pth"],
            "is a folder above a checkpoint; give --checkpoint-dir .*name",
        ),
        (["snapshots/abc/config.json", "snapshots/abc/model.safetensors"], "above a checkpoint"),
    ],
)
def test_other_folders_are_called_what_they_are(tmp_path, files, says):
    folder = make(tmp_path / "given", *files)
    with pytest.raises(Skip2BenchError, match=says):
        check_checkpoint(folder)


def test_a_file_is_no_folder(tmp_path):
    file = make(tmp_path / "model", "lit_model.pth") / "lit_model.pth"
    with pytest.raises(Skip2BenchError, match="is a file; give its folder: --checkpoint-dir"):
        check_checkpoint(file)


def test_a_checkpoint_and_an_empty_folder_are_nothing_else(tiny_checkpoint, tmp_path):
    assert describe_wrong_model(tiny_checkpoint) is None
    assert describe_wrong_model(tmp_path) is None
    with pytest.raises(Skip2BenchError, match=r"lacks lit_model.pth"):
        check_checkpoint(tmp_path)


def test_a_model_is_known_by_its_sizes(tmp_path):
    folder = make(tmp_path / "my-own-chat", "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (name,) = list_model_names(folder)
    assert name.startswith("tiny-llama")
    assert convert_command(folder).endswith(f"my-own-chat --model_name {name}")
    (folder / "config.json").write_text(json.dumps(LLAMA | {"hidden_size": 2049}))
    assert list_model_names(folder) == []
    named = make(tmp_path / "pythia-14m", "model.safetensors", "config.json")
    assert list_model_names(named) == ["pythia-14m"]
    assert "--model_name" not in convert_command(named)


def test_every_model_of_litgpts_is_found_among_those_of_its_sizes(tmp_path):
    from litgpt.config import Config

    for name in ("Llama-3.2-1B", "Qwen2.5-0.5B", "SmolLM2-135M", "Gemma-2-2b"):
        config = Config(**name_to_config[name])
        sizes = {
            **{"hidden_size": config.n_embd, "num_hidden_layers": config.n_layer},
            **{"num_attention_heads": config.n_head, "vocab_size": config.vocab_size},
            **{"num_key_value_heads": config.n_query_groups},
            **{"intermediate_size": config.intermediate_size, "_name_or_path": f"org/{name}"},
        }
        folder = make(tmp_path / "x", "model.safetensors")
        (folder / "config.json").write_text(json.dumps(sizes))
        assert list_model_names(folder) == [name]


LLAMA_2 = {
    **{"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"num_key_value_heads": 32, "intermediate_size": 11008, "vocab_size": 32000},
}
LLAMA_3 = LLAMA_2 | {"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}
STRETCHED = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"}


@pytest.mark.parametrize(
    ("content", "begins"),
    [
        (LLAMA_3 | {"rope_theta": 5e5, "rope_scaling": STRETCHED}, "Llama-3.1-8B"),
        (LLAMA_3 | {"rope_parameters": STRETCHED | {"rope_theta": 5e5}}, "Llama-3.1-8B"),
        (LLAMA_3 | {"rope_theta": 5e5, "rope_scaling": None}, "Llama-3-8B"),
        (LLAMA_3 | {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "Llama-3-8B"),
        (LLAMA_2 | {"_name_or_path": "meta-llama/Llama-2-7b-chat-hf"}, "Llama-2-7b-chat-hf"),
    ],
)
@pytest.mark.parametrize("name", ["my-model", "3b2c1f" * 7])
def test_models_of_the_same_sizes_are_told_by_their_positions(tmp_path, content, begins, name):
    folder = make(tmp_path / name, "model.safetensors")
    (folder / "config.json").write_text(json.dumps(content))
    (found,) = list_model_names(folder)
    assert found.startswith(begins)


def test_a_model_that_may_be_several_is_not_guessed(tmp_path):
    folder = make(tmp_path / "my-model", "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLAMA_2))
    names = list_model_names(folder)
    assert {"Llama-2-7b-hf", "CodeLlama-7b-Python-hf"} <= set(names)
    says = r"may be one of several models.*--model_name NAME, with .*Llama-2-7b-hf.* for NAME"
    with pytest.raises(Skip2BenchError, match=says):
        convert.convert_checkpoint(folder)
    (folder / "config.json").write_text(json.dumps(LLAMA_2 | {"rope_theta": 10000.0}))
    assert "CodeLlama-7b-Python-hf" not in list_model_names(folder)


def test_converting_leaves_the_folder_as_it_is(tiny_checkpoint, tmp_path, monkeypatch):
    folder = make(tmp_path / "mine", "model.safetensors", "tokenizer.json")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    before = sorted(path.name for path in folder.iterdir())

    def stand_in(checkpoint_dir, model_name):
        assert (checkpoint_dir / "model.safetensors").exists()
        for path in tiny_checkpoint.iterdir():
            shutil.copy(path, checkpoint_dir / path.name)

    monkeypatch.setattr(convert, "convert_hf_checkpoint", stand_in)
    target = convert.convert_checkpoint(folder)
    assert target == tmp_path / "mine-litgpt"
    check_checkpoint(target)
    assert not (target / "model.safetensors").exists()
    assert sorted(path.name for path in folder.iterdir()) == before
    monkeypatch.setattr(convert, "convert_hf_checkpoint", None)
    assert convert.convert_checkpoint(folder) == target  # it is there already
    assert convert.convert_checkpoint(tiny_checkpoint) == tiny_checkpoint


def test_what_cannot_be_converted_leaves_nothing(tmp_path, monkeypatch):
    folder = make(tmp_path / "mine", "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLAMA | {"hidden_size": 3}))
    with pytest.raises(Skip2BenchError, match="the sizes of no model that LitGPT knows"):
        convert.convert_checkpoint(folder)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(Skip2BenchError, match="LitGPT cannot convert"):
        convert.convert_checkpoint(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
