"""Answers computed in one batch are those that each question gets alone."""

import pytest
import torch
from litgpt.tokenizer import Tokenizer
from tiny import ARCHITECTURES, small_config

from skip2bench.config.train import TrainConfig
from skip2bench.models.base import load_checkpoint
from skip2bench.models.generation import Answer, Question, Sampling, answer_together
from skip2bench.models.methods import build_model, resolve_method
from skip2bench.models.skip import SkipGPT, SkipSettings

PROMPTS = (3, 9, 1, 14, 9)
"""Tokens of each question."""


def ask(tokenizer, n_tokens, vocabulary, context, stops=()):
    generator = torch.Generator().manual_seed(n_tokens)
    ids = torch.randint(vocabulary, (n_tokens,), generator=generator)
    return Question(ids=ids, stop_tokens=stops, tokenizer=tokenizer, context=context)


def train_adapters(model):
    """Weights that a trained model could have: the adapters change what is answered."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


def build(checkpoint, method, **options):
    base = load_checkpoint(checkpoint, torch.device("cpu"), torch.float32)
    config = TrainConfig(method=method, blocks="0,1,3", lora_dropout=0.0, **options)
    settings = resolve_method(method, config.blocks, config, base.config)
    return train_adapters(build_model(settings, base, torch.device("cpu"), 0))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lora", {}),
        ("skip", {}),
        ("skip", {"features": "raw"}),
        ("skip", {"target": "logits"}),
        ("full", {}),
    ],
)
def test_each_answer_of_a_batch_is_the_one_that_its_question_gets_alone(
    tiny_checkpoint, method, options
):
    """Token for token, by LitGPT's own generation too; some reach the end of the context."""
    model, tokenizer = build(tiny_checkpoint, method, **options), Tokenizer(tiny_checkpoint)
    questions = [ask(tokenizer, n, 320, 96) for n in (*PROMPTS, 90)]
    together = answer_together(model, questions, 12)
    assert together == [answer_together(model, [one], 12)[0] for one in questions]
    for question, answer in zip(questions, together, strict=True):
        alone = Answer(model, question, Sampling(max_new_tokens=12))
        alone.finish()
        assert answer == alone.ids
    assert [len(answer) for answer in together] == [*[12] * len(PROMPTS), 6]
    assert len(set(map(tuple, together))) == len(questions) - 1  # two ask the same


def test_an_answer_ends_at_a_stop_sequence_and_the_others_go_on(tiny_checkpoint):
    model, tokenizer = build(tiny_checkpoint, "skip"), Tokenizer(tiny_checkpoint)
    questions = [ask(tokenizer, n, 320, 96) for n in PROMPTS[:3]]
    whole = answer_together(model, questions, 10)
    place = next(i for i in range(2, 9) if whole[0][i] not in whole[0][:i])
    stops = (whole[0][place - 1 : place + 1],)
    ended = [ask(tokenizer, n, 320, 96, stops) for n in PROMPTS[:3]]
    answers = answer_together(model, ended, 10)
    assert answers[0] == whole[0][: place - 1]
    for cut, full in zip(answers[1:], whole[1:], strict=True):
        assert cut == full[: len(cut)]
    assert max(map(len, answers)) == 10


@torch.no_grad()
def answer_without_cache(model, question, n_tokens):
    ids = question.ids
    for _ in range(n_tokens):
        ids = torch.cat((ids, model(ids[None])[0, -1].argmax(dim=-1, keepdim=True)))
    return ids[len(question.ids) :].tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_family_answers_in_batches(architecture):
    """Their caches of keys and values, masks and rotations are LitGPT's."""
    torch.manual_seed(3)
    model = SkipGPT(small_config(architecture), SkipSettings(blocks=(0, 2), r=2, alpha=4))
    model = train_adapters(model.apply(model._init_weights))
    questions = [ask(None, n, 40, 32) for n in PROMPTS]
    together = answer_together(model, questions, 8)
    assert together == [answer_together(model, [one], 8)[0] for one in questions]
    assert together == [answer_without_cache(model, one, 8) for one in questions]
