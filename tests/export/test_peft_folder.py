"""A padded base says what the base says, and PEFT's LoRA on it what the adapted model says."""

import pytest
import torch
from families import adapted_model
from litgpt.model import GPT

from skip2bench.errors import Skip2BenchError
from skip2bench.export.chat import Chat
from skip2bench.export.hugging_face import write_hugging_face
from skip2bench.export.peft_folder import (
    check_can_write,
    read_adapter,
    split_adapter,
    write_adapter,
)
from skip2bench.models.widen import Widening, choose_epsilon, plan_layout, widened_config

CHAT = Chat(template=None, is_base_template=False, adds_bos=False)
FAMILIES = ["llama-2", "llama-3", "qwen-2.5", "qwen-3", "gemma", "gemma-2", "olmo-2", "phi-3"]


def _split(model):
    layout = plan_layout(model.config, model.settings, multiple_of=8)
    epsilon = choose_epsilon(model, torch.float32, 4.0)
    weights = dict(Widening(model, layout, epsilon, torch.float32).weights())
    config = widened_config(model.config, layout)
    return config, *split_adapter(config, weights, layout)


def _logits(config, weights, tokens):
    model = GPT(config)
    model.load_state_dict(weights)
    with torch.no_grad():
        return model.eval()(tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_padded_base_and_its_adapter_say_the_same(family, tmp_path):
    model = adapted_model(family)
    config, base, pairs = _split(model)
    tokens = torch.randint(40, (2, 20))
    rank = write_adapter(tmp_path / "adapter", config, pairs, tmp_path / "base")
    assert rank == 6
    with torch.no_grad():
        adapted = model(tokens)
        model.adapters.lora_B.zero_()
        plain = model(tokens)
    torch.testing.assert_close(_logits(config, base, tokens), plain, rtol=0, atol=2e-3)
    merged = read_adapter(tmp_path / "adapter", config, base)
    torch.testing.assert_close(_logits(config, merged, tokens), adapted, rtol=0, atol=4e-3)


def test_one_padded_base_serves_many_adapters():
    first, second = adapted_model("llama-2"), adapted_model("llama-2")
    with torch.no_grad():
        second.adapters.lora_A.normal_(0, 0.3)
        second.adapters.lora_B.normal_(0, 0.3)
    bases = [_split(model)[1] for model in (first, second)]
    assert bases[0].keys() == bases[1].keys()
    assert all(torch.equal(value, bases[1][name]) for name, value in bases[0].items())


@pytest.mark.parametrize("family", ["llama-2", "gemma"])
def test_peft_itself_says_the_same(family, tiny_checkpoint, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = adapted_model(family)
    config, base, pairs = _split(model)
    (tmp_path / "base").mkdir()
    write_hugging_face(tmp_path / "base", config, base, tiny_checkpoint, torch.float32, CHAT)
    write_adapter(tmp_path / "adapter", config, pairs, tmp_path / "base")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter").eval()
    tokens = torch.randint(40, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(adapted(tokens).logits, model(tokens), rtol=0, atol=4e-3)


@pytest.mark.parametrize(
    ("family", "reason"),
    [("pythia", "writes biases into its stream"), ("mixtral", "has experts")],
)
def test_what_lora_cannot_carry_is_refused(family, reason):
    with pytest.raises(Skip2BenchError, match=reason):
        check_can_write(adapted_model(family).config)
