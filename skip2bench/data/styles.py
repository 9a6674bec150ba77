"""Prompt styles, LitGPT's: which one a model has, and records brought to one that knows no input.

LitGPT's styles are written for one text; all but Alpaca's leave a record's `input` out of the
prompt, and some its system prompt. Here they stand around the instruction, as people write it by
hand.
"""

from collections.abc import Sequence

from litgpt.prompts import PromptStyle, model_name_to_prompt_style, prompt_styles

from skip2bench.data.records import Record
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note
from skip2bench.io.units import format_amount

_DEFAULT = "alpaca"
_MARK = "\N{SYMBOL FOR UNIT SEPARATOR}input"
"""Text that no style has of its own."""


def choose_prompt_style(name: str, model: str) -> str:
    """LitGPT's name of the style that `--prompt-style` names.

    `auto` is the style that LitGPT knows for a model of that name, as chat models have one; else
    Alpaca's.

    Raises:
        Skip2BenchError: there is no such style.
    """
    if name == "auto":
        own = type(model_name_to_prompt_style(model))
        return next((key for key, style in prompt_styles.items() if style is own), _DEFAULT)
    if name not in prompt_styles:
        raise Skip2BenchError(
            f"prompt_style is {name!r}; choose from auto, {', '.join(prompt_styles)}"
        )
    return name


def place_input(records: Sequence[Record], style: PromptStyle) -> list[Record]:
    """Records whose texts all reach the model, around the instruction where a style has no place.

    Args:
        records: Of one side of the data; conversations stay as they are.
        style: LitGPT's.
    """
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
