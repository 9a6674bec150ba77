"""One optimizer update of a run, the same wherever one is made; what is timed is named here."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from skip2bench.cache.portions import make_passes
from skip2bench.models.optimizer import learning_rate_factor, scale_warmup, set_learning_rate
from skip2bench.train.ranks.ranks import RankStop
from skip2bench.train.training import TrainingRun


def take_step(
    run: TrainingRun, step: int, peak_rate: float, total_steps: int | None = None
) -> tuple[float, float]:
    """Make one optimizer update.

    Args:
        run: The run.
        step: Which one, counted from 0.
        peak_rate: Learning rate at the end of the warm-up.
        total_steps: Of the schedule; None for the run's own.

    Returns:
        The global batch's loss before the update, and the learning rate.
    """
    run.model.train()
    total, warmup_steps = total_steps or run.total_steps, run.attempt.plan.warmup_steps
    if total < run.total_steps:
        warmup_steps = scale_warmup(warmup_steps, run.total_steps, total)
    learning_rate = peak_rate * learning_rate_factor(step, warmup_steps, total)
    set_learning_rate(run.optimizer, learning_rate)
    batch, *following = run.batches[step : step + 2]
    losses = make_passes(
        run.objective.portions(batch, *following),
        count_supervised(run, batch),
        run.clock.part,
        run.fabric.backward,
    )
    with run.clock.part("backward"):
        own = torch.stack(losses).sum() if losses else torch.zeros(())  # a rank may have no sample
        read_sums = _add_up(run, own)
    with run.clock.part("optimizer"):
        if run.config.max_norm is not None:
            run.fabric.clip_gradients(
                run.model,
                run.optimizer,
                max_norm=run.config.max_norm,
                error_if_nonfinite=False,  # the loss says so, and where
            )
        run.optimizer.step()
        run.optimizer.zero_grad()
    # last, and the only time that the host waits for the device: the clock's events are past then
    loss_sum, is_wished = read_sums()
    if is_wished:
        run.stop.is_made = True  # on all ranks after the same step
    return loss_sum, learning_rate


def _add_up(run: TrainingRun, loss: Tensor) -> Callable[[], tuple[float, bool]]:
    """Bring gradients, loss and the wish to stop of all ranks together; see `reduce_step`."""
    trained = [p for p in run.model.parameters() if p.requires_grad]
    wish = run.stop.is_wished if isinstance(run.stop, RankStop) else False
    return run.ranks.reduce_step(trained, loss, wish)


@torch.no_grad()
def evaluate_batch(run: TrainingRun, batch: Sequence[int]) -> float:
    """Mean loss of a global batch without an update, outside the clock."""
    run.model.eval()
    losses = [portion.loss() for portion in run.objective.portions(batch)]
    own = float(torch.stack(losses).sum()) if losses else 0.0
    return run.ranks.sum(own)[0] / count_supervised(run, batch)


def count_supervised(run: TrainingRun, batch: Sequence[int]) -> int:
    """Supervised positions of a global batch."""
    supervised = run.data.train.supervised_counts
    return sum(supervised[i] for i in batch)
