"""What all configurations of a sweep stand on: one model, its data, and one Skip-Cache.

The cache holds every block that a configuration may adapt, so that the backbone runs once.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from skip2bench.errors import Skip2BenchError
from skip2bench.machine.clock import Clock
from skip2bench.machine.environment import weights_dtype
from skip2bench.machine.environment_record import Environment
from skip2bench.machine.memory import hold_freed_memory
from skip2bench.machine.signals import StopRequest
from skip2bench.models.skip import SkipGPT, SkipSettings
from skip2bench.results.run_records import ObjectiveFigures
from skip2bench.sweep.engine import Schedule, Sweep
from skip2bench.sweep.trial import Recipe, Trial, start_trial
from skip2bench.train.attempt import Attempt
from skip2bench.train.caches import RunCaches
from skip2bench.train.calibration import calibration_ids, needs_sizes, set_relative_sizes
from skip2bench.train.parts import load_model, plan_caches, provide_projection
from skip2bench.train.plan import TrainingPlan
from skip2bench.train.ranks.ranks import Ranks
from skip2bench.train.resume import RunPlace
from skip2bench.train.training import planned_batches


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A sweep that is ready for its first step."""

    plan: TrainingPlan
    model: SkipGPT
    caches: RunCaches
    sweep: Sweep
    schedule: Schedule
    clock: Clock
    stop: StopRequest

    def start(self, settings: SkipSettings, learning_rate: float, **values: Any) -> Trial:
        """A configuration before its first step.

        Args:
            settings: Of its adapters.
            learning_rate: At its peak.
            values: Of `Recipe`, in place of the plan's.
        """
        config = self.plan.config
        recipe = Recipe(
            settings=settings,
            learning_rate=learning_rate,
            **{
                "weight_decay": config.weight_decay,
                "betas": (config.adam_beta1, config.adam_beta2),
                "max_norm": config.max_norm,
                **values,
            },
        )
        return start_trial(self.model, recipe, config.seed, weights_dtype(self.plan.precision))

    def describe_caches(self) -> ObjectiveFigures:
        """What the cache takes, and where it is."""
        return self.caches.describe()


def lay_ground(
    plan: TrainingPlan,
    folder: Path,
    environment: Environment,
    stop: StopRequest,
    started: float,
    readers: int,
) -> Ground:
    """Load the model and build the cache, or find it kept.

    Args:
        plan: A `skip2` run that adapts every block that a configuration may.
        folder: Where a cache on disk lives that is not to be kept elsewhere.
        environment: Of the machine and the plan.
        stop: Whether somebody has asked to stop.
        started: `time.monotonic()` when the command began.
        readers: Configurations that will train, or about as many.

    Raises:
        Skip2BenchError: the backbone is random, its blocks give what cannot be scaled, or there is
            no room for a cache.
        KeyboardInterrupt: somebody asked to stop.
    """
    if plan.precision == "16-mixed":
        raise Skip2BenchError(
            "precision 16-mixed scales the gradients of one run, and here many train at once; use "
            "bf16-mixed, bf16-true or 32-true"
        )
    hold_freed_memory()
    wide = replace(plan, settings=_widen(plan))
    ranks = Ranks()
    attempt = Attempt(
        plan=wide,
        place=RunPlace(folder=folder, log_folder=folder / "logs"),
        ranks=ranks,
        fabric=Fabric(accelerator=plan.device.type, devices=1, precision=plan.precision),
        stop=stop,
        environment=environment,
        identity={},
        started=started,
    )
    model = load_model(wide, ranks)
    assert isinstance(model, SkipGPT)
    clock = Clock(plan.device)
    if model.settings.projected is not None:
        provide_projection(attempt, model, clock)
    batches = planned_batches(plan.config, plan.data, plan.steps)
    caches = plan_caches(attempt, model, batches, readers)
    caches.provide(clock)
    if caches.sides["train"] is None:
        raise Skip2BenchError(
            "no sample of the cache has room anywhere; use --cache-project N or --cache-dtype "
            "bf16, fewer --train-samples, or --no-screening with fewer --blocks"
        )
    schedule = Schedule(batches=batches, warmup_steps=plan.warmup_steps, seed=plan.config.seed)
    sweep = Sweep(attempt.fabric, model, plan.data, caches.sides, schedule)
    if needs_sizes(model):
        with clock.part("calibration"):
            served = sweep.serve("train", calibration_ids(plan.data.train))
            set_relative_sizes(model, served, ranks)
    return Ground(
        plan=plan,
        model=model,
        caches=caches,
        sweep=sweep,
        schedule=schedule,
        clock=clock,
        stop=stop,
    )


def _widen(plan: TrainingPlan) -> Any:
    """The plan's method with adapters that take next to nothing: those of the model are not used.

    They have scaled features, whose sizes every configuration takes from them.
    """
    assert plan.settings.skip is not None
    own = plan.settings.skip
    # what features are projected by depends on their kind, which is one kind then
    features = "scaled" if own.projected is None else own.features
    skip = SkipSettings(blocks=own.blocks, r=1, alpha=1, projected=own.projected, features=features)
    return replace(plan.settings, skip=skip)
