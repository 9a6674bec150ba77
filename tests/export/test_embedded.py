"""The embedded model end to end: trained, exported to every form, and the same answers from all."""

import pytest
import torch

from skip2bench.config.load import load_train_config
from skip2bench.export.generate import open_asked
from skip2bench.export.run import run_export
from skip2bench.models.generation import Sampling
from skip2bench.train.run import run_training

PROMPTS = ("What does os.path.join do?", "List the methods of a dict.", "print")
NEW_TOKENS = 16


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded") / "run"
    values = {"method": "skip2", "train_samples": 32, "epochs": 1, "out_dir": folder}
    values |= {"val_samples": 8, "domain_text": "none", "learning_rate": 1e-2, "device": "cpu"}
    run_training(load_train_config(values, None)[0], ["train"])
    return folder


@pytest.fixture(scope="module")
def answers(run):
    """Of the run itself: token ids of each prompt and of its answer."""
    asked = open_asked(run, Sampling(max_new_tokens=NEW_TOKENS), device="cpu")
    found = []
    for prompt in PROMPTS:
        answer = asked.prepare(prompt)
        answer.finish()
        found.append((answer.prompt_ids, answer.ids))
    return found


def _generate(model, prompt):
    ids = torch.tensor([prompt])
    with torch.no_grad():
        made = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    return made[0, len(prompt) :].tolist()


def test_litgpt(run, answers, tmp_path):
    run_export(run, "litgpt", tmp_path / "out", "float32")
    asked = open_asked(tmp_path / "out", Sampling(max_new_tokens=NEW_TOKENS), device="cpu")
    for prompt, (ids, wanted) in zip(PROMPTS, answers, strict=True):
        answer = asked.prepare(prompt)
        answer.finish()
        assert (answer.prompt_ids, answer.ids) == (ids, wanted)


@pytest.mark.parametrize("to", ["hf", "gguf", "peft"])
def test_transformers(run, answers, tmp_path, to):
    transformers = pytest.importorskip("transformers")
    result = run_export(run, to, tmp_path / "out", "float32")
    assert result.relative_difference < 1e-5
    folder, options = tmp_path / "out", {"dtype": torch.float32}
    if to == "gguf":
        options["gguf_file"] = next(folder.glob("*.gguf")).name
    if to == "peft":
        peft = pytest.importorskip("peft")
        base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", **options)
        model = peft.PeftModel.from_pretrained(base, folder / "adapter")
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    for ids, wanted in answers:
        assert _generate(model.eval(), ids)[: len(wanted)] == wanted
    if to == "hf":
        _check_chats(transformers.AutoTokenizer.from_pretrained(folder), answers)


def _check_chats(tokenizer, answers):
    """Chats are read as the run read its prompts."""
    for prompt, (ids, _) in zip(PROMPTS, answers, strict=True):
        chat = [{"role": "user", "content": prompt}]
        assert tokenizer.apply_chat_template(chat, return_dict=False) == ids
