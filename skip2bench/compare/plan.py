"""A comparison before it starts: its input checked, its cells listed, its time estimated.

The estimate takes the FLOPs of the cells, at a rate measured on one block here.
"""

import copy
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace

from lightning.fabric import Fabric

from skip2bench import STARTED
from skip2bench.bench.workload import Workload, count_workload_flops
from skip2bench.compare.folder import BENCH
from skip2bench.compare.matrix import Cell, Configuration, list_configurations
from skip2bench.compare.peers.dora import count_extra_flops
from skip2bench.compare.rates import MOST_EXTENSIONS
from skip2bench.config.blocks import blocks_text, count_auto
from skip2bench.config.commands import BenchConfig
from skip2bench.config.compare import CompareConfig
from skip2bench.config.methods import METHODS, TRADITIONAL
from skip2bench.config.options import option_names
from skip2bench.config.peers import PEERS
from skip2bench.config.run import RunConfig
from skip2bench.config.train import TrainConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note
from skip2bench.io.text import check_folder
from skip2bench.io.units import format_amount, format_duration
from skip2bench.machine.clock import time_call
from skip2bench.machine.environment import weights_dtype
from skip2bench.machine.environment_record import Environment
from skip2bench.machine.processes import starts_loaded
from skip2bench.models.methods import build_empty_model, resolve_method
from skip2bench.results.comparison_records import Matched
from skip2bench.train.block_choice import choose_blocks, rank_blocks
from skip2bench.train.plan import TrainingPlan, plan_training

_PLANNED_KEYS = frozenset(option_names(TrainConfig, "input", "backbone", "place"))
"""Values of a configuration that the plan of the others has not checked."""


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """A comparison whose input is known to be good."""

    config: CompareConfig
    training: TrainingPlan
    """That of the baseline, with the data and the device of all."""
    configurations: list[Configuration]
    bench: BenchConfig | None
    """The micro-benchmark of the same methods, where there is one."""
    environment: Environment
    matches: Mapping[str, Matched] = field(default_factory=dict)
    """By configuration, what makes it equal the baseline; empty before that is decided."""
    start_seconds: float
    """What a process takes until it trains: to start, where it does not find its modules loaded,
    and to read and tokenize the data, as this one did."""

    def estimate(self, cells: Sequence[Cell]) -> dict[str, float]:
        """Seconds of each cell by its name, the micro-benchmark under `BENCH`."""
        rates = measure_rates(self.training, self.start_seconds)
        seconds = estimate_cells(self.training, self.configurations, cells, rates)
        if self.bench:
            own = [one for one in self.configurations if one.peer is None and not one.is_aa]
            seconds[BENCH] = estimate_bench(self.training, self.bench, own, rates)
        return seconds


def plan_comparison(config: CompareConfig, arguments: Sequence[str]) -> ComparisonPlan:
    """Check all input, and resolve blocks "auto"; nothing is written yet.

    Raises:
        Skip2BenchError: something of it is not good.
    """
    check_folder("out_dir", config.out_dir)
    began = time.monotonic()  # not the time of day, which may be set
    plan = plan_training(config.cell_config({"method": TRADITIONAL}))
    began = began if starts_loaded(plan.device.type) else STARTED
    start_seconds = time.monotonic() - began
    if config.time_for == "samples" and plan.data.train_records <= len(plan.data.train):
        raise Skip2BenchError(
            f"data {plan.data.name!r} has no training records beyond the baseline's "
            f"{len(plan.data.train)} that others could be given; lower --train-samples, or leave "
            "--time-for out"
        )
    config = resolve_auto_blocks(config, plan)
    configurations = list_configurations(config, plan.model_config)
    if config.lm_eval:
        from skip2bench.compare.harness import check_harness

        check_harness(config)
    if config.peers:
        from skip2bench.compare.peers.run import check_peers

        check_peers(config.peers, plan)
    for one in configurations:
        if one.values.keys() & _PLANNED_KEYS:
            plan_training(config.cell_config(one.values))
    environment = plan.describe_environment(arguments)
    return ComparisonPlan(
        config=config,
        training=plan,
        configurations=configurations,
        bench=_plan_bench(config, plan, configurations) if config.bench else None,
        environment=environment,
        start_seconds=start_seconds,
    )


def resolve_auto_blocks(config: CompareConfig, plan: TrainingPlan) -> CompareConfig:
    """The comparison with the blocks that "auto" means, ranked once for all of its cells."""
    listed = [blocks_text(entry["blocks"]) for entry in config.configurations if "blocks" in entry]
    has_skip = any(METHODS[name].is_skip for name in config.methods)
    asked_for = listed if config.configurations else config.blocks if has_skip else ()
    counts = {str(text): count for text in asked_for if (count := count_auto(str(text)))}
    if not counts:
        return config
    ranking = rank_blocks(plan)
    chosen = {text: choose_blocks(ranking, count) for text, count in counts.items()}
    entries = (
        {**entry, "blocks": chosen.get(str(blocks_text(entry["blocks"])), entry["blocks"])}
        if "blocks" in entry
        else entry
        for entry in config.configurations
    )
    return replace(
        config,
        blocks=tuple(chosen.get(text, text) for text in config.blocks),
        configurations=tuple(entries),
    )


def _plan_bench(
    config: CompareConfig, plan: TrainingPlan, configurations: Sequence[Configuration]
) -> BenchConfig | None:
    """The micro-benchmark of the same methods; None where it cannot have them."""
    own = [one for one in configurations if one.peer is None and not one.is_aa]
    cells = [config.cell_config(one.values) for one in own]
    ranks: dict[str, set[int]] = {"lora_r": set(), "skip_r": set()}
    for one, cell in zip(own, cells, strict=True):
        if (name := one.settings.method.rank_name) is not None:
            ranks[name].add(getattr(cell, name))
    if config.matched == "memory" or any(len(values) > 1 for values in ranks.values()):
        note("the micro-benchmark is left out: configurations differ in rank")
        return None
    if any(one.settings.skip and one.settings.skip.projected for one in own):
        note("the micro-benchmark is left out: it has no adapters behind a projection")
        return None
    skip = [
        cell.blocks for one, cell in zip(own, cells, strict=True) if one.settings.method.is_skip
    ]
    shared = {item.name for item in fields(RunConfig)} - {*ranks, *option_names(RunConfig, "call")}
    return BenchConfig(
        model=str(cells[0].checkpoint_dir or BenchConfig.model),
        methods=tuple(dict.fromkeys(one.settings.method.name for one in own)),
        blocks=tuple(dict.fromkeys(skip)) or BenchConfig.blocks,
        top_blocks=tuple(dict.fromkeys(filter(None, (one.settings.top_blocks for one in own)))),
        seq_length=min(BenchConfig.seq_length, plan.model_config.block_size),
        **{name: values.pop() for name, values in ranks.items() if values},  # type: ignore[arg-type]
        **{name: getattr(cells[0], name) for name in shared},
    )


def announce(
    plan: ComparisonPlan,
    cells: Sequence[Cell],
    seconds: Mapping[str, float],
    *,
    may_advise: bool = True,
) -> None:
    """Say what will run, and for how long; and what to leave out, where that may be said."""
    for one in plan.configurations:
        own = [cell for cell in cells if cell.configuration == one.name]
        total = sum(seconds[cell.name] for cell in own)
        note(
            f"  {one.label}: {one.trainable_parameters:,} parameters, {_describe_rates(one)}, "
            f"{format_amount(len(own), 'run')}, about {format_duration(total, 'en')}"
        )
    if plan.bench:
        note(f"  micro-benchmark: about {format_duration(seconds[BENCH], 'en')}")
    extra = " and the micro-benchmark" if plan.bench else ""
    fewest, most = (pick(one.seeds for one in plan.configurations) for pick in (min, max))
    seeds = format_amount(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
    note(
        f"{format_amount(len(cells), 'run')}{extra}, {seeds} each, on "
        f"{plan.training.model_name} and "
        f"{plan.training.data.name}: about {format_duration(sum(seconds.values()), 'en')}"
    )
    if any(one.searches_rate for one in plan.configurations):
        note(
            "learning rates are searched for with the first seed, and the other seeds run at what "
            f"is found; where that lies beyond the first three, up to {MOST_EXTENSIONS} runs more "
            "each"
        )
    if may_advise and (hint := suggest_cut(plan, seconds)) is not None:
        note(hint)


def _describe_rates(one: Configuration) -> str:
    if one.takes_rate_of is not None:
        return f"learning rate that of {one.takes_rate_of}"
    rates = ", ".join(f"{rate:g}" for rate in sorted(one.learning_rates))
    return f"learning rate {rates}{' and beyond' if one.searches_rate else ''}"


_PROMISED_SECONDS = {"minimal": 10 * 60, "small": 60 * 60}
"""What a flow's help says that it takes, where it says so."""
_FAR_BEYOND_RATIO = 1.5
_FEWEST_SAMPLES = 16


def suggest_cut(plan: ComparisonPlan, seconds: Mapping[str, float]) -> str | None:
    """What to leave out where a flow would take far longer than it promises; None where not.

    Training and validation are taken as proportional to their samples, the rest as it is.
    """
    promised = _PROMISED_SECONDS.get(plan.config.flow)
    total = sum(seconds.values())
    if promised is None or total <= _FAR_BEYOND_RATIO * promised:
        return None
    flags, left = [], dict(seconds)
    if left.get(BENCH, 0.0) > promised / 4:
        del left[BENCH]
        flags.append("--no-bench")
    fixed = left.pop(BENCH, 0.0) + plan.start_seconds * len(left)
    work = sum(left.values()) - plan.start_seconds * len(left)
    share = min(1.0, max(0.0, promised - fixed) / work)
    samples = {
        f"--{side}-samples": max(_FEWEST_SAMPLES, int(share * len(own)))
        for side, own in (("train", plan.training.data.train), ("val", plan.training.data.val))
    }
    if share < 1:
        flags += [f"{name} {number}" for name, number in samples.items()]
        share = samples["--train-samples"] / len(plan.training.data.train)
    fits = format_duration(fixed + work * share, "en")
    return (
        f"flow {plan.config.flow} is meant for {format_duration(promised, 'en')}; with "
        f"{' '.join(flags)} it would take about {fits}, and less with fewer --seeds, --epochs or "
        "--blocks"
    )


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
    shape = (max(1, _TRIAL_TOKENS // length), length)
    settings = resolve_method(TRADITIONAL, "", plan.config, model_config)
    with plan.device:
        model = build_empty_model(settings, model_config).to(weights_dtype(plan.precision))
    fabric = Fabric(accelerator=plan.device.type, devices=1, precision=plan.precision)
    work = Workload(settings, model, fabric, shape)
    seconds = [
        time_call(lambda: work.make_passes(nullcontext, cached=False), plan.device)
        for _ in range(_TRIALS)
    ]
    flops = count_workload_flops(settings, model_config, shape, plan.device, plan.precision)
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
    flops = {one.name: _count_sample(plan, one, length) for one in configurations}
    widest = max(flops, key=lambda name: flops[name]["cached_backward_flops"] or 0)
    return {
        cell.name: rates.start_seconds
        + _count_cell(plan, cell, flops.get(cell.configuration, flops[widest]))
        / (length * rates.flops_per_second)
        for cell in cells
    }


def _count_sample(plan: TrainingPlan, one: Configuration, length: int) -> Flops:
    """FLOPs of every phase of a configuration, for one sample of a length."""
    # the other algebra has a price a step, which one sample does not show
    found = count_workload_flops(
        one.settings, plan.model_config, (1, length), plan.device, plan.precision, "head"
    )
    if one.peer is not None and PEERS[one.peer].has_magnitudes:
        size = plan.micro_batch_size or 1
        extra = count_extra_flops(one.settings, plan.model_config, length, size)
        found |= {name: (found[name] or 0) + flops for name, flops in extra.items()}
    return found


def _count_cell(plan: TrainingPlan, cell: Cell, flops: Flops) -> float:
    """FLOPs of a cell, times the mean length of a sample."""
    config, train, val = cell.config, plan.data.train, plan.data.val
    samples = len(train)
    if config.train_samples not in (None, plan.config.train_samples):
        samples = min(config.train_samples, plan.data.train_records)
    steps = math.ceil(samples / config.global_batch_size) * config.epochs
    steps = min(steps, config.max_steps or steps)
    served = min(steps * config.global_batch_size, samples * config.epochs)
    evaluations = 1 + math.ceil(steps / config.eval_interval)
    forward, step = (
        _total(flops, names) for names in (("forward",), ("train_forward", "backward"))
    )
    cached_step = _total(flops, ("cached_forward", "cached_backward"))
    domain = 2 * sum(plan.domain.lengths) * forward if plan.domain else 0
    if cell.role == "run" and not cached_step:
        own = served * _mean(train.lengths) * step + evaluations * sum(val.lengths) * forward
        return own + domain
    is_whole = METHODS[config.method].is_top  # of a cached trunk all positions go on
    of_train, of_val = (s.lengths if is_whole else s.supervised_counts for s in (train, val))
    own = served * _mean(of_train) * cached_step
    # without gradients, half of what a step takes, nearly all of which is products with the head
    own += evaluations * sum(of_val) * cached_step / 2
    if cell.config.cache_dir is None or cell.role == "cache":
        used = min(served, samples) * _mean(train.lengths)
        own += (used + sum(val.lengths)) * forward
    return own + domain


def estimate_bench(
    plan: TrainingPlan, config: BenchConfig, configurations: Sequence[Configuration], rates: Rates
) -> float:
    """Seconds of the micro-benchmark."""
    seconds = 0.0
    for one in configurations:
        flops = count_workload_flops(
            one.settings,
            plan.model_config,
            (config.batch_size, config.seq_length),
            plan.device,
            plan.precision,
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
