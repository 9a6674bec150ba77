"""Asking a run, and its base beside it."""

import shutil

import pytest
import torch
from litgpt.tokenizer import Tokenizer

from skip2bench.errors import Skip2BenchError
from skip2bench.export.generate import open_asked
from skip2bench.export.run import run_export
from skip2bench.models.generation import Sampling
from skip2bench.models.tokenizer import load_tokenizer

SHORT = Sampling(max_new_tokens=12)


def _answers(folder, prompt="Add 4 and 5.", sampling=SHORT, **options):
    asked = open_asked(folder, sampling, device="cpu", **options)
    answer = asked.prepare(prompt)
    answer.finish()
    return asked, answer.ids


@pytest.mark.parametrize("method", ["skip2", "lora", "last", "full"])
def test_the_base_answers_as_its_own_folder_does(train, method):
    run = train(method=method, max_steps=8, learning_rate=5e-2)[3]
    asked, adapted = _answers(run)
    with asked.base("Add 4 and 5.") as answer:
        answer.finish()
    assert answer.ids == _answers(train.checkpoint)[1]
    assert adapted != answer.ids
    again = asked.prepare("Add 4 and 5.")
    again.finish()
    assert again.ids == adapted


def test_an_exported_checkpoint_answers_as_the_run_does(train, tmp_path):
    run = train(method="skip2", max_steps=8, learning_rate=5e-2)[3]
    run_export(run, "litgpt", tmp_path / "out")
    assert _answers(tmp_path / "out")[1] == _answers(run)[1]


def test_the_prompt_is_in_the_style_of_the_run(train):
    run = train(method="skip2", max_steps=1, prompt_style="olmo")[3]
    asked, _ = _answers(run)
    assert asked.source.prompt_style == "olmo"
    with_input = asked.prepare("Add.", "4 and 5")
    assert len(with_input.prompt_ids) > len(asked.prepare("Add.").prompt_ids)


def test_a_seed_draws_the_same_for_base_and_adapted(train):
    run = train(method="skip2", max_steps=1)[3]
    warm = Sampling(max_new_tokens=12, temperature=1.5)
    assert _answers(run, sampling=warm, seed=3)[1] == _answers(run, sampling=warm, seed=3)[1]
    assert _answers(run, sampling=warm, seed=3)[1] != _answers(run, sampling=warm, seed=4)[1]


def test_a_checkpoint_has_no_base_to_compare_with(tiny_checkpoint):
    asked = open_asked(tiny_checkpoint, SHORT, device="cpu")
    with pytest.raises(Skip2BenchError, match="ask it without --compare"), asked.base("x"):
        pass


def test_the_adapter_is_as_it_was_after_its_base_was_asked(train):
    run = train(method="lora", max_steps=4)[3]
    asked, _ = _answers(run)
    before = {key: value.clone() for key, value in asked.source.model.state_dict().items()}
    with asked.base("x") as answer:
        answer.finish()
    after = asked.source.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("method", ["skip2", "full", "lora"])
def test_prompts_begin_as_they_did_whatever_the_folder_is_called(
    train, tiny_checkpoint, tmp_path, method
):
    """LitGPT goes by the folder's name where the tokenizer does not say it, here the model's."""
    base = shutil.copytree(tiny_checkpoint, tmp_path / "Llama-3-tiny")
    assert Tokenizer(base).use_bos
    wanted = load_tokenizer(base).encode("Add.").tolist()
    assert wanted == load_tokenizer(tiny_checkpoint).encode("Add.").tolist()
    run = train(method=method, checkpoint_dir=base, max_steps=1)[3]
    exported = tmp_path / "out"
    run_export(run, "litgpt", exported)
    folders = [exported, run / "final"] if method != "skip2" else [exported]
    for folder in folders:
        assert Tokenizer(folder).encode("Add.").tolist() == wanted
        assert load_tokenizer(folder).encode("Add.").tolist() == wanted


@pytest.mark.parametrize("style", ["phi-1", "falcon"])
def test_a_style_whose_stop_tokens_the_tokenizer_lacks_ends_with_the_text(train, style):
    run = train(method="skip2", max_steps=1, prompt_style=style)[3]
    assert _answers(run, "Add.")[1]


def test_a_damaged_summary_is_one_line(train):
    run = train(method="skip2", max_steps=1)[3]
    (run / "summary.json").write_text("{")
    with pytest.raises(Skip2BenchError, match=r"summary\.json is no JSON"):
        open_asked(run, SHORT, device="cpu")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("config.json", "is a Hugging Face model, which transformers loads"),
        ("adapter_config.json", "is a PEFT adapter, which PEFT loads"),
        ("a.gguf", "is for llama.cpp, which loads it"),
    ],
)
def test_folders_of_other_tools_are_known(tmp_path, name, kind):
    (tmp_path / name).write_text("{}")
    with pytest.raises(Skip2BenchError, match=kind):
        open_asked(tmp_path, SHORT)


@pytest.mark.parametrize("method", ["skip2", "lora", "last"])
def test_a_base_that_has_gone_is_asked_for(train, tiny_checkpoint, tmp_path, method):
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    run = train(method=method, checkpoint_dir=base, max_steps=1)[3]
    base.rename(tmp_path / "moved")
    with pytest.raises(Skip2BenchError, match=r"no longer in .*; say where it is with"):
        open_asked(run, SHORT, device="cpu")
    assert open_asked(run, SHORT, device="cpu", checkpoint_dir=tmp_path / "moved")


def test_the_base_of_a_run_whose_weights_all_trained_has_its_name(train, tmp_path):
    run = train(method="full", max_steps=1)[3]
    assert run_export(run, "litgpt", tmp_path / "out").model == "tiny"
