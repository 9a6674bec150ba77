"""Tokenizer files that are valid and that LitGPT stumbles at, and the token of the beginning."""

import json
import shutil

import pytest
import yaml

from skip2bench.errors import Skip2BenchError
from skip2bench.models.tokenizer import begins_prompts, load_tokenizer


@pytest.fixture
def changed(tiny_checkpoint, tmp_path):
    """The tiny checkpoint in a folder of another name, its files changed."""

    def make(name="copy", settings=None, drop=(), model=None, generation=None):
        folder = tmp_path / name
        shutil.copytree(tiny_checkpoint, folder)
        path = folder / "tokenizer_config.json"
        content = json.loads(path.read_text()) | (settings or {})
        path.write_text(json.dumps({k: v for k, v in content.items() if k not in drop}))
        if model is not None:
            config = folder / "model_config.yaml"
            found = yaml.safe_load(config.read_text()) | {"name": model}
            config.write_text(yaml.safe_dump(found))
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        return folder

    return make


TEXT = "Add 3 and 4."


@pytest.mark.parametrize(
    "changes",
    [
        {"drop": ("tokenizer_class",)},
        {"settings": {"tokenizer_class": None}},
        {"settings": {"bos_token": "<never seen>"}},
        {"settings": {"chat_template": [{"name": "default", "template": "x"}]}},
    ],
)
def test_valid_files_are_read(changed, tiny_checkpoint, changes):
    wanted = load_tokenizer(tiny_checkpoint)
    found = load_tokenizer(changed(**changes))
    assert found.encode(TEXT).tolist() == wanted.encode(TEXT).tolist()
    assert found.eos_id == wanted.eos_id


def test_of_several_ends_the_first_is_that_of_a_text(changed, tiny_checkpoint):
    eos = load_tokenizer(tiny_checkpoint).eos_id
    folder = changed(drop=("eos_token",), generation={"eos_token_id": [eos, eos + 1]})
    assert load_tokenizer(folder).eos_id == eos


def test_broken_files_are_named(changed):
    folder = changed()
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(Skip2BenchError, match=r"bring tokenizer.json"):
        load_tokenizer(folder)


@pytest.mark.parametrize("folder", ["Llama-3-mine", "copy", "SmolLM2-Instruct"])
def test_the_folders_name_decides_nothing(changed, folder):
    assert begins_prompts(changed(folder)) is False


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        ({"model": "Llama-3.2-1B"}, True),
        ({"model": "SmolLM2-135M-Instruct"}, True),
        ({"model": "SmolLM2-135M"}, False),
        ({"settings": {"add_bos_token": True}}, True),
        ({"settings": {"tokenizer_class": "LlamaTokenizer"}}, True),
        ({"settings": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}}, False),
    ],
)
def test_the_models_files_decide(changed, changes, begins):
    assert begins_prompts(changed(**changes)) is begins


def test_it_is_said_where_litgpt_would_decide_otherwise(changed, capsys):
    known = {"settings": {"bos_token": "<|endoftext|>"}}
    folder = changed("anything", model="Llama-3.2-1B", **known)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.use_bos is True
    assert tokenizer.encode(TEXT)[0] == tokenizer.bos_id
    assert "LitGPT would decide otherwise" in capsys.readouterr().err
    load_tokenizer(folder)
    assert capsys.readouterr().err == ""  # once
