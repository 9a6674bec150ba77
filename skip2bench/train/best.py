"""The adapter of the lowest validation loss, set aside when it is found and saved in the end.

It lies in a file of its own, so that a method which trains every weight does not hold them twice. A
state of the run refers to the best step until there; that one stays until no state refers to it, so
a run that is killed at any time and resumed ends with the same adapter.
"""

import torch

from skip2bench.io.console import warn
from skip2bench.models.methods import trained_tensors
from skip2bench.train.state import DamagedStateError, Progress, StateFolder
from skip2bench.train.training import TrainingRun, find_best_step, find_kept_step


def set_aside_best(run: TrainingRun, progress: Progress) -> None:
    """Write what trains where this evaluation is the best so far; on the first rank."""
    if run.config.keep != "best" or not run.ranks.is_first:
        return
    if find_best_step(progress) != progress.step or progress.step == run.total_steps:
        return  # the last step's is at hand
    try:
        tensors = {k: v.to("cpu", copy=True) for k, v in trained_tensors(run.model).items()}
        StateFolder(run.attempt.place.folder).save_best(progress.step, tensors)
    except OSError as error:
        warn(f"the adapter of step {progress.step} could not be set aside ({error.strerror})")


def drop_outdated(run: TrainingRun, progress: Progress) -> None:
    """Remove what no state refers to any more, once a new one is on the disk."""
    if not run.ranks.is_first:
        return
    folder = StateFolder(run.attempt.place.folder)
    steps = [int(path.stem.removeprefix("step-")) for path in folder.files()]
    folder.drop_best_but(find_best_step(progress, until) for until in (None, *steps))


@torch.no_grad()
def bring_back_best(run: TrainingRun, progress: Progress) -> None:
    """Put the adapter that the run keeps into its model, on every rank.

    Where it cannot be read, the last one is kept; that is said.
    """
    kept = find_kept_step(run, progress)
    if kept == progress.step:
        return
    folder, ranks = StateFolder(run.attempt.place.folder), run.ranks
    tensors = None
    if ranks.is_first:
        try:
            tensors = folder.read_best(kept)
        except DamagedStateError as error:
            warn(f"the adapter of step {kept} is lost ({error}); the last one is saved")
    tensors = ranks.broadcast(tensors)
    if tensors is None:
        progress.lost_best = True
        return
    for name, value in trained_tensors(run.model).items():
        value.copy_(tensors[name])


def warn_of_rising_loss(run: TrainingRun, progress: Progress) -> None:
    """Say so where a run ends above the validation loss that it began with."""
    (_, first), (_, last) = progress.val_losses[0], progress.val_losses[-1]
    if last <= first:
        return
    kept = find_kept_step(run, progress)
    loss = dict(progress.val_losses)[kept]
    saved = f"the adapter of step {kept} is saved, at {loss:.4f}" if kept != progress.step else ""
    reason = saved if saved and loss < first else "nothing was learned that helps"
    warn(
        f"the validation loss ends at {last:.4f}, above the {first:.4f} that it began with; "
        f"{reason}; try --learning-rate {progress.peak_rate / 3:.1g}, or fewer --epochs"
    )
