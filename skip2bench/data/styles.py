"""Prompt styles, LitGPT's: which one a model has, and records brought to one that knows no input.

LitGPT's styles are written for one text; all but Alpaca's leave a record's `input` out of the
prompt. Here it follows the instruction, as people write it by hand.
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


def place_input(records: Sequence[Record], style: str) -> list[Record]:
    """Records whose input reaches the model: after the instruction, where the style has no place.

    Args:
        records: Of one side of the data.
        style: LitGPT's name of it.
    """
    if _MARK in PromptStyle.from_name(style).apply("", instruction="", input=_MARK, output=""):
        return list(records)
    return [
        {**record, "instruction": f"{record['instruction']}\n\n{record['input']}", "input": ""}
        if record.get("input", "").strip()
        else record
        for record in records
    ]


def note_style(asked_for: str, style: str, moved: int) -> None:
    """Say which style was chosen, and of how many records `place_input` moved the input."""
    parts = [f"prompt style {style}, the model's own"] if asked_for == "auto" else []
    if moved:
        amount = format_amount(moved, "record")
        parts.append(f"{style} has no place for an input: that of {amount} follows the instruction")
    if parts and (style != _DEFAULT or moved):
        note("; ".join(parts))
