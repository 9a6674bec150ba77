"""Answers with a key-value cache: those of a model without one, in whole characters."""

from dataclasses import replace

import pytest
import torch
from litgpt.tokenizer import Tokenizer

from skip2bench.errors import Skip2BenchError
from skip2bench.models.base import load_base
from skip2bench.models.generation import (
    Answer,
    Sampling,
    encode_question,
    key_value_cache,
    make_question,
)
from skip2bench.models.skip import SkipGPT, SkipSettings


@pytest.fixture
def tokenizer(tiny_checkpoint):
    return Tokenizer(tiny_checkpoint)


@pytest.fixture
def model(tiny_checkpoint):
    base = load_base(str(tiny_checkpoint), torch.device("cpu"), torch.float32, 0)
    model = SkipGPT(base.config, SkipSettings(blocks=(0, 2), r=3, alpha=16))
    model.load_state_dict(base.weights, strict=False)
    torch.manual_seed(3)
    with torch.no_grad():
        model.adapters.lora_B.normal_(0, 0.3)
    return model.eval()


def _ask(model, tokenizer, prompt="Add 1.", stop_tokens=(), **sampling):
    question = encode_question(tokenizer, model.config, "alpaca", prompt)
    question = replace(question, ids=tokenizer.encode(prompt), stop_tokens=stop_tokens)
    return Answer(model, question, Sampling(**({"max_new_tokens": 12} | sampling)))


def test_the_answer_is_that_of_a_model_without_a_cache(model, tokenizer):
    answer = _ask(model, tokenizer)
    answer.finish()
    ids = tokenizer.encode("Add 1.").tolist()
    with torch.no_grad():
        for token in answer.ids:
            assert int(model(torch.tensor([ids]))[0, -1].argmax()) == token
            ids.append(token)
    assert len(answer.ids) == 12


def test_the_text_comes_in_pieces_that_are_its_whole(model, tokenizer):
    answer = _ask(model, tokenizer, max_new_tokens=40)
    pieces = list(answer)
    assert "".join(pieces) == answer.text
    assert len(pieces) > 10
    assert tokenizer.processor.decode(answer.ids).startswith(answer.text)
    assert answer.seconds > 0


def test_a_character_of_many_tokens_comes_whole(model, tokenizer, monkeypatch):
    wanted = tokenizer.encode("日本語", bos=False)
    assert len(wanted) == 9
    answer = _ask(model, tokenizer)
    monkeypatch.setattr(answer, "_generate", lambda: iter(wanted))
    assert list(answer) == ["日", "本", "語"]


def test_a_stop_sequence_ends_it(model, tokenizer):
    free = _ask(model, tokenizer)
    free.finish()
    stop = free.ids[4]
    first = free.ids.index(stop)
    answer = _ask(model, tokenizer, stop_tokens=([stop],))
    answer.finish()
    assert answer.ids == free.ids[:first]


def test_a_seed_decides_what_is_drawn(model, tokenizer):
    def draw(seed):
        torch.manual_seed(seed)
        answer = _ask(model, tokenizer, temperature=2.0, top_p=0.95)
        answer.finish()
        return answer.ids

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_the_context_bounds_prompt_and_answer(model, tokenizer):
    with pytest.raises(
        Skip2BenchError, match=r"prompt has \d+ tokens, and the model reads at most 95;"
    ):
        _ask(model, tokenizer, "Add 1 and 2. " * 40)
    answer = _ask(model, tokenizer, max_new_tokens=10_000)
    answer.finish()
    assert len(answer.prompt_ids) + len(answer.ids) <= 96


def test_a_sliding_window_bounds_a_prompt(model, tokenizer):
    config = replace(model.config, sliding_window_size=8)
    make_question(tokenizer, config, "alpaca", torch.arange(8))
    with pytest.raises(Skip2BenchError, match="has 9 tokens, and the model reads at most 8 at one"):
        make_question(tokenizer, config, "alpaca", torch.arange(9))


def test_a_model_can_be_trained_on_afterwards(model, tokenizer):
    before = model.max_seq_length
    _ask(model, tokenizer).finish()
    assert model.max_seq_length == before
    assert all(block.attn.kv_cache is None for block in model.transformer.h)
    model(torch.randint(320, (1, 90))).sum().backward()
    assert model.adapters.lora_B.grad is not None


def test_a_cache_ends_with_its_block(model):
    with key_value_cache(model, 10):
        assert model.transformer.h[0].attn.kv_cache is not None
    assert model.mask_cache is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens is 0; it must be at least 1"),
        ({"temperature": -1.0}, "--temperature is -1.0; it must be 0 or more"),
        ({"temperature": float("nan")}, "--temperature is nan"),
        ({"top_p": 0.0}, "--top-p is 0.0; it must be above 0"),
        ({"top_p": 1.5}, "--top-p is 1.5"),
    ],
)
def test_bad_sampling_is_one_line(values, message):
    with pytest.raises(Skip2BenchError, match=message):
        Sampling(**values)
