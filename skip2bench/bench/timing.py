"""Seconds of every phase of every configuration, in interleaved rounds.

One base serves all configurations. On CUDA only one of them is there at a time: each is built,
warmed up, timed and dropped in every round, so that none takes memory from another. What does not
fit all the same is left out and named, and the others are measured.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from skip2bench.bench.summary import Rows, blocks_text
from skip2bench.bench.workload import Workload, build_workload
from skip2bench.config.commands import BenchConfig
from skip2bench.io.console import Bar
from skip2bench.machine.clock import stopwatch
from skip2bench.machine.environment import weights_dtype
from skip2bench.machine.memory import release_memory
from skip2bench.machine.out_of_memory import DoesNotFitError, fitting
from skip2bench.machine.processor_use import ProcessorMeter
from skip2bench.machine.threads import give_way
from skip2bench.models.base import Base, load_base
from skip2bench.models.methods import MethodSettings
from skip2bench.results.run_records import ProcessorUse

WARMUP_ITERATIONS = 3


@dataclass(frozen=True, kw_only=True)
class Times:
    """What was measured, and what could not be."""

    rows: Rows
    """One row a phase and iteration, of the configurations that fit."""
    misfits: dict[str, dict[str, Any]]
    """By a configuration's slug: `status`, `requested_bytes` and `oom_phase`."""
    processor: dict[str, ProcessorUse]
    """Who used the processor during `timing` and each of its rounds."""


def measure_times(
    config: BenchConfig, all_settings: list[MethodSettings], device: torch.device, precision: str
) -> Times:
    """Time all configurations, round by round; without any, not even the weights are loaded."""
    if not all_settings:
        return Times(rows=[], misfits={}, processor={})
    try:
        with fitting("weights"):
            base = load_base(config.model, device, weights_dtype(precision), config.seed)
    except DoesNotFitError as error:
        misfit = error.describe()
        return Times(
            rows=[], misfits={settings.slug: misfit for settings in all_settings}, processor={}
        )
    stays = device.type != "cuda"
    warmups = WARMUP_ITERATIONS * (1 if stays else config.rounds)
    total = len(all_settings) * (warmups + config.rounds * config.iterations)
    with Bar("timing", total, "iterations") as bar:
        rounds = _Rounds(config, base, device, precision, bar)
        if stays:
            for prepare in (rounds.build, rounds.warm_up):
                for settings in all_settings:
                    rounds.attempt(settings, prepare)
        meter = ProcessorMeter(on_look=give_way)
        names = [f"round {number}" for number in range(1, config.rounds + 1)]
        for number, name in enumerate(names, start=1):
            for settings in all_settings:
                meter.enter(name)
                if not stays:
                    rounds.attempt(settings, rounds.build)
                    rounds.attempt(settings, rounds.warm_up)
                rounds.attempt(settings, partial(rounds.time, number=number))
                if not stays:
                    rounds.drop(settings)
    return Times(
        rows=[row for row, slug in rounds.rows if slug not in rounds.misfits],
        misfits=rounds.misfits,
        processor=describe_use(meter, {"timing": names} | {name: [name] for name in names}),
    )


def describe_use(
    meter: ProcessorMeter, parts: Mapping[str, Sequence[str]]
) -> dict[str, ProcessorUse]:
    """Who used the processor, by what the parts of a meter are together."""
    found = {name: meter.total(own) for name, own in parts.items()}
    return {name: ProcessorUse(**asdict(use)) for name, use in found.items() if use}


@dataclass
class _Rounds:
    """The workloads that are there, and what came of them so far."""

    config: BenchConfig
    base: Base
    device: torch.device
    precision: str
    bar: Bar
    works: dict[str, Workload] = field(default_factory=dict)
    rows: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    """Measurements, each with its configuration's slug."""
    misfits: dict[str, dict[str, Any]] = field(default_factory=dict)

    def attempt(self, settings: MethodSettings, call: Callable[[MethodSettings], None]) -> None:
        """Make `call`, unless memory ran out for this configuration; note it where it does now."""
        if settings.slug in self.misfits:
            return
        try:
            call(settings)
        except DoesNotFitError as error:
            self.misfits[settings.slug] = error.describe()
        if settings.slug in self.misfits:  # here, where no traceback holds its tensors any more
            self.drop(settings)

    def build(self, settings: MethodSettings) -> None:
        with fitting("model"):
            self.works[settings.slug] = build_workload(
                settings, self.base, self.config, self.device, self.precision
            )

    def warm_up(self, settings: MethodSettings) -> None:
        for _ in range(WARMUP_ITERATIONS):
            _time_iteration(self.works[settings.slug], self.device)
            self.bar.advance(1, "warm-up")

    def time(self, settings: MethodSettings, number: int) -> None:
        gc.collect()  # here, so that it does not run inside a clock
        for iteration in range(1, self.config.iterations + 1):
            seconds = _time_iteration(self.works[settings.slug], self.device)
            self.rows += [
                (
                    {
                        "round": number,
                        "method": settings.method.name,
                        "blocks": blocks_text(settings.blocks),
                        "phase": phase,
                        "iteration": iteration,
                        "seconds": value,
                    },
                    settings.slug,
                )
                for phase, value in seconds.items()
            ]
            self.bar.advance(1, f"round {number}/{self.config.rounds} {settings.label}")

    def drop(self, settings: MethodSettings) -> None:
        self.works.pop(settings.slug, None)
        release_memory(self.device)


def _time_iteration(work: Workload, device: torch.device) -> dict[str, float]:
    """Seconds of each phase, over all portions of the batch."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(phase: str) -> Iterator[None]:
        with stopwatch(device) as passed:
            yield
        seconds[phase] = seconds.get(phase, 0.0) + passed()

    with fitting("forward"), timed("forward"):
        work.forward()
    work.take_step(timed, cached=False)
    if work.is_cached:
        optimizer = seconds["optimizer"]
        work.take_step(timed, cached=True)
        seconds["optimizer"] = optimizer  # it costs the same from the cache
    return seconds
