"""Copy a comparison without what cannot be given away: adapters, logs, texts of the data.

    python scripts/publish_comparison.py FOLDER TARGET

Every figure can still be recomputed from the copy (`skip2bench verify TARGET`): of the answers,
their scores are kept and their texts are not.
"""

import argparse
import json
import shutil
from pathlib import Path

from skip2bench.results.run_folder import ANSWERS_FILE

LEFT_OUT = shutil.ignore_patterns(
    *("final", "cache", "workers", "*.log", "*.spec.json", ".lock*"),
    *("*.safetensors", "*.pth", "*.pth.*"),  # what peers have left
)
KEPT_OF_ANSWERS = ("id", "score")


def publish(source: Path, target: Path) -> int:
    """Copy the comparison; returns how many files have lost their texts."""
    shutil.copytree(source, target, ignore=LEFT_OUT)
    found = sorted(target.rglob(ANSWERS_FILE))
    for path in found:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        kept = [json.dumps({name: line[name] for name in KEPT_OF_ANSWERS}) for line in lines]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    return len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    given = parser.parse_args()
    print(f"{publish(given.source, given.target)} files of answers without their texts")


if __name__ == "__main__":
    main()
