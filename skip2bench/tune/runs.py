"""A sweep of a method whose cache does not serve many configurations at once: whole runs.

Each configuration is a run of a comparison, a process of its own, by one seed; runs with the same
boundary read one cache. Nothing is cut short, so the sweep costs as many runs as it has
configurations. One that was stopped goes on with the run that was on its way.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from skip2bench.bench.workload import count_workload_flops
from skip2bench.compare.run import Within, run_comparison
from skip2bench.config.compare import CompareConfig
from skip2bench.config.rates import beyond_edges
from skip2bench.config.train import wanted_blocks
from skip2bench.config.tune import TuneConfig
from skip2bench.io.console import note, warn
from skip2bench.io.units import format_amount
from skip2bench.models.methods import count_trainable, resolve_method
from skip2bench.results.comparison_records import ComparedCell, ComparisonResult
from skip2bench.results.curves import read_loss_curve
from skip2bench.results.reading import TrainRun, is_train, read_run
from skip2bench.results.tune_records import EXPLORATION, Rung, TuneFigures
from skip2bench.train.plan import TrainingPlan
from skip2bench.tune.entrant import Entrant, Evaluation, Origin, rank
from skip2bench.tune.space import Choice, Space, default_choice

_MOST_EXTENSIONS = 4
"""Rates beyond those that were given, at most."""


@dataclass(kw_only=True)
class RunSweep:
    """A sweep on its way."""

    config: TuneConfig
    plan: TrainingPlan
    space: Space
    folder: Path
    """Of the sweep."""
    within: Within
    arguments: Sequence[str]
    entrants: list[Entrant] = field(default_factory=list)
    runs: list[TrainRun] = field(default_factory=list)
    initial_val_loss: float | None = None

    def run(self, budget: int) -> None:
        """Run all configurations, and the leader beyond the grid's rates.

        Args:
            budget: Configurations to draw.

        Raises:
            KeyboardInterrupt: it was interrupted; called again, it goes on.
        """
        self._enter([default_choice(self.space, self.plan.model_config)], "drawn")
        self._enter(self.space.draw(budget, self.plan.config.seed), "drawn")
        note(
            f"{format_amount(len(self.entrants), 'configuration')} of {self.space.size:,}, each a "
            f"whole run of {self.plan.steps} steps"
        )
        self._compare()
        for _ in range(_MOST_EXTENSIONS):
            if not self._enter_further():
                return
            self._compare()

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The end of the runs, which is the only one."""
        diverged = sum(one.status == "diverged" for one in self.entrants)
        return (
            Rung(
                rung=0,
                step=self.plan.steps,
                configurations=len(self.entrants),
                kept=0,
                diverged=diverged,
            ),
        )

    def count(self) -> TuneFigures:
        """What it took."""
        ended = [run.summary for run in self.runs]
        ranked = [one for one in rank(self.entrants) if one.status == "finished"]
        builds = [summary.cache_build_seconds or 0.0 for summary in ended]
        seconds = [summary.train_seconds or 0.0 for summary in ended]
        largest = max(ended, key=lambda it: it.cache_bytes or 0, default=None)
        return TuneFigures(
            configurations=len(self.entrants),
            diverged=self.rungs[0].diverged,
            initial_val_loss=self.initial_val_loss,
            best_val_loss=min((one.best_val_loss for one in ranked), default=None),
            cache_bytes=largest.cache_bytes if largest else None,
            cache_tier=largest.cache_tier if largest else None,
            cache_kept=False,
            cache_build_seconds=sum(builds),
            sweep_seconds=sum(seconds) - sum(builds),
            validation_seconds=sum(summary.validation_seconds or 0.0 for summary in ended),
            peak_memory_bytes=max((it.peak_memory_bytes or 0 for it in ended), default=None),
            steps_of_all=sum(summary.steps or 0 for summary in ended),
        )

    def _enter(self, choices: Sequence[Choice], origin: Origin) -> list[Entrant]:
        known = {one.choice.key for one in self.entrants}
        new = [choice for choice in choices if choice.key not in known]
        entered = [self._make_entrant(choice, origin) for choice in dict.fromkeys(new)]
        self.entrants += entered
        return entered

    def _make_entrant(self, choice: Choice, origin: Origin) -> Entrant:
        plan = self.plan
        cell, model = self.config.train_config(choice.values()), plan.model_config
        settings = resolve_method(cell.method, wanted_blocks(cell), cell, model)
        length = max(2, round(sum(plan.data.train.lengths) / len(plan.data.train.lengths)))
        shape = (1, length)
        flops = count_workload_flops(settings, model, shape, plan.device, plan.precision)
        step = sum(flops[f"cached_{part}_flops"] or 0 for part in ("forward", "backward"))
        return Entrant(
            choice=choice,
            origin=origin,
            trainable_parameters=count_trainable(settings, model),
            flops_per_position=step / length,
            trial=None,
        )

    def _enter_further(self) -> list[Entrant]:
        """The leader at the rate beyond, where it is the best at the edge of those it has had."""
        leader = rank(self.entrants)[0]
        if self.config.learning_rates or leader.status != "finished":
            return []
        choice = leader.choice
        alike = [
            one.choice.learning_rate
            for one in self.entrants
            if replace(one.choice, learning_rate=0.0) == replace(choice, learning_rate=0.0)
        ]
        further = beyond_edges(choice.learning_rate, alike)
        return self._enter([replace(choice, learning_rate=rate) for rate in further], "rate")

    def _compare(self) -> None:
        """Run what has not run yet, and read what all have come to."""
        groups: dict[str, list[Choice]] = {}
        for one in self.entrants:
            groups.setdefault(_name_group(one.choice), []).append(one.choice)
        result = run_comparison(self._make_comparison(groups), self.arguments, self.within)
        assert isinstance(result, ComparisonResult)
        configurations = dict(zip(groups, result.configurations, strict=True))
        self.runs.clear()
        for one in self.entrants:
            name = configurations[_name_group(one.choice)].name
            rate = one.choice.learning_rate
            for cell_name, cell in result.cells.items():
                if (cell.configuration, cell.learning_rate, cell.role) == (name, rate, "run"):
                    self._read(one, cell_name, cell)

    def _make_comparison(self, groups: dict[str, list[Choice]]) -> CompareConfig:
        config = self.config
        entries: list[dict[str, Any]] = []
        for name, choices in groups.items():
            values = choices[0].values()
            del values["learning_rate"]
            rates = sorted(choice.learning_rate for choice in choices)
            entries.append(
                {"method": config.method, "label": name, "learning_rates": rates, **values}
            )
        of_choice = next(iter(groups.values()))[0].values()
        shared = {k: v for k, v in config.train.items() if k not in of_choice and k != "cache_dir"}
        return CompareConfig(
            methods=(config.method,),
            baseline=config.method,
            bench=False,
            **config.engine_values(),
            seeds=1,
            configurations=tuple(entries),
            train={"domain_text": "none"} | shared,
            out_dir=self.folder / EXPLORATION,
        )

    def _read(self, one: Entrant, name: str, cell: ComparedCell) -> None:
        """Take what a run has come to."""
        folder = self.folder / EXPLORATION / "cells" / name
        run = read_run(folder) if (folder / "summary.json").exists() else None
        if run is None or not is_train(run):
            one.stop("left")
            return
        has_diverged = run.summary.diverged_at_step is not None
        if cell.status != "ok":
            if not has_diverged:
                warn(f"{one.choice.name} did not end well and is left out: {cell.error}")
            one.stop("diverged" if has_diverged else "left")
            return
        self.runs.append(run)
        curve = read_loss_curve(run)
        assert curve is not None  # a run that ended well has one
        per_epoch = math.ceil(len(self.plan.data.train) / self.plan.config.global_batch_size)
        one.curve = [
            Evaluation(
                step=step,
                epoch=round(step / per_epoch, 4),
                train_loss=train_loss,
                val_loss=val_loss,
                rung=0,
            )
            for step, train_loss, val_loss in zip(
                curve.steps, curve.train_losses, curve.val_losses, strict=True
            )
        ]
        self.initial_val_loss = run.summary.initial_val_loss
        one.stop("finished")


def _name_group(choice: Choice) -> str:
    """Of choices that differ in the learning rate alone."""
    return replace(choice, learning_rate=0.0).name.replace("-lr0", "")
