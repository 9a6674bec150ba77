"""Prompt styles, LitGPT's: which one a model has, and records brought to one that knows no input.

LitGPT's styles are written for one text; all but Alpaca's leave a record's `input` out of the
prompt, and some its system prompt. Here they stand around the instruction, as people write it by
hand. A file is a style, too: a Jinja template of `instruction`, `input` and `system`, or a chat
template, which asks for `messages`.
"""

import json
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from litgpt.prompts import (
    PromptStyle,
    model_name_to_prompt_style,
    prompt_styles,
    save_prompt_style,
)
from litgpt.tokenizer import Tokenizer

from skip2bench.data.chat import compile_template, encode_as_written, name_tokens
from skip2bench.data.records import Record
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note
from skip2bench.io.text import read_text
from skip2bench.io.units import format_amount
from skip2bench.io.whole import write_bytes

_DEFAULT = "alpaca"
PROMPT_TEMPLATE_FILE = "prompt_template.jinja"
"""Beside an adapter, the template that it was trained with."""
_ASKS_FOR_MESSAGES = re.compile(r"\{[%{][^}]*\bmessages\b")
_MARK = "\N{SYMBOL FOR UNIT SEPARATOR}input"
"""Text that no style has of its own."""


class FileStyle(PromptStyle):  # type: ignore[misc]
    """A style that a user has written: a Jinja template of `instruction`, `input` and `system`."""

    def __init__(self, text: str) -> None:
        """Nothing is rendered yet.

        Args:
            text: The template.

        Raises:
            TemplateError: it is none.
        """
        self.text = text
        # a line end at the end of the template is a part of the prompt
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, keep_trailing_newline=True
        )
        self._template = environment.from_string(text)

    def apply(self, prompt: str, *, sys_prompt: str | None = None, **kwargs: str) -> str:
        """The prompt in this style.

        Raises:
            TemplateError: the template asks for something else than it is given.
        """
        return self._template.render(
            instruction=prompt, input=kwargs.get("input") or "", system=sys_prompt or ""
        )


class ChatTemplateStyle(PromptStyle):  # type: ignore[misc]
    """A chat template as a style: what it makes of one exchange, with its own special tokens."""

    def __init__(self, text: str, stands_for: str = _DEFAULT) -> None:
        """Nothing is rendered yet.

        Args:
            text: The template; what it asks for besides `messages` is in it, or empty.
            stands_for: LitGPT's name of the style that LitGPT itself would ask the model in.

        Raises:
            TemplateError: it is none.
        """
        self.text, self.stands_for = text, stands_for
        self._template = compile_template(text, {})

    def apply(self, prompt: str, *, sys_prompt: str | None = None, **_: str) -> str:
        """The prompt as the template asks it.

        Raises:
            TemplateError: the template refuses it.
        """
        messages = [*self._begin(sys_prompt), {"role": "user", "content": prompt}]
        return self._template.render(messages=messages, add_generation_prompt=True)

    def stop_tokens(self, tokenizer: Tokenizer) -> tuple[list[int], ...]:
        """The end of text, and what the template writes behind an answer."""
        exchange = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _MARK}]
        whole = self._template.render(messages=exchange, add_generation_prompt=False)
        _, mark, rest = whole.rpartition(_MARK)
        end = encode_as_written(tokenizer, rest.strip()) if mark else []
        return ([tokenizer.eos_id], *([end] if end else []))

    @staticmethod
    def _begin(system: str | None) -> list[dict[str, str]]:
        return [{"role": "system", "content": system}] if system else []


CHAT_STYLE = "chat_template"
"""Name of the style that a checkpoint's own chat template is."""
_TOKENS = "{%- set bos_token = "


def keep_chat_style(name: str, text: str, tokenizer: Tokenizer, stands_for: str) -> str:
    """Make a chat template a style of LitGPT's from now on, and return its name.

    Args:
        name: Under which it is kept.
        text: The template; the tokens that it asks for are written into it.
        tokenizer: Which has them.
        stands_for: See `ChatTemplateStyle`.
    """
    whole = write_tokens_into(text, tokenizer)
    prompt_styles[name] = partial(ChatTemplateStyle, whole, stands_for)
    return name


def write_tokens_into(text: str, tokenizer: Tokenizer) -> str:
    """A chat template that says itself which tokens begin and end a text."""
    if text.startswith(_TOKENS):
        return text
    tokens = name_tokens(tokenizer)
    bos, eos = (json.dumps(tokens[key], ensure_ascii=False) for key in ("bos_token", "eos_token"))
    return f"{_TOKENS}{bos} %}}{{%- set eos_token = {eos} %}}{text}"


def read_style(path: Path) -> str:
    """The name under which a template file is a style of LitGPT's from now on: its path.

    Raises:
        Skip2BenchError: it cannot be read, or is no template of a prompt.
    """
    text = read_text(path, "prompt style")
    try:
        kind = ChatTemplateStyle if _ASKS_FOR_MESSAGES.search(text) else FileStyle
        made = kind(text).apply(_MARK)
    except TemplateError as error:
        raise Skip2BenchError(
            f"prompt style {str(path)!r} is no template of instruction, input and system, nor of "
            f"messages ({error})"
        ) from error
    if _MARK not in made:
        raise Skip2BenchError(
            f"prompt style {str(path)!r} has no place for the instruction; write "
            "{{ instruction }} where it goes"
        )
    prompt_styles[str(path)] = partial(kind, text)
    return str(path)


def save_style(name: str, folder: Path) -> None:
    """Write which style an adapter was trained with, as LitGPT does; a file's with its template.

    LitGPT knows no chat templates: it is told the style that it has for the model.
    """
    style = PromptStyle.from_name(name)
    stands_for = getattr(style, "stands_for", None)
    save_prompt_style(PromptStyle.from_name(stands_for) if stands_for else style, folder)
    if isinstance(style, FileStyle | ChatTemplateStyle):
        write_bytes(folder / PROMPT_TEMPLATE_FILE, style.text.encode())


def choose_prompt_style(name: str, model: str) -> str:
    """LitGPT's name of the style that `--prompt-style` names, or the path of a template file.

    LitGPT's files may name a style by its class, as litgpt.prompts.Alpaca.

    `auto` is the style that LitGPT knows for a model of that name, as chat models have one; else
    Alpaca's.

    Raises:
        Skip2BenchError: there is no such style.
    """
    if name == "auto":
        own = type(model_name_to_prompt_style(model))
        return next((key for key, style in prompt_styles.items() if style is own), _DEFAULT)
    if os.path.isfile(name):
        return read_style(Path(name))
    if name.startswith(_OF_CLASS):
        name = _find_by_class(name)
    if name not in prompt_styles:
        raise Skip2BenchError(
            f"prompt_style is {name!r}; choose from auto, {', '.join(_LITGPTS)}, or give a file"
        )
    return name


_LITGPTS = tuple(prompt_styles)
_OF_CLASS = "litgpt.prompts."


def _find_by_class(path: str) -> str:
    """LitGPT's name of the style of a class, such as litgpt.prompts.Phi3; the path for none."""
    wanted = path.removeprefix(_OF_CLASS)
    found = (name for name in _LITGPTS if getattr(prompt_styles[name], "__name__", None) == wanted)
    return next(found, path)


def place_input(records: Sequence[Record], style: PromptStyle) -> list[Record]:
    """Records whose texts all reach the model, around the instruction where a style has no place.

    Args:
        records: Of one side of the data; conversations stay as they are.
        style: LitGPT's.
    """
    if all("messages" in record for record in records):
        return list(records)
    has_input = _MARK in style.apply("", instruction="", input=_MARK, output="")
    has_system = _MARK in style.apply("", sys_prompt=_MARK)
    return [_place(record, has_input, has_system) for record in records]


def _place(record: Record, has_input: bool, has_system: bool) -> Record:
    own_input, system = record.get("input", ""), record.get("sys_prompt", "")
    moves_input = bool(own_input.strip()) and not has_input
    moves_system = bool(system.strip()) and not has_system
    if "messages" in record or not (moves_input or moves_system):
        return record
    parts = (
        *([system] if moves_system else []),
        *([record["instruction"]] if record["instruction"] else []),
        *([own_input] if moves_input else []),
    )
    placed = {**record, "instruction": "\n\n".join(parts)}
    if moves_input:
        placed["input"] = ""
    if moves_system:
        del placed["sys_prompt"]
    return placed


def note_style(asked_for: str, style: str, moved: int) -> None:
    """Say which style was chosen, and of how many records `place_input` moved a text."""
    parts = [f"prompt style {style}, the model's own"] if asked_for == "auto" else []
    if moved:
        amount = format_amount(moved, "record")
        parts.append(
            f"{style} has no place for an input or system prompt of its own: that of {amount} "
            "stands at the instruction"
        )
    if parts and (style != _DEFAULT or moved):
        note("; ".join(parts))
