"""Sizes in bytes as people type them."""

import re

from skip2bench.errors import Skip2BenchError

_BYTE_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4} | {
    f"{letter}i": 1024**power for power, letter in enumerate("kmgt", start=1)
}


def parse_bytes(name: str, text: str) -> int:
    """A number of bytes: 500000000, 500MB, 2GiB, 1.5 G.

    Raises:
        Skip2BenchError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if not match or match[2] == "i":
        raise Skip2BenchError(f"{name} is {text!r}; give bytes, or such as 500MB or 2GiB")
    return int(float(match[1]) * _BYTE_UNITS[match[2]])
