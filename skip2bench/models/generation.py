"""Answers, token by token with a key-value cache: LitGPT's own generation, on any of the models."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jinja2 import TemplateError
from litgpt.config import Config
from litgpt.generate.base import generate_fn
from litgpt.model import GPT
from litgpt.prompts import PromptStyle
from litgpt.tokenizer import Tokenizer
from tokenizers.decoders import DecodeStream
from torch import Tensor, nn

from skip2bench.data.chat import encode_as_written
from skip2bench.data.styles import ChatTemplateStyle, place_input
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
    tokenizer: Tokenizer,
    config: Config,
    style: str,
    prompt: str,
    own_input: str = "",
    system: str = "",
) -> Question:
    """Put a prompt into its style, and check that the model can read it.

    Args:
        tokenizer: Of the model.
        config: LitGPT's.
        style: LitGPT's name of the prompt style.
        prompt: What is asked.
        own_input: What it is about, as Alpaca's records have it.
        system: The system prompt; empty for the style's own.

    Raises:
        Skip2BenchError: the prompt leaves no room in the model's context, or is refused by a chat
            template.
    """
    _check_text(prompt, own_input, system)
    form = PromptStyle.from_name(style)
    asked = {"instruction": prompt, "input": own_input, "output": "", "sys_prompt": system}
    try:
        (record,) = place_input([asked], form)
        text = form.apply(
            record["instruction"],
            input=record["input"],
            sys_prompt=record.get("sys_prompt") or None,
        )
    except TemplateError as error:
        raise Skip2BenchError(f"the chat template refuses the prompt ({error})") from error
    if isinstance(form, ChatTemplateStyle):
        ids = torch.tensor(encode_as_written(tokenizer, text))
    else:
        ids = tokenizer.encode(text)
    return make_question(tokenizer, config, style, ids)


def make_question(tokenizer: Tokenizer, config: Config, style: str, ids: Tensor) -> Question:
    """A prompt that is tokens already.

    Args:
        tokenizer: Of the model.
        config: LitGPT's.
        style: LitGPT's name of the prompt style, which says what ends an answer.
        ids: (T,).

    Raises:
        Skip2BenchError: it leaves no room in the model's context.
    """
    form = PromptStyle.from_name(style)
    # LitGPT reads it at one time, within a sliding window where there is one
    most = min(config.block_size - 1, config.sliding_window_size or config.block_size)
    if len(ids) > most:
        raise Skip2BenchError(
            f"the prompt has {len(ids):,} tokens, and the model reads at most {most:,}"
            + (" at one time" if most < config.block_size - 1 else "")
            + "; give a shorter one"
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
    except (ValueError, TemplateError):
        # LitGPT's, of a token that the tokenizer does not have; a template's, of an exchange
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


@torch.inference_mode()
def answer_together(
    model: GPT,
    questions: Sequence[Question],
    max_new_tokens: int,
    after_token: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """The most likely tokens that answer each of several questions, computed in one batch.

    Prompts are padded on the right. A position sees none behind it, and an answer's tokens write
    over the keys and values of the padding before they are seen, so that each question gets the
    answer that it gets alone, but for the rounding of sums. What ends an answer is no part of it.

    Args:
        model: In evaluation mode.
        questions: At least one.
        max_new_tokens: Most tokens of an answer; it ends at the model's context too.
        after_token: Called when each answer has one token more.
    """
    device = model.cos.device
    lengths = torch.tensor([len(question.ids) for question in questions], device=device)
    room = [min(max_new_tokens, it.context - len(it.ids)) for it in questions]
    prompts = nn.utils.rnn.pad_sequence([it.ids for it in questions], batch_first=True)
    answers: list[list[int]] = [[] for _ in questions]
    is_open = [most > 0 for most in room]
    total = max(len(it.ids) + most for it, most in zip(questions, room, strict=True))
    with key_value_cache(model, total, len(questions)):
        _read_prompts(model, prompts.to(device))
        tokens = prompts.to(device).gather(1, lengths[:, None] - 1)
        positions = lengths[:, None] - 1
        while any(is_open):
            logits = model(tokens, positions, input_pos_maxp1=int(positions.max()) + 1)
            tokens = logits[:, -1].argmax(dim=-1, keepdim=True)
            for row, token in enumerate(tokens.flatten().tolist()):
                if is_open[row]:
                    answers[row].append(token)
                    is_open[row] = not _is_over(answers[row], questions[row], room[row])
            positions = positions + torch.tensor(is_open, device=device)[:, None]
            after_token()
    return answers


def _read_prompts(model: GPT, prompts: Tensor) -> None:
    """Fill the key-value cache from prompts (B, T) but for their last token; no logit is made."""
    length = prompts.size(1) - 1
    if not length:
        return
    head, model.lm_head = model.lm_head, nn.Identity()
    try:
        positions = torch.arange(length, device=prompts.device)
        model(prompts[:, :length], positions, input_pos_maxp1=length)
    finally:
        model.lm_head = head


def _is_over(answer: list[int], question: Question, room: int) -> bool:
    """True for an answer that has no more to come; what ended it is taken off."""
    for stop in question.stop_tokens:
        if stop and answer[-len(stop) :] == stop:
            del answer[-len(stop) :]
            return True
    return len(answer) >= room


@contextmanager
def key_value_cache(model: GPT, length: int, batch_size: int = 1) -> Iterator[None]:
    """Within, a model has a cache for so many positions; its context is what it was afterwards."""
    before, cos, sin = model.max_seq_length, model.cos, model.sin
    weight = model.transformer.wte.weight
    try:
        model.max_seq_length = length
        model.set_kv_cache(batch_size=batch_size, device=weight.device, dtype=weight.dtype)
        if model.config.attention_logit_softcapping is not None:
            # LitGPT adds the mask to capped scores, and its cache has True and False
            floor = torch.finfo(weight.dtype).min
            model.mask_cache = torch.zeros_like(model.mask_cache, dtype=weight.dtype).masked_fill(
                ~model.mask_cache, floor
            )
        yield
    finally:
        model.clear_kv_cache()
        model.max_seq_length = before
        model.cos, model.sin = cos, sin  # those that it made here may not be trained with
