"""A training run as `loop` drives it: what stays the same during it, and its figures at the end."""

import math
from dataclasses import asdict, dataclass

import torch
from lightning.fabric import Fabric
from litgpt.model import GPT

from skip2bench.config.train import TrainConfig, usual_learning_rate
from skip2bench.data.samples import TokenizedData, global_batches
from skip2bench.machine.clock import Clock
from skip2bench.machine.memory import read_peak_memory, read_reserved_memory
from skip2bench.machine.signals import StopRequest
from skip2bench.results.run_records import ProcessorUse, RankFigures, RateFigures, TrainFigures
from skip2bench.train.attempt import Attempt
from skip2bench.train.caches import RunCaches
from skip2bench.train.logs import NoLogs, RunLogs
from skip2bench.train.objective import Objective
from skip2bench.train.ranks.ranks import Ranks, step_bytes
from skip2bench.train.state import Progress

RATE_SEARCH = "rate_search"
"""Part of the clock in which a learning rate is searched for; in no other."""
_STEPS = ("data", "forward", "backward", "optimizer")
TRAINING_CLOCK = ("data", "cache_build", "calibration", "forward", "backward", "optimizer")
_WATCHED = {
    "training": TRAINING_CLOCK,
    "cache_build": ("cache_build",),
    "steps": _STEPS,
    "validation": ("validation",),
}
"""Of which parts of the clock, by its name in `summary.json`, it is said who used the processor."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A run that is set up; how far it has come is its `Progress`."""

    attempt: Attempt
    model: GPT
    objective: Objective
    caches: RunCaches | None
    """Those that the objective reads; to be provided before it is used."""
    optimizer: torch.optim.Optimizer
    batches: list[list[int]]
    """Sample ids of every step."""
    clock: Clock
    logs: RunLogs | NoLogs
    domain_loss_before: float | None
    """On the base model's own domain before the first step; None without text of it."""

    @property
    def config(self) -> TrainConfig:
        """Of the run."""
        return self.attempt.plan.config

    @property
    def data(self) -> TokenizedData:
        """Both sides."""
        return self.attempt.plan.data

    @property
    def fabric(self) -> Fabric:
        """Of the run."""
        return self.attempt.fabric

    @property
    def ranks(self) -> Ranks:
        """Those of the run."""
        return self.attempt.ranks

    @property
    def stop(self) -> StopRequest:
        """Whether somebody has asked to stop."""
        return self.attempt.stop

    @property
    def label(self) -> str:
        """Of the method, for people."""
        return self.attempt.plan.settings.label

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return len(self.batches)


def planned_batches(config: TrainConfig, data: TokenizedData, steps: int) -> list[list[int]]:
    """Sample ids of every step of the run, in order."""
    batches: list[list[int]] = []
    for epoch in range(config.epochs):
        if len(batches) >= steps:
            break
        batches += global_batches(len(data.train), config.global_batch_size, config.seed, epoch)
    return batches[:steps]


def read_run_peak(run: TrainingRun, progress: Progress) -> int:
    """Peak bytes of the whole run, of the rank that has the most."""
    own = max(progress.preparation_peak_bytes, read_own_steps_peak(run, progress))
    return int(run.ranks.max(own)[0])


def read_steps_peak(run: TrainingRun, progress: Progress) -> int:
    """Peak bytes of the steps, of the rank that has the most."""
    return int(run.ranks.max(read_own_steps_peak(run, progress))[0])


def read_own_steps_peak(run: TrainingRun, progress: Progress) -> int:
    """Peak bytes of the steps on this rank, those before the run was resumed among them."""
    return max(progress.earlier_steps_peak_bytes, read_peak_memory(run.fabric.device))


def count_epochs(run: TrainingRun, progress: Progress) -> float:
    """Passes over the training samples so far."""
    steps_per_epoch = math.ceil(len(run.data.train) / run.config.global_batch_size)
    return round(progress.step / steps_per_epoch, 4)


def summarise_run(run: TrainingRun, progress: Progress) -> TrainFigures:
    """Headline figures of a finished run."""
    best_step, best_loss = min(progress.val_losses, key=lambda point: point[1])
    kept_step, accuracies = find_kept_step(run, progress), dict(progress.accuracies)
    parts = (*TRAINING_CLOCK, "validation", "saving", "resume")
    return TrainFigures.of(
        run.objective.describe(),
        _describe_rate(run, progress),
        train_seconds=run.clock.total(TRAINING_CLOCK),
        **{f"{part}_seconds": run.clock.seconds.get(part, 0.0) for part in parts},
        processor=_describe_processor(run.clock),
        steps=progress.step,
        epochs=count_epochs(run, progress),
        tokens=progress.tokens,
        resumed_at_steps=progress.resumed_at_steps,
        saved_for_backward_bytes=progress.saved_bytes,
        peak_memory_bytes=read_run_peak(run, progress),
        steps_peak_memory_bytes=read_steps_peak(run, progress),
        reserved_memory_bytes=read_reserved_memory(run.fabric.device),
        initial_val_loss=progress.val_losses[0][1],
        final_val_loss=progress.val_losses[-1][1],
        best_val_loss=best_loss,
        best_step=best_step,
        kept_step=kept_step,
        kept_val_loss=dict(progress.val_losses)[kept_step],
        initial_next_token_accuracy=accuracies.get(progress.val_losses[0][0]),
        final_next_token_accuracy=accuracies.get(progress.val_losses[-1][0]),
        kept_next_token_accuracy=accuracies.get(kept_step),
        planned_steps=run.total_steps,
        stopped_early=progress.step < run.total_steps,
    )


def _describe_processor(clock: Clock) -> dict[str, ProcessorUse] | None:
    """None where a run has ranks: each is in the others' way."""
    if clock.meter is None:
        return None
    found = {name: clock.meter.total(parts) for name, parts in _WATCHED.items()}
    return {name: ProcessorUse(**asdict(use)) for name, use in found.items() if use}


def _describe_rate(run: TrainingRun, progress: Progress) -> RateFigures:
    asked_for = run.config.learning_rate
    if asked_for == "auto":
        return RateFigures(
            learning_rate=progress.peak_rate,
            learning_rate_source="search",
            learning_rates_tried=progress.rates_tried,
            rate_search_seconds=run.clock.seconds.get(RATE_SEARCH, 0.0),
        )
    is_default = asked_for == usual_learning_rate(run.config)
    return RateFigures(
        learning_rate=asked_for, learning_rate_source="default" if is_default else "given"
    )


def find_best_step(progress: Progress, until: int | None = None) -> int | None:
    """The evaluated step with the lowest validation loss, the first such; not the start.

    Args:
        progress: Of the run.
        until: The last step that counts; None for all so far.
    """
    trained = [
        point
        for point in progress.val_losses
        if point[0] > 0 and (until is None or point[0] <= until)
    ]
    return min(trained, key=lambda point: point[1])[0] if trained else None


def find_kept_step(run: TrainingRun, progress: Progress) -> int:
    """The step whose adapter the run saves at its end."""
    is_best = run.config.keep == "best" and not progress.lost_best
    best = find_best_step(progress) if is_best else None
    return progress.step if best is None else best


def is_patience_over(run: TrainingRun, progress: Progress) -> bool:
    """True where as many validations in a row as the run has patience for gained nothing."""
    losses, patience = [loss for _, loss in progress.val_losses], run.config.patience
    return patience is not None and len(losses) - 1 - losses.index(min(losses)) >= patience


def describe_communication(run: TrainingRun) -> RankFigures:
    """What `summary.json` says of a run's ranks.

    `communication_bytes_per_step` are what each rank gives to the collective of a step: gradients
    of all that trains, in float32, the loss, and the wish to stop. With fsdp, the weights that
    travel in forward passes come on top, and are not in it.
    """
    ranks, strategy = run.ranks, run.config.strategy
    trained = [p for p in run.model.parameters() if p.requires_grad]
    several = "ddp" if strategy == "auto" else strategy
    return RankFigures(
        world_size=ranks.size,
        strategy="single" if ranks.is_alone else several,
        communication_bytes_per_step=step_bytes(trained, ranks.size),
    )
