"""What the scripts that make files of docs/ share: write them, or find them out of date."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path


def write_or_check(texts: Mapping[Path, str], about: str) -> int:
    """Write texts to their files or, with --check, compare them; the exit status.

    Args:
        texts: By file, what it should hold.
        about: What the script does, for --help.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--check", action="store_true", help="write nothing; compare")
    is_check = parser.parse_args().check
    stale = [path for path, text in texts.items() if _read(path) != text]
    for path in stale:
        if is_check:
            print(f"{path.name} is out of date; run: python {sys.argv[0]}", file=sys.stderr)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(texts[path], encoding="utf-8")
    return int(is_check and bool(stale))


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
