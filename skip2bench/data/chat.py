"""Conversations: read from the forms that people have, and brought to tokens and labels.

They are rendered by the checkpoint's own chat template, where it has one and nobody has asked for
a prompt style, else by the style, an exchange after another. Loss is on the assistant's turns.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from litgpt.data import SFTDataset
from litgpt.prompts import Alpaca, ChatML, Llama3, PromptStyle
from litgpt.tokenizer import Tokenizer
from torch import Tensor

CHAT_TEMPLATE_FILE, TOKENIZER_FILE = "chat_template.jinja", "tokenizer_config.json"
Message = dict[str, Any]
"""Text under role (system, user, assistant, tool) and content; False under trains, where its turn
is not to be learnt."""

_FIELDS = ("messages", "conversations", "conversation", "dialogue", "dialog")
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response"), "tool"),
}
"""The role of who speaks, by the names that data sets have for it."""
_LATER = "\n\n"
"""Before an exchange that is not the first, where Alpaca's text of the beginning stood."""
_LLAMA_3_USER = "<|start_header_id|>user"


class ChatError(Exception):
    """Why a conversation cannot be used; "under FIELD" follows its text."""


def find_messages(entry: Mapping[str, Any], name: str | None) -> tuple[str, Any] | None:
    """The field of a conversation and what it holds; None for an entry that is none.

    Args:
        entry: Of a data file.
        name: As the user has named it; None for any that is known.
    """
    for key in (name,) if name else _FIELDS:
        value = entry.get(key)
        if isinstance(value, list) and (not value or isinstance(value[0], dict)):
            return key, value
    history: Any = entry.get("history")
    is_history = isinstance(history, list) and bool(history) and isinstance(history[0], list)
    if is_history and "output" in entry and "instruction" in entry:
        asked = [entry["instruction"], entry.get("input") or ""]
        turns = [*history, ["\n\n".join(filter(None, asked)), entry["output"]]]
        pairs = [(speaker, text) for turn in turns for speaker, text in zip(_PAIR, turn)]  # noqa: B905
        return "history", [{"role": role, "content": text} for role, text in pairs]
    return None


_PAIR = ("user", "assistant")


def read_messages(value: Sequence[Any], system: str = "") -> tuple[list[Message], list[str]]:
    """Messages of a conversation as they are rendered, and remarks on what was changed.

    Args:
        value: Mappings with role and content, or with from and value.
        system: Text of a field of its own.

    Raises:
        ChatError: a message is of nobody who is known, or no text; or nothing is answered.
    """
    remarks: list[str] = []
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for number, one in enumerate(value):
        message = _read_message(one, number)
        if message["role"] == "system" and messages and messages[0]["role"] == "system":
            if number and message["content"] != messages[0]["content"]:
                raise ChatError(f"has a second system message (message {number})")
            messages[0] = message
            continue
        last = messages[-1] if messages else None
        if last and last["role"] == message["role"] != "tool":
            _join(last, message)
            remarks.append("turns of one speaker after another joined")
        elif message["content"].strip() or message["role"] == "assistant":
            messages.append(message)
    start = 1 if messages and messages[0]["role"] == "system" else 0
    if len(messages) > start and messages[start]["role"] == "assistant":
        del messages[start]
        remarks.append("an answer before the first question left out")
    while messages and messages[-1]["role"] != "assistant":
        if messages.pop()["role"] != "system":
            remarks.append("a last turn that nobody answers left out")
    if not any(message["role"] == "assistant" for message in messages):
        raise ChatError("has no answer of an assistant")
    return messages, list(dict.fromkeys(remarks))


def _read_message(one: Any, number: int) -> Message:
    if not isinstance(one, dict):
        raise ChatError(f"has a message {number} that is no mapping")
    speaker = one.get("role", one.get("from"))
    role = _ROLES.get(str(speaker).lower())
    if role is None:
        raise ChatError(f"has a message {number} of {speaker!r}, who is not known")
    content = one.get("content", one.get("value", one.get("text")))
    if isinstance(content, list):  # parts, as servers take them
        parts: list[Any] = [
            part.get("text") if isinstance(part, dict) else part for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise ChatError(f"has a message {number} with a part that is no text")
        content = "\n".join(parts)
    if one.get("tool_calls") or one.get("function_call"):
        raise ChatError(f"has a message {number} that calls a tool")
    if not isinstance(content, str):
        raise ChatError(f"has a message {number} without text")
    message: Message = {"role": role, "content": content}
    if one.get("weight", 1) == 0 or one.get("train") is False:
        message["trains"] = False
    return message


def _join(last: Message, message: Message) -> None:
    if last.get("trains", True) != message.get("trains", True):
        raise ChatError("has turns of one speaker after another of which some are not to be learnt")
    last["content"] = f"{last['content']}\n\n{message['content']}"


_READ = frozenset(("role", "from", "content", "value", "text", "weight", "train"))


def list_unread(messages: Sequence[Any]) -> set[str]:
    """Keys of messages with something in them that reaches no model, such as reasoning_content."""
    return {
        str(key)
        for one in messages
        if isinstance(one, dict)
        for key, value in one.items()
        if key not in _READ and value not in (None, "", [], {}, False)
    }


def as_conversation(record: dict[str, Any]) -> dict[str, Any]:
    """A record as a conversation of one exchange; one that is a conversation stays as it is."""
    if "messages" in record:
        return record
    asked = "\n\n".join(filter(None, (record["instruction"], record.get("input", ""))))
    system = record.get("sys_prompt", "")
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": asked})
    return {**record, "messages": [*messages, {"role": "assistant", "content": record["output"]}]}


def summarise_messages(messages: list[Message]) -> dict[str, Any]:
    """A conversation as a record: its last answer is the output, what was asked last the rest."""
    asked = [message for message in messages if message["role"] == "user"]
    return {
        "instruction": asked[-1]["content"] if asked else "",
        "input": "",
        "output": messages[-1]["content"],
        "messages": messages,
    }


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A part of a conversation's text."""

    text: str
    is_answer: bool
    """True for what the assistant says."""
    trains: bool
    """True for an answer that is to be learnt."""


@dataclass(frozen=True, kw_only=True)
class ChatRenderer:
    """Brings conversations to tokens."""

    tokenizer: Tokenizer
    style: PromptStyle
    template: str | None
    """Jinja, the checkpoint's own; None for the style."""

    def encode(self, messages: Sequence[Message]) -> tuple[Tensor, Tensor, int]:
        """Token ids (T,), which of them are the assistant's (T,), and where its last turn begins.

        Raises:
            ChatError: the template refuses the conversation, or the style cannot say it.
        """
        turns = [*(self._by_template(messages) if self.template else self._by_style(messages))]
        ids: list[int] = []
        is_answer: list[bool] = []
        last = 0
        for number, turn in enumerate(turns):
            own = self._encode_turn(turn, is_first=not number)
            if turn.trains or number == len(turns) - 1:
                last = len(ids)
            ids += own
            is_answer += [turn.trains] * len(own)
        return torch.tensor(ids), torch.tensor(is_answer), last

    def _encode_turn(self, turn: Turn, *, is_first: bool) -> list[int]:
        if self.template is not None:
            return encode_as_written(self.tokenizer, turn.text)
        bos = None if is_first else False
        found = self.tokenizer.encode(turn.text, bos=bos, eos=turn.is_answer)
        return [int(it) for it in found.tolist()]

    def _by_template(self, messages: Sequence[Message]) -> Iterator[Turn]:
        """The text between one message and the next is what was added by it."""
        plain = [{"role": m["role"], "content": m["content"]} for m in messages]
        before = ""
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(plain[:number], asks=True)
            whole = self._render(plain[: number + 1], asks=False)
            if not (prompt.startswith(before) and whole.startswith(prompt)):
                raise ChatError("has turns that its chat template does not add one by one")
            yield Turn(text=prompt[len(before) :], is_answer=False, trains=False)
            yield _answer(whole[len(prompt) :], message)
            before = whole

    @cached_property
    def _compiled(self) -> Template:
        return compile_template(self.template or "", name_tokens(self.tokenizer))

    def _render(self, messages: Sequence[Mapping[str, str]], *, asks: bool) -> str:
        try:
            return self._compiled.render(messages=messages, add_generation_prompt=asks)
        except (TemplateError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ChatError(f"is refused by the chat template ({reason})") from error

    def _by_style(self, messages: Sequence[Message]) -> Iterator[Turn]:
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        asked: list[str] = []
        is_first = True
        for message in messages[1 if system is not None else 0 :]:
            if message["role"] == "tool":
                raise ChatError(f"has a tool's message, which style {_name(self.style)} has not")
            if message["role"] == "user":
                asked.append(message["content"])
                continue
            prompt = "\n\n".join(asked)
            text = apply_style(self.style, prompt, system, is_first=is_first)
            yield Turn(text=text, is_answer=False, trains=False)
            yield _answer(message["content"], message)
            asked, is_first = [], False


def _answer(text: str, message: Message) -> Turn:
    return Turn(text=text, is_answer=True, trains=message.get("trains", True))


def compile_template(text: str, tokens: Mapping[str, str]) -> Template:
    """A chat template.

    Args:
        text: Jinja.
        tokens: What it may ask for besides messages.

    Raises:
        TemplateError: it is none.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": _refuse, **tokens}
    # what is the assistant's is known here without transformers' own tag for it
    plain = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", text)
    return environment.from_string(
        re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", plain)
    )


def _refuse(reason: str) -> None:
    raise TemplateError(reason)


def name_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The tokens at the beginning and end of a text, as templates ask for them."""
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    return {name: _name_token(tokenizer, id_) for name, id_ in ids.items()}


def _name(style: PromptStyle) -> str:
    return type(style).__name__


def apply_style(style: PromptStyle, prompt: str, system: str | None, *, is_first: bool) -> str:
    """An exchange's prompt in a style; only the first has what stands at the beginning."""
    if is_first:
        return str(style.apply(prompt, sys_prompt=system))
    if isinstance(style, ChatML):
        return str(ChatML(None).apply(prompt))
    if isinstance(style, Llama3):
        _, header, rest = str(style.apply(prompt)).partition(_LLAMA_3_USER)
        return f"{header}{rest}"
    return str(style.apply(prompt, sys_prompt=_LATER if isinstance(style, Alpaca) else None))


def _name_token(tokenizer: Tokenizer, id_: int | None) -> str:
    if id_ is None:
        return ""
    if tokenizer.backend == "huggingface":
        return str(tokenizer.processor.id_to_token(id_) or "")
    return str(tokenizer.processor.id_to_piece(id_))


def encode_as_written(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text that has its special tokens in it, with none added or removed."""
    if tokenizer.backend == "huggingface":
        return list(tokenizer.processor.encode(text, add_special_tokens=False).ids)
    return list(tokenizer.processor.encode(text))


def read_settings(path: Path) -> dict[str, Any]:
    """What a JSON file of a model's folder says; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_template(folder: Path) -> str | None:
    """The chat template of a checkpoint; None where it has none."""
    if (folder / CHAT_TEMPLATE_FILE).is_file():
        return (folder / CHAT_TEMPLATE_FILE).read_text(encoding="utf-8")
    template = read_settings(folder / TOKENIZER_FILE).get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {it.get("name"): it.get("template") for it in template if isinstance(it, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


class RecordsDataset(SFTDataset):  # type: ignore[misc]
    """LitGPT's data set, which knows conversations too."""

    def __init__(self, *, renderer: ChatRenderer, masks_turns: bool, **own: Any) -> None:
        """Arguments are LitGPT's, and whether a conversation's prompts are no labels."""
        super().__init__(**own)
        self.renderer = renderer
        self.masks_turns = masks_turns

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """Token ids and labels of a sample.

        Raises:
            ChatError: it is a conversation that the template or the style cannot say.
        """
        record = self.data[idx]
        if "messages" not in record:
            return dict(super().__getitem__(idx))
        try:
            ids, is_answer, _ = self.renderer.encode(record["messages"])
        except ChatError as error:
            raise ChatError(
                f"the conversation that begins {record['messages'][0]['content'][:60]!r} {error}"
            ) from error
        labels = ids.clone()
        if self.masks_turns:
            labels[~is_answer] = self.ignore_index
        return {"input_ids": ids[: self.max_seq_length], "labels": labels[: self.max_seq_length]}
