"""A chat template puts messages to a model as its prompt style did while it was trained."""

import json
import shutil

import pytest
from jinja2 import Template
from litgpt.prompts import PromptStyle

from skip2bench.export.chat import describe_chat, make_chat_template
from skip2bench.export.hugging_face import _write_chat_template


@pytest.mark.parametrize("style", ["alpaca", "smollm2", "llama3", "qwen2.5"])
def test_the_instruction_stands_where_the_style_has_it(style):
    text = Template(make_chat_template(style)).render(messages=[{"content": 'Add 1 and "2".'}])
    assert text == PromptStyle.from_name(style).apply('Add 1 and "2".')


@pytest.fixture
def base(tiny_checkpoint, tmp_path):
    """A base with a template of its own, whose tokenizer has <|endoftext|> at the beginning."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"chat_template": "its own", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_the_base_keeps_its_template_where_that_is_the_style(base):
    chat = describe_chat(base, "alpaca", is_own_style=True)
    assert (chat.template, chat.is_base_template) == ("its own", True)
    assert not describe_chat(base, "alpaca", is_own_style=False).is_base_template


def test_the_beginning_is_added_once(base):
    assert describe_chat(base, "alpaca", is_own_style=False).adds_bos
    # OLMo's style has it already
    assert not describe_chat(base, "olmo", is_own_style=False).adds_bos


def test_a_folder_has_the_template_of_the_style_and_no_other(base, tmp_path):
    out = shutil.copytree(base, tmp_path / "out")
    _write_chat_template(base, out, describe_chat(base, "alpaca", is_own_style=False))
    written = json.loads((out / "tokenizer_config.json").read_text())
    text = Template(written["chat_template"]).render(
        messages=[{"content": "Add."}], bos_token="<|endoftext|>"
    )
    assert text == "<|endoftext|>" + PromptStyle.from_name("alpaca").apply("Add.")
