"""The training loop, the same for every method: what is timed, and what is logged.

Nothing is both at once: the training clock counts data, cache building, forward, backward and
optimizer. Validation, saving and resuming have clocks of their own; logging stands outside all of
them.
"""

import math
from collections.abc import Sequence

import torch

from skip2bench.cache.portions import count_largest_saved
from skip2bench.errors import DivergedError
from skip2bench.io.console import Bar
from skip2bench.machine.clock import Clock
from skip2bench.machine.memory import read_peak_memory, reset_peak_memory
from skip2bench.train.best import drop_outdated, set_aside_best
from skip2bench.train.calibration import calibrate, needs_sizes
from skip2bench.train.ranks.sharded import local_tensors
from skip2bench.train.rate import settle_rate
from skip2bench.train.sample_answer import show_answer
from skip2bench.train.saving import restore_state, save_state
from skip2bench.train.state import Progress, State
from skip2bench.train.step import count_supervised, evaluate_batch, take_step
from skip2bench.train.training import (
    TRAINING_CLOCK,
    TrainingRun,
    count_epochs,
    is_patience_over,
    read_run_peak,
    read_steps_peak,
)


def fit(run: TrainingRun, progress: Progress, resumed: State | None = None) -> None:
    """Train to the last step.

    Args:
        run: The run.
        progress: Where it stands; updated.
        resumed: The state that `progress` comes from; None for a run that begins.

    Raises:
        DivergedError: a loss is not finite.
        KeyboardInterrupt: it was asked to stop; the step it was in is done and saved then.
    """
    if resumed is None:
        _begin(run, progress)
    else:
        _go_on(run, progress, resumed)
    with Bar(run.label, run.total_steps, "steps", done=progress.step) as bar:
        for step in range(progress.step, run.total_steps):
            if is_patience_over(run, progress):
                break
            loss, learning_rate = take_step(run, step, progress.peak_rate)
            _note_step(run, progress, loss, learning_rate)
            _check_finite(run, progress, loss)
            if progress.step % run.config.eval_interval == 0 or progress.step == run.total_steps:
                _evaluate(run, progress)
            _save_state(run, progress)
            speed = progress.tokens / run.clock.total(TRAINING_CLOCK)
            bar.advance(
                1, f"loss {loss:.3f} val {progress.val_losses[-1][1]:.3f} {speed:,.0f} tokens/s"
            )


def _note_step(run: TrainingRun, progress: Progress, loss: float, learning_rate: float) -> None:
    """Count and log the step that was taken."""
    batch, lengths = run.batches[progress.step], run.data.train.lengths
    progress.step += 1
    progress.tokens += sum(lengths[i] for i in batch)
    progress.losses.append(loss)
    if run.config.compile and progress.step == 1:
        # not before: it would compile outside the clock what the first step compiles
        progress.saved_bytes = _measure_saved_bytes(run, batch)
    run.logs.log_step(
        step=progress.step,
        epoch=count_epochs(run, progress),
        loss=loss,
        learning_rate=learning_rate,
        tokens=progress.tokens,
        supervised_tokens=count_supervised(run, batch),
        train_seconds=run.clock.total(TRAINING_CLOCK),
    )


def _begin(run: TrainingRun, progress: Progress) -> None:
    """What comes before the first step: the cache, and the evaluation of the untrained model."""
    if run.caches is not None:
        run.caches.provide(run.clock)
    if needs_sizes(run.model):
        with run.clock.part("calibration"):
            calibrate(run)
    settle_rate(run, progress)
    progress.preparation_peak_bytes = read_peak_memory(run.fabric.device)
    reset_peak_memory(run.fabric.device)
    if not run.config.compile:
        progress.saved_bytes = _measure_saved_bytes(run, run.batches[0])
    progress.losses.append(evaluate_batch(run, run.batches[0]))
    _evaluate(run, progress)
    _save_state(run, progress)


def _go_on(run: TrainingRun, progress: Progress, resumed: State) -> None:
    """Bring back what a stopped run had; making its cache again counts in no clock of its own.

    It has counted already, in the process that was stopped.
    """
    aside = Clock(run.fabric.device)
    with aside.part("resume"):
        if run.caches is not None:
            run.caches.provide(Clock(run.fabric.device))
        if progress.step == 0 and needs_sizes(run.model):  # a state of later steps has what it gave
            calibrate(run)
    restore_state(run, resumed)
    settle_rate(run, progress)
    run.clock.seconds["resume"] = run.clock.seconds.get("resume", 0.0) + aside.total(["resume"])
    peak = read_peak_memory(run.fabric.device)
    progress.preparation_peak_bytes = max(progress.preparation_peak_bytes, peak)
    reset_peak_memory(run.fabric.device)


def _save_state(run: TrainingRun, progress: Progress) -> None:
    """Save where it is time to, or where somebody waits for the end.

    Raises:
        KeyboardInterrupt: somebody does.
    """
    is_last = progress.step == run.total_steps
    # answers take long: a run that is stopped at them has no step to take again
    is_wanted = (run.config.score is not None) if is_last else run.stop.is_made
    if progress.step % run.config.save_interval == 0 or is_wanted:
        progress.earlier_steps_peak_bytes = read_steps_peak(run, progress)
        with run.clock.part("saving"):
            run.logs.sync()
            save_state(run, progress)
            drop_outdated(run, progress)
    if not is_last:
        run.stop.check()


def _evaluate(run: TrainingRun, progress: Progress) -> None:
    """Validate and log one evaluation point.

    Its train_loss is the mean of the step losses since the last one.
    """
    run.model.eval()
    with run.clock.part("validation"):
        val_loss, accuracy = run.objective.validate()
    run.logs.log_evaluation(
        step=progress.step,
        epoch=count_epochs(run, progress),
        train_loss=sum(progress.losses) / len(progress.losses),
        val_loss=val_loss,
        val_ppl=math.exp(min(val_loss, 700.0)),  # beyond, a float has no room for it
        learning_rate=run.optimizer.param_groups[0]["lr"],
        tokens=progress.tokens,
        train_seconds=run.clock.total(TRAINING_CLOCK),
        peak_memory_bytes=read_run_peak(run, progress),
    )
    progress.val_losses.append((progress.step, val_loss))
    progress.accuracies.append((progress.step, accuracy))
    progress.losses.clear()
    _check_finite(run, progress, val_loss)
    show_answer(run, progress.step)
    with run.clock.part("saving"):
        set_aside_best(run, progress)


def _check_finite(run: TrainingRun, progress: Progress, loss: float) -> None:
    """Stop a run that has diverged; what was logged until here stays."""
    if math.isfinite(loss):
        return
    if progress.step == 0:
        raise DivergedError(
            f"the base model's loss is {loss} before any update, at precision "
            f"{run.config.precision}; use --precision 32-true, or check the checkpoint",
            step=0,
        )
    raise DivergedError(
        f"the loss is {loss} at step {progress.step}; lower --learning-rate (it is "
        f"{progress.peak_rate:g}) or raise --lr-warmup-steps",
        step=progress.step,
    )


def _measure_saved_bytes(run: TrainingRun, batch: Sequence[int]) -> int:
    """Most bytes that autograd keeps for one forward pass of a step, outside the clock."""
    run.model.train()
    cpu_only = run.fabric.device.type != "cuda"
    with torch.random.fork_rng(devices=[] if cpu_only else [run.fabric.device]):
        portions = run.objective.portions(batch)
        largest = count_largest_saved(portions, local_tensors(run.model))
    return int(run.ranks.max(largest)[0])
