"""What scaled Skip features are divided by, found before the first step.

ρ_k is the mean, over the supervised positions of the first training samples, of rms(h_k) by
size(h_L) (see `models.skip`). It depends on base model and data alone: not on the seed, the method
or the blocks, so every run that is compared divides by the same. From Skip-Cache it costs nothing;
without one, a forward pass of the frozen layers over those samples.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch

from skip2bench.cache.loss import ServedLoss
from skip2bench.cache.portions import PortionSource
from skip2bench.cache.skip_cache import Served
from skip2bench.data.samples import Samples
from skip2bench.models.skip import SkipGPT
from skip2bench.train.cached_objective import CachedObjective
from skip2bench.train.ranks.ranks import Ranks, share
from skip2bench.train.ranks.sharded import even_out_passes
from skip2bench.train.training import TrainingRun

_MOST_SAMPLES = 16


def calibration_ids(samples: Samples) -> list[int]:
    """Training samples that are looked at: the first ones, whatever the order of training."""
    return list(range(min(_MOST_SAMPLES, len(samples))))


def has_sizes(run: TrainingRun) -> bool:
    """True for a Skip model with scaled features; others, and raw features, have no sizes."""
    return isinstance(run.model, SkipGPT) and run.model.adapters.relative_sizes is not None


def calibrate(run: TrainingRun) -> None:
    """Set the relative sizes of a run's Skip model.

    Raises:
        Skip2BenchError: blocks give zeros, or what is not finite.
    """
    assert isinstance(run.model, SkipGPT)
    run.model.eval()
    set_relative_sizes(run.model, _frozen(run, calibration_ids(run.data.train)), run.ranks)


@torch.no_grad()
def set_relative_sizes(model: SkipGPT, frozen: Iterable[Served], ranks: Ranks) -> None:
    """Set the relative sizes of a Skip model's features.

    Args:
        model: Has scaled features.
        frozen: What its frozen layers give for this rank's share of the samples to look at.
        ranks: Those of the run.

    Raises:
        Skip2BenchError: blocks give zeros, or what is not finite.
    """
    assert model.adapters.relative_sizes is not None
    sums = torch.zeros(len(model.settings.blocks), dtype=torch.float64)
    positions = 0
    for served in frozen:
        sums += model.measure_relative_sizes(served.features).double().sum(0).cpu()
        positions += len(served.targets)
    *totals, n = ranks.sum(*sums.tolist(), positions)
    model.adapters.relative_sizes.copy_(torch.tensor(totals) / n)


def _frozen(run: TrainingRun, ids: Sequence[int]) -> Iterator[Served]:
    """What the frozen layers give for this rank's share of training samples."""
    if isinstance(run.objective, CachedObjective):
        yield from run.objective.frozen(ids)
        return
    assert isinstance(run.model, SkipGPT)
    train, ranks = run.data.train, run.ranks
    loss = ServedLoss(run.model, "head")  # none is taken
    source = PortionSource(run.fabric, run.model, train, None, loss, max_rows=1)
    parts = source.split(share(ids, train.lengths, ranks.size)[ranks.rank])
    even_out_passes(run.model, ranks, len(parts))
    yield from source.serve(parts)
