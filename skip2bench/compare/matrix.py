"""The cells of a comparison: configurations × learning rates × seeds, in the order they run.

Every cell is one training run in a process of its own. The order goes round all configurations
before it comes back to the first, so that a machine that drifts drifts for all of them. With
`--learning-rates auto` they follow from the results: see `rates`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from litgpt.config import Config

from skip2bench.compare.peers.dora import count_magnitudes
from skip2bench.compare.rates import first_rates, leaves_search_seed_out, search_rate
from skip2bench.config.blocks import blocks_text
from skip2bench.config.compare import FEW_SEEDS, CompareConfig
from skip2bench.config.methods import METHODS, TRADITIONAL
from skip2bench.config.options import option_names
from skip2bench.config.peers import PEERS
from skip2bench.config.train import TrainConfig, usual_learning_rate, wanted_blocks
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note
from skip2bench.io.units import parse_bytes
from skip2bench.models.methods import (
    MethodSettings,
    count_trainable,
    has_biases,
    resolve_method,
)
from skip2bench.results.figures import CellResult

Role = Literal["run", "reused", "cache", "pace"]
"""A run of its own; a run that finds its Skip-Cache kept; the run that makes that cache; a short
run that tells how long an epoch takes."""

_OF_PROJECTION = ("cache_project", "cache_projection", "blocks", "features")
"""Options by which projected caches differ."""


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
    """The grid; where the rate is searched for, what the search begins with."""
    trainable_parameters: int
    searches_rate: bool = False
    takes_rate_of: str | None = None
    """Name of the configuration whose search finds its rate."""
    seeds: int = FEW_SEEDS
    """How many."""
    max_memory_bytes: int | None = None
    peer: str | None = None
    """Whose program runs it; None for this one."""
    is_aa: bool = False
    """True for the baseline under another name."""
    best_of: str | None = None
    """Name of the configuration that this one is with its own largest micro-batch."""

    @property
    def has_grid(self) -> bool:
        """True where its runs decide which of several learning rates it takes."""
        return self.takes_rate_of is None and len(self.learning_rates) > 1


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the matrix."""

    name: str
    configuration: str
    role: Role
    config: TrainConfig
    max_memory_bytes: int | None
    peer: str | None
    decides_rate: bool = False
    """True for a cell of a search: its seed alone decides which rate the others take."""
    counts: bool = True
    """False for a cell of a seed that has chosen a rate, where figures can do without it."""


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
    if config.matched == "params":
        found = [_match(config, one, baseline, model) for one in found]
    if config.aa:
        found.append(replace(baseline, label=f"{baseline.label} (A/A)", is_aa=True))
    found += [_add_peer(config, peer, found, model) for peer in config.peers]
    found.sort(key=lambda one: one.settings.method.name != config.baseline)
    return _share_rates(_make_unique(found))


def list_cells(
    config: CompareConfig,
    configurations: list[Configuration],
    cache_dir: Path,
    *,
    is_filled: bool = False,
    found: Sequence[CellResult] = (),
    is_forecast: bool = False,
) -> list[Cell]:
    """All cells in the order they run.

    Args:
        config: The comparison.
        configurations: What `list_configurations` found.
        cache_dir: Folder of the cache that `reused` cells share.
        is_filled: The folder holds the caches of all cells, which all read them then: there are no
            `reused` ones beside, and no clock holds building.
        found: What cells came to so far: of a configuration whose rate is searched for, the cells
            that are known to run.
        is_forecast: Take the best rates so far as found, the usual ones without any.
    """
    first_seed = config.cell_config({}).seed
    own_cache = cache_dir if is_filled else None
    # at equal time with its cache built, a run that finds it kept would tell nothing new
    reusing = [] if is_filled or config.matched == "time" else configurations
    shares_cache = {one.name for one in reusing if one.settings.method.is_cached}
    cells = _cache_cells(config, reusing, cache_dir)
    grids = _find_grids(configurations, found, is_forecast=is_forecast)
    has_search = any(one.searches_rate for one in configurations)
    left_out = has_search and leaves_search_seed_out([one.seeds for one in configurations])
    for number in range(max(one.seeds for one in configurations)):
        seed, counts = first_seed + number, bool(number) or not left_out
        own = [one for one in configurations if number < one.seeds and (counts or one.has_grid)]
        rates = {one.name: grids[one.name].rates_of(number) for one in own}
        for position in range(max(map(len, rates.values()), default=0)):
            for one in own:
                if position >= len(rates[one.name]):
                    continue
                rate = rates[one.name][position]
                cell = make_cell(config, one, rate, seed, "run", own_cache)
                decides = one.searches_rate and number == 0
                cells.append(replace(cell, decides_rate=decides, counts=counts))
                is_first = rate == grids[one.name].timed
                if is_first and counts and one.name in shares_cache:
                    cell = make_cell(config, one, rate, seed, "reused", cache_dir)
                    cells.append(cell)
    return cells


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """Learning rates that a configuration runs at."""

    first: tuple[float, ...]
    """With the first seed."""
    others: tuple[float, ...]
    """With the seeds after it."""
    timed: float | None
    """Where a run with its cache kept stands beside: the clock does not depend on the rate."""

    def rates_of(self, number: int) -> tuple[float, ...]:
        """Those of a seed, counted from 0."""
        return self.others if number else self.first


def _find_grids(
    configurations: Sequence[Configuration], found: Sequence[CellResult], *, is_forecast: bool
) -> dict[str, _Grid]:
    """By configuration; a rate that is not found yet is in none."""
    grids: dict[str, _Grid] = {}
    for one in configurations:
        rates = one.learning_rates
        grids[one.name] = _Grid(first=rates, others=rates, timed=rates[0])
        if one.searches_rate:
            own = [result for result in found if result.configuration == one.name]
            search = search_rate(rates, own)
            best = search.best if search.is_over or not is_forecast else search.best or rates[0]
            is_known = best is not None and (search.is_over or is_forecast)
            chosen = (best,) if is_known and best is not None else ()
            grids[one.name] = _Grid(
                first=search.rates, others=chosen, timed=best if chosen else None
            )
    for one in configurations:
        if one.takes_rate_of is not None:
            others = grids[one.takes_rate_of].others
            timed = others[0] if others else None
            grids[one.name] = _Grid(first=others, others=others, timed=timed)
    return grids


def _combine(config: CompareConfig, model: Config) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for name in config.methods:
        method = METHODS[name]
        needs_biases = method.weights == "biases"
        if needs_biases and config.flow == "detailed" and not has_biases(model):
            note(f"{name}: {model.name} has no biases, left out")
        elif method.is_skip:
            entries += [{"method": name, "blocks": blocks} for blocks in config.blocks]
        elif method.is_top:
            entries += [{"method": name, "top_blocks": m} for m in config.top_blocks] or [
                {"method": name}
            ]
        else:
            entries.append({"method": name})
    return entries


def _resolve(config: CompareConfig, entry: dict[str, Any], model: Config) -> Configuration:
    own = ("label", "learning_rates", "max_memory")
    values = {key: value for key, value in entry.items() if key not in own}
    if "blocks" in values:
        values["blocks"] = blocks_text(values["blocks"])
    cell = config.cell_config(values)
    settings = resolve_method(cell.method, wanted_blocks(cell), cell, model)
    limit = entry.get("max_memory", config.max_memory)
    rates = entry.get("learning_rates") or config.learning_rates or (cell.learning_rate,)
    searches_rate = rates == "auto"
    if searches_rate:
        rates = first_rates(usual_learning_rate(cell))
    return Configuration(
        name=settings.slug,
        label=str(entry.get("label", settings.label)),
        settings=settings,
        values=values,
        learning_rates=tuple(float(rate) for rate in rates),
        trainable_parameters=count_trainable(settings, model),
        searches_rate=searches_rate,
        seeds=FEW_SEEDS if config.seeds == "auto" else config.seeds,
        max_memory_bytes=None if limit is None else parse_bytes("max_memory", str(limit)),
    )


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
        return count_trainable(resolve_method(cell.method, wanted_blocks(cell), cell, model), model)

    rank = max(1, round(baseline.trainable_parameters / count(1)))  # linear in the rank
    return change_values(config, one, {rank_name: rank}, model)


def change_values(
    config: CompareConfig, one: Configuration, changes: dict[str, Any], model: Config
) -> Configuration:
    """The configuration with other values of `train`."""
    values = one.values | changes
    cell = config.cell_config(values)
    settings = resolve_method(cell.method, wanted_blocks(cell), cell, model)
    return replace(
        one,
        values=values,
        settings=settings,
        trainable_parameters=count_trainable(settings, model),
    )


def _add_peer(
    config: CompareConfig, peer: str, found: list[Configuration], model: Config
) -> Configuration:
    """A peer's LoRA with the settings of traditional LoRA here."""
    kind = PEERS[peer]
    own = [one for one in found if one.settings.method.is_traditional and not one.is_aa]
    lora = own[0] if own else _resolve(config, {"method": TRADITIONAL}, model)
    extra = count_magnitudes(lora.settings, model) if kind.has_magnitudes else 0
    return replace(
        lora,
        name=f"peer-{peer}",
        label=kind.label,
        peer=peer,
        trainable_parameters=lora.trainable_parameters + extra,
    )


_IN_LABEL = ("method", "blocks", "top_blocks")
"""What the label of a configuration says already."""


def _share_rates(found: list[Configuration]) -> list[Configuration]:
    """What stands for another configuration, as a peer or a control does, takes its rate."""
    own = [one for one in found if one.peer is None and not one.is_aa]
    shared = []
    for one in found:
        like = next((it.name for it in own if it.values == one.values), None)
        if one not in own and one.searches_rate:
            usual = one.learning_rates[:1]  # where nothing here is like it
            one = replace(one, searches_rate=False, learning_rates=usual, takes_rate_of=like)
        shared.append(one)
    return shared


def _make_unique(found: list[Configuration]) -> list[Configuration]:
    """Tell apart names and labels that several configurations share."""
    labels = Counter(one.label for one in found)
    ranges = {(one.label, one.settings.block_range) for one in found}
    several = {label for label, n in Counter(label for label, _ in ranges).items() if n > 1}
    taken: Counter[str] = Counter()
    unique = []
    for one in found:
        name = f"{one.name}-aa" if one.is_aa else one.name
        taken[name] += 1
        details = {k: v for k, v in one.values.items() if k not in _IN_LABEL}
        if one.label in several:  # as many, and others
            details = {"blocks": one.settings.block_range} | details
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


def make_cell(
    config: CompareConfig,
    one: Configuration,
    rate: float,
    seed: int,
    role: Role,
    cache_dir: Path | None = None,
) -> Cell:
    """A run of a configuration."""
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
    # whatever they are, the frozen layers are the same
    other = (*option_names(TrainConfig, "adapter"), "epochs")
    for one in configurations:
        if one.settings.method.is_cached:
            shared = {k: v for k, v in one.values.items() if k not in other}
            if one.settings.skip and one.settings.skip.projected:
                # one cache has one projection, and that of all its blocks
                shared |= {k: v for k, v in one.values.items() if k in _OF_PROJECTION}
            if one.settings.top_blocks is not None:  # one cache has one boundary
                shared["top_blocks"] = one.settings.top_blocks
            groups.setdefault(repr(sorted(shared.items())), []).append(one)
    cells = []
    for number, group in enumerate(groups.values(), start=1):
        read = [one.settings.skip.blocks for one in group if one.settings.skip]
        blocks = sorted({block for own in read for block in own})
        widest = replace(
            group[0],
            name=f"cache-{number}",
            values=group[0].values | ({"blocks": ",".join(map(str, blocks))} if blocks else {}),
        )
        seed = config.cell_config({}).seed
        cell = make_cell(config, widest, widest.learning_rates[0], seed, "cache", cache_dir)
        cells.append(replace(cell, name=widest.name))
    return cells
