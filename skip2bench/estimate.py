"""How long a matrix will take: the FLOPs of its cells, at a rate measured on one block here."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skip2bench.building import build_empty_model
from skip2bench.config import BenchConfig
from skip2bench.environment import weights_dtype
from skip2bench.matrix import Cell, Configuration
from skip2bench.measure import time_call
from skip2bench.methods import resolve_method
from skip2bench.training_plan import TrainingPlan
from skip2bench.workload import Workload, count_workload_flops

_TRIALS = 5
_TRIAL_TOKENS = 1024

Flops = Mapping[str, int | None]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What this machine does, measured."""

    flops_per_second: float
    start_seconds: float
    """From starting a process to having loaded and tokenized the data."""


def measure_rates(plan: TrainingPlan, start_seconds: float) -> Rates:
    """Time training steps of LoRA on the model cut to one block, its weights random."""
    model_config = copy.copy(plan.model_config)
    model_config.n_layer = 1
    length = max(2, round(_mean(plan.data.train.lengths)))
    batch_size = max(1, _TRIAL_TOKENS // length)
    settings = resolve_method("lora", "", plan.config, model_config)
    with plan.device:
        model = build_empty_model(settings, model_config).to(weights_dtype(plan.precision))
    work = Workload(
        settings,
        model,
        batch_size=batch_size,
        seq_length=length,
        seed=0,
        device=plan.device,
        precision=plan.precision,
    )
    seconds = [
        time_call(lambda: work.backward(work.train_forward()), plan.device) for _ in range(_TRIALS)
    ]
    flops = count_workload_flops(settings, model_config, batch_size, length)
    counted = (flops["train_forward_flops"] or 0) + (flops["backward_flops"] or 0)
    return Rates(
        flops_per_second=max(counted, 1) / sorted(seconds)[_TRIALS // 2],
        start_seconds=start_seconds,
    )


def estimate_cells(
    plan: TrainingPlan,
    configurations: Sequence[Configuration],
    cells: Sequence[Cell],
    rates: Rates,
) -> dict[str, float]:
    """Seconds of each cell by its name; the cells' own data are taken to be like the plan's."""
    length = max(2, round(_mean(plan.data.train.lengths)))
    flops = {
        one.name: count_workload_flops(one.settings, plan.model_config, 1, length)
        for one in configurations
    }
    widest = max(flops, key=lambda name: flops[name]["cached_backward_flops"] or 0)
    return {
        cell.name: rates.start_seconds
        + _count_cell(plan, cell, flops.get(cell.configuration, flops[widest]))
        / (length * rates.flops_per_second)
        for cell in cells
    }


def _count_cell(plan: TrainingPlan, cell: Cell, flops: Flops) -> float:
    """FLOPs of a cell, times the mean length of a sample."""
    config, train, val = cell.config, plan.data.train, plan.data.val
    steps = math.ceil(len(train) / config.global_batch_size) * config.epochs
    steps = min(steps, config.max_steps or steps)
    served = min(steps * config.global_batch_size, len(train) * config.epochs)
    evaluations = 1 + math.ceil(steps / config.eval_interval)
    forward, step = (
        _total(flops, names) for names in (("forward",), ("train_forward", "backward"))
    )
    cached_forward = _total(flops, ("cached_forward",))
    domain = 2 * sum(plan.domain.lengths) * forward if plan.domain else 0
    if cell.role == "run" and not cached_forward:
        own = served * _mean(train.lengths) * step + evaluations * sum(val.lengths) * forward
        return own + domain
    supervised = served * _mean(train.supervised_counts)
    own = supervised * _total(flops, ("cached_forward", "cached_backward"))
    own += evaluations * sum(val.supervised_counts) * cached_forward
    if cell.role != "reused":
        used = min(served, len(train)) * _mean(train.lengths)
        own += (used + sum(val.lengths)) * forward
    return own + domain


def estimate_bench(
    plan: TrainingPlan, config: BenchConfig, configurations: Sequence[Configuration], rates: Rates
) -> float:
    """Seconds of the micro-benchmark."""
    seconds = 0.0
    for one in configurations:
        flops = count_workload_flops(
            one.settings, plan.model_config, config.batch_size, config.seq_length
        )
        names = ("forward", "train_forward", "backward", "cached_forward", "cached_backward")
        iterations = config.rounds * config.iterations
        seconds += iterations * _total(flops, names) / rates.flops_per_second
        # memory is measured in processes of their own
        seconds += rates.start_seconds * (2 if one.settings.method.is_cached else 1)
    return rates.start_seconds + seconds


def _total(flops: Flops, phases: Sequence[str]) -> float:
    return float(sum(flops[f"{phase}_flops"] or 0 for phase in phases))


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)
