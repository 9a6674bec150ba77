"""A comparison before it starts: its input checked, its cells listed, its time estimated."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from skip2bench import STARTED
from skip2bench.compare_config import CompareConfig
from skip2bench.compare_folder import BENCH
from skip2bench.config import BenchConfig
from skip2bench.console import note
from skip2bench.estimate import estimate_bench, estimate_cells, measure_rates
from skip2bench.matrix import Cell, Configuration, list_configurations
from skip2bench.text_files import check_folder
from skip2bench.training_plan import TrainingPlan, plan_training
from skip2bench.units import format_amount, format_duration

_INPUT_KEYS = {
    *("data", "domain_text", "prompt_style", "mask_prompt", "val_split_fraction"),
    *("max_seq_length", "train_samples", "precision", "device", "logger"),
}
"""Values of a configuration whose input the plan of the others does not cover."""


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """A comparison whose input is known to be good."""

    config: CompareConfig
    training: TrainingPlan
    """That of the baseline, with the data and the device of all."""
    configurations: list[Configuration]
    bench: BenchConfig | None
    """The micro-benchmark of the same methods, where there is one."""
    environment: dict[str, Any]
    start_seconds: float = field(default_factory=lambda: time.monotonic() - STARTED)
    """What a process takes to start, as this one did; not by the time of day, which may be set."""

    def estimate(self, cells: Sequence[Cell]) -> dict[str, float]:
        """Seconds of each cell by its name, the micro-benchmark under `BENCH`."""
        rates = measure_rates(self.training, self.start_seconds)
        seconds = estimate_cells(self.training, self.configurations, cells, rates)
        if self.bench:
            own = [one for one in self.configurations if one.peer is None and not one.is_aa]
            seconds[BENCH] = estimate_bench(self.training, self.bench, own, rates)
        return seconds


def plan_comparison(config: CompareConfig, arguments: list[str]) -> ComparisonPlan:
    """Check all input; nothing is written yet.

    Raises:
        Skip2BenchError: something of it is not good.
    """
    check_folder("out_dir", config.out_dir)
    plan = plan_training(config.cell_config({"method": "lora"}))
    configurations = list_configurations(config, plan.model_config)
    if config.peers:
        from skip2bench.peers import check_peers

        check_peers(config.peers, plan)
    for one in configurations:
        if one.values.keys() & _INPUT_KEYS:
            plan_training(config.cell_config(one.values))
    environment = plan.describe_environment(arguments)
    return ComparisonPlan(
        config=config,
        training=plan,
        configurations=configurations,
        bench=_plan_bench(config, plan, configurations) if config.bench else None,
        environment=environment,
    )


def _plan_bench(
    config: CompareConfig, plan: TrainingPlan, configurations: Sequence[Configuration]
) -> BenchConfig | None:
    """The micro-benchmark of the same methods; None where it cannot have the same ranks."""
    own = [one for one in configurations if one.peer is None and not one.is_aa]
    cells = [config.cell_config(one.values) for one in own]
    ranks: dict[str, set[int]] = {"lora_r": set(), "skip_r": set()}
    for one, cell in zip(own, cells, strict=True):
        if (name := one.settings.method.rank_name) is not None:
            ranks[name].add(getattr(cell, name))
    if any(len(values) > 1 for values in ranks.values()):
        note("the micro-benchmark is left out: configurations differ in rank")
        return None
    skip = [
        cell.blocks for one, cell in zip(own, cells, strict=True) if one.settings.method.is_skip
    ]
    shared = ("target", "lora_alpha", "lora_dropout", "precision", "device", "seed")
    return BenchConfig(
        model=str(cells[0].checkpoint_dir or BenchConfig.model),
        methods=tuple(dict.fromkeys(one.settings.method.name for one in own)),
        blocks=tuple(dict.fromkeys(skip)) or BenchConfig.blocks,
        seq_length=min(BenchConfig.seq_length, plan.model_config.block_size),
        **{name: values.pop() for name, values in ranks.items() if values},  # type: ignore[arg-type]
        **{name: getattr(cells[0], name) for name in shared},
    )


def announce(plan: ComparisonPlan, cells: Sequence[Cell], seconds: Mapping[str, float]) -> None:
    """Say what will run, and for how long."""
    config = plan.config
    for one in plan.configurations:
        own = [cell for cell in cells if cell.configuration == one.name]
        total = sum(seconds[cell.name] for cell in own)
        rates = ", ".join(f"{rate:g}" for rate in one.learning_rates)
        note(
            f"  {one.label}: {one.trainable_parameters:,} parameters, learning rate {rates}, "
            f"{format_amount(len(own), 'run')}, about {format_duration(total, 'en')}"
        )
    extra = " and the micro-benchmark" if plan.bench else ""
    runs, seeds = format_amount(len(cells), "run"), format_amount(config.seeds, "seed")
    note(
        f"{runs}{extra}, {seeds} each, on "
        f"{plan.training.model_name} and "
        f"{plan.training.data.name}: about {format_duration(sum(seconds.values()), 'en')}"
    )
