"""How many seeds each configuration runs with, with `--seeds auto`.

Every one gets as many as an interval needs. Those whose run is short get so many more that all of
theirs take as long as the baseline's, which tells them from one another for little. The choice
rests on a measured estimate, so the comparison's folder keeps it for when the comparison goes on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from skip2bench.compare.matrix import Configuration
from skip2bench.config.compare import FEW_SEEDS, MANY_SEEDS
from skip2bench.io.whole import write_json

FILE = "seeds.json"
"""In the comparison's folder: by configuration, how many seeds."""
SHORT_RATIO = FEW_SEEDS / MANY_SEEDS
"""A run is short that takes no more of the baseline's, by estimate,"""
SHORT_SECONDS = 120.0
"""and no more than this."""


def choose_seeds(
    configurations: Sequence[Configuration], baseline: str, seconds: Mapping[str, float]
) -> dict[str, int]:
    """How many seeds each configuration gets, by its name.

    Where rates are searched for, every one gets one more, so that figures can do without the seed
    that has chosen them.

    Args:
        configurations: Those of the matrix.
        baseline: Name of the baseline's configuration.
        seconds: Estimated, of a run of each, by its name.
    """
    short = min(SHORT_SECONDS, SHORT_RATIO * seconds[baseline])
    fewest = FEW_SEEDS + any(one.searches_rate for one in configurations)
    return {
        one.name: MANY_SEEDS if seconds[one.name] <= short else fewest for one in configurations
    }


def settle_seeds(
    configurations: Sequence[Configuration], seeds: Mapping[str, int]
) -> list[Configuration]:
    """The configurations with the seeds chosen for them; the others as they are."""
    return [replace(one, seeds=seeds.get(one.name, one.seeds)) for one in configurations]


def write_seeds(folder: Path, configurations: Sequence[Configuration]) -> None:
    """Keep what was chosen for when the comparison goes on."""
    write_json(folder / FILE, {one.name: one.seeds for one in configurations})


def read_seeds(folder: Path) -> dict[str, int]:
    """What is kept; empty where there is nothing that can be used."""
    try:
        stored: Any = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(stored, dict):
        return {}
    usual = range(FEW_SEEDS, MANY_SEEDS + 1)
    return {name: n for name, n in stored.items() if type(n) is int and n in usual}
