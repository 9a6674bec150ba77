"""What a chat has around its messages, for tools that read a template and not a prompt style."""

import json
from dataclasses import dataclass
from pathlib import Path

from litgpt.prompts import PromptStyle
from litgpt.tokenizer import Tokenizer

from skip2bench.data.chat import read_template
from skip2bench.data.styles import ChatTemplateStyle, write_tokens_into
from skip2bench.models.tokenizer import load_tokenizer

_MARK = "\N{SYMBOL FOR UNIT SEPARATOR}prompt"
"""Text that no style has of its own."""


@dataclass(frozen=True, kw_only=True)
class Chat:
    """How prompts were put to a model while it was trained."""

    template: str | None
    """Jinja, on `messages`; None where the style needs more than text around one message."""
    is_base_template: bool
    """It is the base's own."""
    adds_bos: bool
    """The token of the beginning stands before it, and the template does not have it."""


def describe_chat(base_folder: Path, style: str, *, is_own_style: bool) -> Chat:
    """The chat of a run.

    Args:
        base_folder: With the tokenizer.
        style: LitGPT's name of the prompt style that was trained with.
        is_own_style: It is the style of the base model, whose own template stays then.
    """
    tokenizer = load_tokenizer(base_folder)
    own = read_template(base_folder)
    form = PromptStyle.from_name(style)
    if isinstance(form, ChatTemplateStyle):
        if own is not None and write_tokens_into(own, tokenizer) == form.text:
            return Chat(template=own, is_base_template=True, adds_bos=False)
        return Chat(template=form.text, is_base_template=False, adds_bos=False)
    adds_bos = bool(tokenizer.use_bos) and not _begins_with_bos(tokenizer, str(form.apply(_MARK)))
    if is_own_style and own is not None:
        return Chat(template=own, is_base_template=True, adds_bos=adds_bos)
    return Chat(template=make_chat_template(style), is_base_template=False, adds_bos=adds_bos)


def _begins_with_bos(tokenizer: Tokenizer, text: str) -> bool:
    """True where a text has the token of the beginning itself; LitGPT's `encode` hides that."""
    found = tokenizer.processor.encode(text)
    ids = found if isinstance(found, list) else found.ids
    return bool(ids) and ids[0] == tokenizer.bos_id


def make_chat_template(style: str) -> str | None:
    """A Jinja template that puts the last message where a prompt style has the instruction.

    None where the style needs more than one text around it.
    """
    text = PromptStyle.from_name(style).apply(_MARK)
    if not isinstance(text, str) or text.count(_MARK) != 1:
        return None
    before, after = (json.dumps(part, ensure_ascii=False) for part in text.split(_MARK))
    return f"{{{{ {before} + messages[-1]['content'] + {after} }}}}"
