"""Sizes in bytes as people type them."""

import re

from skip2bench.errors import Skip2BenchError

MAX_BYTES = 1 << 60
_BYTE_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4} | {
    f"{letter}i": 1024**power for power, letter in enumerate("kmgt", start=1)
}


def parse_bytes(name: str, text: str) -> int:
    """A number of bytes: 500000000, 500MB, 2GiB, 1.5 G.

    Raises:
        Skip2BenchError: it is none, or beyond 1 EiB.
    """
    # [0-9], as \d would take the digits of every script
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if not match or match[2] == "i":
        raise Skip2BenchError(f"{name} is {text!r}; give bytes, or such as 500MB or 2GiB")
    size = float(match[1]) * _BYTE_UNITS[match[2]]  # infinite where it has very many digits
    if size > MAX_BYTES:
        raise Skip2BenchError(f"{name} is {text!r}; give at most {MAX_BYTES >> 40}TiB")
    return int(size)
