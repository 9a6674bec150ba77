"""Micro-batches of a comparison with `--micro-batch-size auto`.

The largest that fits is found once for each configuration that runs on tokens, in a process of its
own. All run with the smallest of these; with `--best-batch`, those that could have more run with it
too, and are compared apart. Steps from Skip-Cache are cut by bytes and need none.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from skip2bench.compare.cell import limit_memory
from skip2bench.compare.matrix import Configuration
from skip2bench.compare.process import cell_context
from skip2bench.config.compare import CompareConfig
from skip2bench.config.train import TrainConfig
from skip2bench.io.console import Waiting, note
from skip2bench.io.whole import write_json
from skip2bench.machine.environment import choose_device
from skip2bench.machine.out_of_memory import DoesNotFitError, fitting
from skip2bench.train.micro_batch import find_micro_batch_size
from skip2bench.train.objective import TokenObjective
from skip2bench.train.parts import load_model
from skip2bench.train.plan import plan_training
from skip2bench.train.ranks.ranks import Ranks

FILE = "micro_batch_sizes.json"
"""In the comparison's folder: by configuration, the largest that fits."""


def find_sizes(
    config: CompareConfig, configurations: Sequence[Configuration], folder: Path
) -> dict[str, int]:
    """The largest micro-batch of each configuration that needs one, by its name; 0 where none fits.

    What the folder knows is taken from there: a comparison that goes on keeps its micro-batches.
    """
    known = _read(folder / FILE)
    wanted = {
        one.name: config.cell_config(one.values)
        for one in configurations
        if not (one.settings.method.serves_rows or one.peer or one.is_aa)
    }
    wanted = {name: cell for name, cell in wanted.items() if cell.micro_batch_size == "auto"}
    if wanted.keys() <= known.keys():
        return {name: known[name] for name in wanted}
    found = {}
    for one in configurations:
        if one.name in wanted:
            with Waiting(f"{one.label}: the largest micro-batch"):
                found[one.name] = _find_in_process(wanted[one.name], one)
            size = found[one.name]
            note(f"{one.label}: " + (f"a micro-batch of {size} fits" if size else "none fits"))
    return found


def write_sizes(folder: Path, sizes: dict[str, int]) -> None:
    """Keep what was found for when the comparison goes on."""
    if sizes:
        write_json(folder / FILE, sizes)


def settle(
    config: CompareConfig, configurations: Sequence[Configuration], sizes: dict[str, int]
) -> list[Configuration]:
    """The configurations with their micro-batch in place of `auto`.

    Args:
        config: The comparison.
        configurations: Those of the matrix.
        sizes: What `find_sizes` found; empty where nothing is `auto`.

    Returns:
        All at the smallest size found; after them, for `best_batch`, those that could have more.
    """
    if not sizes:
        return list(configurations)
    # one that does not fit is an oom cell of its own, and leaves the others what they can have
    shared = min((size for size in sizes.values() if size), default=1)
    note(f"all run with a micro-batch of {shared}")
    equal = [
        replace(one, values=one.values | {"micro_batch_size": shared})
        if config.cell_config(one.values).micro_batch_size == "auto"
        else one
        for one in configurations
    ]
    best = [
        replace(
            one,
            name=f"{one.name}-batch{sizes[one.name]}",
            label=f"{one.label} (micro-batch {sizes[one.name]})",
            values=one.values | {"micro_batch_size": sizes[one.name]},
            best_of=one.name,
            searches_rate=False,
            takes_rate_of=(one.takes_rate_of or one.name) if one.searches_rate else None,
        )
        for one in configurations
        if config.best_batch and sizes.get(one.name, shared) > shared
    ]
    return [*equal, *best]


def _find_in_process(config: TrainConfig, one: Configuration) -> int:
    context = cell_context(choose_device(config.device).type, config.data)
    pool = ProcessPoolExecutor(1, mp_context=context)
    try:
        return pool.submit(_find, config, torch.get_num_threads(), one.max_memory_bytes).result()
    except BrokenProcessPool:  # killed, as the system does where memory runs out
        return 0
    finally:
        pool.shutdown(cancel_futures=True)


def _find(config: TrainConfig, threads: int, max_memory_bytes: int | None) -> int:
    if max_memory_bytes is not None:
        limit_memory(max_memory_bytes)
    torch.set_num_threads(threads)
    try:
        with fitting("search"):
            return _find_here(config)
    except DoesNotFitError:
        return 0


def _find_here(config: TrainConfig) -> int:
    plan = plan_training(config)
    fabric = Fabric(accelerator=plan.device.type, devices=1, precision=plan.precision)
    model = load_model(plan, Ranks())
    objective = TokenObjective(fabric, fabric.setup_module(model), plan.data, 1)
    found = find_micro_batch_size(fabric, model, objective, config.global_batch_size, Ranks())
    return found.micro_batch_size if found.fits else 0


def _read(path: Path) -> dict[str, int]:
    """What is kept; empty where there is nothing that can be used."""
    try:
        stored: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(stored, dict):
        return {}
    return {name: size for name, size in stored.items() if type(size) is int and size >= 0}
