"""Answers, token by token with a key-value cache: LitGPT's own generation, on any of the models."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from litgpt.config import Config
from litgpt.generate.base import generate_fn
from litgpt.model import GPT
from litgpt.prompts import PromptStyle
from litgpt.tokenizer import Tokenizer
from tokenizers.decoders import DecodeStream
from torch import Tensor

from skip2bench.data.styles import place_input
from skip2bench.errors import Skip2BenchError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    """Tokens are drawn from the fewest that are together as likely as this."""

    def __post_init__(self) -> None:
        for name, value, is_good, wanted in (
            ("max-new-tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature, 0 <= self.temperature < 1e4, "0 or more"),
            ("top-p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1"),
        ):
            if not is_good:
                raise Skip2BenchError(f"--{name} is {value}; it must be {wanted}")


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt in its style, as tokens."""

    ids: Tensor
    """(T,)"""
    stop_tokens: tuple[list[int], ...]
    """Sequences that end the answer."""
    tokenizer: Tokenizer
    context: int
    """Most tokens of question and answer."""


def encode_question(
    tokenizer: Tokenizer, config: Config, style: str, prompt: str, own_input: str = ""
) -> Question:
    """Put a prompt into its style, and check that the model can read it.

    Args:
        tokenizer: Of the model.
        config: LitGPT's.
        style: LitGPT's name of the prompt style.
        prompt: What is asked.
        own_input: What it is about, as Alpaca's records have it.

    Raises:
        Skip2BenchError: the prompt leaves no room in the model's context.
    """
    _check_text(prompt, own_input)
    (record,) = place_input([{"instruction": prompt, "input": own_input, "output": ""}], style)
    form = PromptStyle.from_name(style)
    ids = tokenizer.encode(form.apply(record["instruction"], input=record["input"]))
    if len(ids) >= config.block_size:
        raise Skip2BenchError(
            f"the prompt has {len(ids):,} tokens, and the model reads at most "
            f"{config.block_size:,}; give a shorter one"
        )
    return Question(
        ids=ids,
        stop_tokens=_stop_sequences(form, tokenizer),
        tokenizer=tokenizer,
        context=config.block_size,
    )


def _check_text(*texts: str) -> None:
    """Raise a Skip2BenchError where bytes that are no UTF-8 came in."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise Skip2BenchError("the prompt is no UTF-8 text; save or type it as such") from error


def _stop_sequences(form: PromptStyle, tokenizer: Tokenizer) -> tuple[list[int], ...]:
    """What ends an answer in a style; of a tokenizer without its tokens, the end of text alone."""
    try:
        return tuple(form.stop_tokens(tokenizer))
    except ValueError:  # LitGPT's, of a token that the tokenizer does not have
        return ([tokenizer.eos_id],)


class Answer:
    """One answer: iterated, it gives its text as it comes, whole characters only."""

    def __init__(self, model: GPT, question: Question, sampling: Sampling) -> None:
        """Nothing is computed yet.

        Args:
            model: In evaluation mode.
            question: What it answers.
            sampling: How tokens are chosen.
        """
        self._model, self._question, self._sampling = model, question, sampling
        self._device = model.cos.device
        self._length = min(question.context, len(question.ids) + sampling.max_new_tokens)
        self.text, self.seconds = "", 0.0
        self.ids: list[int] = []

    @property
    def prompt_ids(self) -> list[int]:
        """Tokens of the prompt."""
        found: list[int] = self._question.ids.tolist()
        return found

    def __iter__(self) -> Iterator[str]:
        started = time.perf_counter()
        for piece in self._pieces():
            self.seconds = time.perf_counter() - started
            self.text += piece
            yield piece
        self.seconds = time.perf_counter() - started

    def finish(self) -> str:
        """Run to the end; the whole text."""
        for _ in self:
            pass
        return self.text

    def _pieces(self) -> Iterator[str]:
        tokenizer = self._question.tokenizer
        if tokenizer.backend != "huggingface":
            yield from tokenizer.decode_stream(self._generate(), device=self._device)
            return
        # LitGPT decodes each token alone, which breaks characters of several tokens
        stream = DecodeStream(skip_special_tokens=True)
        for token in self._generate():
            piece = stream.step(tokenizer.processor, int(token))
            if piece is not None:
                yield piece

    @torch.inference_mode()
    def _generate(self) -> Iterator[Tensor]:
        sampling = self._sampling
        with key_value_cache(self._model, self._length):
            for token in generate_fn(
                self._model,
                self._question.ids.to(self._device),
                self._length,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                stop_tokens=self._question.stop_tokens,
                include_prompt=False,
                include_eos=False,
            ):
                self.ids.append(int(token))
                yield token


@contextmanager
def key_value_cache(model: GPT, length: int, batch_size: int = 1) -> Iterator[None]:
    """Within, a model has a cache for so many positions; its context is what it was afterwards."""
    before, cos, sin = model.max_seq_length, model.cos, model.sin
    weight = model.transformer.wte.weight
    model.max_seq_length = length
    model.set_kv_cache(batch_size=batch_size, device=weight.device, dtype=weight.dtype)
    try:
        yield
    finally:
        model.clear_kv_cache()
        model.max_seq_length = before
        model.cos, model.sin = cos, sin  # those that it made here may not be trained with
