"""Lists of blocks as people give them: numbers, or the guide's presets by name."""

import re
from collections.abc import Sequence
from typing import Any

from skip2bench.config.methods import Method
from skip2bench.errors import Skip2BenchError

BLOCK_PRESETS = {"fast": 4, "balanced": 6, "accurate": 8}
"""The guide's presets (section 5.2): how many of the first blocks each one adapts."""


AUTO_COUNT = 8
"""Blocks that `auto` chooses where it names no number."""


def count_auto(text: str) -> int | None:
    """How many blocks "auto" or "auto:N" is to choose; None where the text is neither.

    Which ones, the model and its data say: see `train.block_choice`.
    """
    found = re.fullmatch(r"auto(?::([1-9][0-9]{0,8}))?", text.strip().lower())
    return None if found is None else int(found[1] or AUTO_COUNT)


def parse_blocks(text: str, n_layer: int) -> tuple[int, ...]:
    """Resolve `text` to block numbers of a model with `n_layer` blocks.

    Args:
        text: "0,1,2,3" (brackets and spaces allowed, as in YAML), "all", "last:8" (the last ones),
            "even:8" (evenly spread, the last one among them), or a preset of BLOCK_PRESETS. What
            asks for more blocks than the model has takes all of them.
        n_layer: Number of blocks of the model.

    Raises:
        Skip2BenchError: not a list of numbers, out of range, twice the same, or empty; or "auto",
            which no number of blocks resolves.
    """
    name = text.strip().lower()
    if name == "all":
        return tuple(range(n_layer))
    if name in BLOCK_PRESETS:
        return tuple(range(min(BLOCK_PRESETS[name], n_layer)))
    if count_auto(name) is not None:
        raise Skip2BenchError(
            f"blocks {text!r} are chosen by the model on its data, which train and compare do; "
            "here give e.g. last:8, or the numbers that train chose"
        )
    if counted := re.fullmatch(r"(last|even):([1-9][0-9]{0,8})", name):
        n = min(int(counted[2]), n_layer)
        if counted[1] != "even":
            return tuple(range(n_layer - n, n_layer))
        return tuple(n_layer * (i + 1) // n - 1 for i in range(n))
    inner = name[1:-1] if name[:1] + name[-1:] in ("[]", "()") else name
    numbers = [part.strip() for part in inner.removesuffix(",").split(",")]
    if not all(re.fullmatch(r"[0-9]+", number) for number in numbers):
        presets = ", ".join(BLOCK_PRESETS)
        raise Skip2BenchError(
            f"blocks {text!r} is no list of block numbers; give e.g. 0,1,2,3, or all, last:8, "
            f"even:8, {presets}"
        )
    # the digits of a block that exists are few; int() refuses some thousands of them
    blocks = tuple(int(number.lstrip("0")[:18] or "0") for number in numbers)
    if len(set(blocks)) < len(blocks):
        raise Skip2BenchError(f"blocks {text!r} names a block twice; give each block once")
    if max(blocks) >= n_layer:
        raise Skip2BenchError(
            f"block {max(blocks)} does not exist; the model has blocks 0 to {n_layer - 1}"
        )
    return tuple(sorted(blocks))


def blocks_text(value: Any) -> Any:
    """Blocks as text, where YAML has them as a number or a list of numbers; else the value."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, list | tuple):
        return value
    if not all(isinstance(block, int | str) and not isinstance(block, bool) for block in value):
        raise Skip2BenchError(f"blocks is {value!r}; give a list of numbers such as [0, 1, 2, 3]")
    return ",".join(str(block) for block in value)


def name_range(blocks: Sequence[int]) -> str:
    """Sorted blocks in short: "0-3" (0 to 3), "0,3" (0 and 3)."""
    is_run = len(blocks) > 1 and blocks[-1] - blocks[0] + 1 == len(blocks)
    return f"{blocks[0]}-{blocks[-1]}" if is_run else ",".join(map(str, blocks))


def count_top(text: str, n_layer: int) -> int:
    """How many of the last blocks LoRA-Top adapts: `text`, or where it is empty a quarter of all.

    Raises:
        Skip2BenchError: no number, or one that leaves no block to the trunk.
    """
    count = int(text) if text.isdecimal() else 0 if text else max(1, n_layer // 4)
    if not 0 < count < n_layer:
        raise Skip2BenchError(
            f"top_blocks is {text or count}; the model has {n_layer} blocks: give 1 to "
            f"{n_layer - 1}, so that some are left to cache"
        )
    return count


def list_wanted(
    method: Method, blocks: Sequence[str], top_blocks: Sequence[int]
) -> tuple[str, ...]:
    """Of one method, what `models.methods.resolve_method` is asked for in turn."""
    if method.is_skip:
        return tuple(blocks)
    return tuple(map(str, top_blocks)) or ("",) if method.is_top else ("",)
