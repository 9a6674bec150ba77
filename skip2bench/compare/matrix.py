"""The cells of a comparison: configurations × learning rates × seeds, in the order they run.

Every cell is one training run in a process of its own. The order goes round all configurations
before it comes back to the first, so that a machine that drifts drifts for all of them.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from litgpt.config import Config

from skip2bench.config.blocks import blocks_text
from skip2bench.config.compare import CompareConfig
from skip2bench.config.methods import METHODS, TRADITIONAL
from skip2bench.config.options import option_names
from skip2bench.config.train import TrainConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note
from skip2bench.io.units import parse_bytes
from skip2bench.models.methods import (
    MethodSettings,
    build_empty_model,
    count_parameters,
    has_biases,
    resolve_method,
)

Role = Literal["run", "reused", "cache"]
"""A run of its own; a run that finds its Skip-Cache kept; the run that makes that cache."""

_OF_PROJECTION = ("cache_project", "cache_projection", "blocks", "features")
"""Options by which projected caches differ."""
_PEER_LABELS = {"litgpt": "LitGPT finetune_lora", "peft": "Hugging Face PEFT LoRA"}


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What is compared: a method with everything but learning rate and seed."""

    name: str
    """In names of files; unique."""
    label: str
    settings: MethodSettings
    values: dict[str, Any]
    """Values of `train` that are its own."""
    learning_rates: tuple[float, ...]
    trainable_parameters: int
    max_memory_bytes: int | None = None
    peer: str | None = None
    """Whose program runs it; None for this one."""
    is_aa: bool = False
    """True for the baseline under another name."""
    best_of: str | None = None
    """Name of the configuration that this one is with its own largest micro-batch."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the matrix."""

    name: str
    configuration: str
    role: Role
    config: TrainConfig
    max_memory_bytes: int | None
    peer: str | None


def list_configurations(config: CompareConfig, model: Config) -> list[Configuration]:
    """Everything that is compared, the baseline first where it is among them.

    Raises:
        Skip2BenchError: a configuration does not fit the model.
    """
    entries = list(config.configurations) or _combine(config, model)
    found: list[Configuration] = []
    for entry in entries:
        configuration = _resolve(config, entry, model)
        if "label" not in entry and any(_is_same(configuration, other) for other in found):
            note(f"{configuration.label}, blocks {entry.get('blocks')}: listed already, left out")
            continue
        found.append(configuration)
    baseline = find_baseline(config, found)
    if config.match_params:
        found = [_match(config, one, baseline, model) for one in found]
    if config.aa:
        found.append(replace(baseline, label=f"{baseline.label} (A/A)", is_aa=True))
    found += [_add_peer(config, peer, found, model) for peer in config.peers]
    found.sort(key=lambda one: one.settings.method.name != config.baseline)
    return _make_unique(found)


def list_cells(
    config: CompareConfig,
    configurations: list[Configuration],
    cache_dir: Path,
    *,
    is_filled: bool = False,
) -> list[Cell]:
    """All cells in the order they run.

    Args:
        config: The comparison.
        configurations: What `list_configurations` found.
        cache_dir: Folder of the cache that `reused` cells share.
        is_filled: The folder holds the caches of all cells, which all read them then: there are no
            `reused` ones beside, and no clock holds building.
    """
    first_seed = config.cell_config({}).seed
    own_cache = cache_dir if is_filled else None
    cells = [] if is_filled else _cache_cells(config, configurations, cache_dir)
    for seed in range(first_seed, first_seed + config.seeds):
        for position in range(max(len(one.learning_rates) for one in configurations)):
            for one in configurations:
                if position >= len(one.learning_rates):
                    continue
                rate = one.learning_rates[position]
                cells.append(_make_cell(config, one, rate, seed, "run", own_cache))
                if position == 0 and one.settings.method.is_cached and not is_filled:
                    cells.append(_make_cell(config, one, rate, seed, "reused", cache_dir))
    return cells


def _combine(config: CompareConfig, model: Config) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for name in config.methods:
        method = METHODS[name]
        needs_biases = method.weights == "biases"
        if needs_biases and config.flow == "detailed" and not has_biases(model):
            note(f"{name}: {model.name} has no biases, left out")
        elif method.is_skip:
            entries += [{"method": name, "blocks": blocks} for blocks in config.blocks]
        else:
            entries.append({"method": name})
    return entries


def _resolve(config: CompareConfig, entry: dict[str, Any], model: Config) -> Configuration:
    own = ("label", "learning_rates", "max_memory")
    values = {key: value for key, value in entry.items() if key not in own}
    if "blocks" in values:
        values["blocks"] = blocks_text(values["blocks"])
    cell = config.cell_config(values)
    settings = resolve_method(cell.method, cell.blocks, cell, model)
    limit = entry.get("max_memory", config.max_memory)
    rates = entry.get("learning_rates") or config.learning_rates or (cell.learning_rate,)
    return Configuration(
        name=settings.slug,
        label=str(entry.get("label", settings.label)),
        settings=settings,
        values=values,
        learning_rates=tuple(float(rate) for rate in rates),
        trainable_parameters=_count_trainable(settings, model),
        max_memory_bytes=None if limit is None else parse_bytes("max_memory", str(limit)),
    )


def _count_trainable(settings: MethodSettings, model: Config) -> int:
    with torch.device("meta"):
        return count_parameters(build_empty_model(settings, model))[1]


def _is_same(one: Configuration, other: Configuration) -> bool:
    own, others = ({**c.values, "blocks": c.settings.blocks} for c in (one, other))
    return own == others


def find_baseline(config: CompareConfig, found: Iterable[Configuration]) -> Configuration:
    """The first configuration of the baseline's method.

    Raises:
        Skip2BenchError: there is none.
    """
    for one in found:
        if one.settings.method.name == config.baseline:
            return one
    raise Skip2BenchError(
        f"the baseline {config.baseline!r} is not among the methods; add it, or set --baseline"
    )


def _match(
    config: CompareConfig, one: Configuration, baseline: Configuration, model: Config
) -> Configuration:
    """The configuration with the rank that trains about as many parameters as the baseline."""
    rank_name = one.settings.method.rank_name
    if rank_name is None or one.settings.method.weights or one is baseline:
        return one

    def count(rank: int) -> int:
        cell = config.cell_config(one.values | {rank_name: rank})
        return _count_trainable(resolve_method(cell.method, cell.blocks, cell, model), model)

    rank = max(1, round(baseline.trainable_parameters / count(1)))  # linear in the rank
    values = one.values | {rank_name: rank}
    cell = config.cell_config(values)
    return replace(
        one,
        values=values,
        settings=resolve_method(cell.method, cell.blocks, cell, model),
        trainable_parameters=count(rank),
    )


def _add_peer(
    config: CompareConfig, peer: str, found: list[Configuration], model: Config
) -> Configuration:
    """A peer's LoRA with the settings of traditional LoRA here."""
    own = [one for one in found if one.settings.method.is_traditional and not one.is_aa]
    lora = own[0] if own else _resolve(config, {"method": TRADITIONAL}, model)
    return replace(lora, name=f"peer-{peer}", label=_PEER_LABELS[peer], peer=peer)


def _make_unique(found: list[Configuration]) -> list[Configuration]:
    """Tell apart names and labels that several configurations share."""
    labels = Counter(one.label for one in found)
    taken: Counter[str] = Counter()
    unique = []
    for one in found:
        name = f"{one.name}-aa" if one.is_aa else one.name
        taken[name] += 1
        details = {k: v for k, v in one.values.items() if k not in ("method", "blocks")}
        text = ", ".join(f"{key} {value}" for key, value in details.items())
        is_shared = labels[one.label] > 1 and text
        unique.append(
            replace(
                one,
                name=name if taken[name] == 1 else f"{name}-{taken[name]}",
                label=f"{one.label} [{text}]" if is_shared else one.label,
            )
        )
    return unique


def _make_cell(
    config: CompareConfig,
    one: Configuration,
    rate: float,
    seed: int,
    role: Role,
    cache_dir: Path | None = None,
) -> Cell:
    suffix = "" if role == "run" else f"-{role}"
    # the other roles are there for their clocks: their answers would be a run's again
    unscored = {} if role == "run" else {"score": None}
    return Cell(
        name=f"{one.name}-lr{rate:g}-seed{seed}{suffix}",
        configuration=one.name,
        role=role,
        config=config.cell_config(
            one.values | {"learning_rate": rate, "seed": seed, "cache_dir": cache_dir} | unscored
        ),
        max_memory_bytes=one.max_memory_bytes,
        peer=one.peer,
    )


def _cache_cells(
    config: CompareConfig, configurations: list[Configuration], cache_dir: Path
) -> list[Cell]:
    """One run for each cache that `reused` cells share: all their blocks at once."""
    groups: dict[str, list[Configuration]] = {}
    adapter = option_names(TrainConfig, "adapter")  # whatever it is, the frozen layers are the same
    for one in configurations:
        if one.settings.method.is_cached:
            shared = {k: v for k, v in one.values.items() if k not in adapter}
            if one.settings.skip and one.settings.skip.projected:
                # one cache has one projection, and that of all its blocks
                shared |= {k: v for k, v in one.values.items() if k in _OF_PROJECTION}
            groups.setdefault(repr(sorted(shared.items())), []).append(one)
    cells = []
    for number, group in enumerate(groups.values(), start=1):
        blocks = sorted({block for one in group for block in one.settings.blocks or ()})
        widest = replace(
            group[0],
            name=f"cache-{number}",
            values=group[0].values | {"blocks": ",".join(map(str, blocks))},
        )
        seed = config.cell_config({}).seed
        cell = _make_cell(config, widest, widest.learning_rates[0], seed, "cache", cache_dir)
        cells.append(replace(cell, name=widest.name))
    return cells
