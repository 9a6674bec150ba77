"""What Skip adapters read, as far as it is found before the first step: sizes and projections.

ρ_k is the mean, over the supervised positions of the first training samples, of rms(h_k) by
size(h_L) (see `models.skip`). It depends on base model and data alone: not on the seed, the method
or the blocks, so every run that is compared divides by the same. From Skip-Cache it costs nothing;
without one, a forward pass of the frozen layers over those samples.

A projection P_k and the energy that ranks blocks come from the loss's gradient at the first
supervised positions, by `cache.projection`; they too depend on base model and data alone. Since a
projected cache no longer has what the ρ_k are measured on, these are found in the same pass.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from litgpt.model import GPT
from torch import Tensor

from skip2bench.cache.loss import ServedLoss
from skip2bench.cache.portions import Place, PortionSource
from skip2bench.cache.projection import find_projection
from skip2bench.cache.skip_cache import Served, supervised_rows
from skip2bench.cache.streaming import StreamedBackbone
from skip2bench.config.train import ProjectionName
from skip2bench.data.samples import Samples
from skip2bench.errors import Skip2BenchError
from skip2bench.models.loss import logits_loss
from skip2bench.models.precise import in_float64
from skip2bench.models.skip import SkipGPT
from skip2bench.train.cached_objective import CachedObjective
from skip2bench.train.ranks.ranks import Ranks, share
from skip2bench.train.ranks.sharded import even_out_passes
from skip2bench.train.training import TrainingRun

_MOST_SAMPLES = 16
_PROBED_SHARE = 0.02
"""Of the supervised training positions, those whose gradients are looked at."""
_FEWEST_PROBED, _MOST_PROBED = 256, 1024
_CHUNK_ROWS = 256
"""Positions whose logits exist at one time."""


def calibration_ids(samples: Samples) -> list[int]:
    """Training samples that are looked at: the first ones, whatever the order of training."""
    return list(range(min(_MOST_SAMPLES, len(samples))))


def needs_sizes(model: GPT) -> bool:
    """True for a Skip model with scaled features; those behind a projection have theirs by then."""
    if not isinstance(model, SkipGPT) or model.settings.projected is not None:
        return False
    return model.adapters.relative_sizes is not None


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
        sums += in_float64(model.measure_relative_sizes(served.features)).sum(0).cpu()
        positions += len(served.targets)
    *totals, n = ranks.sum(*sums.tolist(), positions)
    model.adapters.relative_sizes.copy_(torch.tensor(totals) / n)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The frozen layers and the loss's gradient at n supervised positions, on the CPU."""

    features: Tensor
    """(n, K', d): outputs of the model's `feature_blocks`."""
    sizes: Tensor | None
    """(n, 1): what scaled features are divided by; None for raw ones."""
    gradients: Tensor
    """(n, d): of each position's loss at what enters `lm_head`, no adapter in it."""
    relative_sizes: Tensor | None
    """(K,): the ρ_k; None for raw features."""

    def read(self, column: int) -> Tensor:
        """What the adapter of a feature block reads, (n, d), but for the factor 1 / ρ_k."""
        features = self.features[:, column].float()
        return features if self.sizes is None else features / self.sizes


def probe(
    place: Place, model: SkipGPT, samples: Samples, streamed: StreamedBackbone | None = None
) -> Probe:
    """Pass the first training samples through the frozen layers, and their loss back to `lm_head`.

    At least `calibration_ids`, and as many as have 2 % of all supervised positions, but 256 to
    1,024 of these. Nothing is drawn: it is the same whatever the run's seed.

    Args:
        place: Where the model is, and its precision.
        model: The Skip model, in whatever mode; it is left in evaluation mode.
        samples: All training samples.
        streamed: The backbone whose blocks the model does not hold; None where it does.

    Raises:
        Skip2BenchError: blocks give zeros, or what is not finite.
    """
    model.eval()
    first = calibration_ids(samples)
    own = [*_serve(place, model, samples, first, streamed)]
    others = _ids_to_probe(samples)[len(first) :]
    everything = own + ([*_serve(place, model, samples, others, streamed)] if others else [])
    relative_sizes = None
    if model.adapters.relative_sizes is not None:
        measured = [model.measure_relative_sizes(served.features) for served in own]
        relative_sizes = in_float64(torch.cat(measured)).mean(0).float().cpu()
    features = torch.cat([served.features.cpu() for served in everything])[:_MOST_PROBED]
    found = torch.cat([_loss_gradients(place, model, served) for served in everything])
    gradients = found[:_MOST_PROBED]
    if not (bool(torch.isfinite(features).all()) and bool(torch.isfinite(gradients).all())):
        raise Skip2BenchError(
            "the base model's blocks give what is not finite; use --precision 32-true, or check "
            "the checkpoint"
        )
    return Probe(
        features=features,
        sizes=model.last_size(features[:, -1]),
        gradients=gradients,
        relative_sizes=relative_sizes,
    )


def project_features(
    place: Place,
    model: SkipGPT,
    samples: Samples,
    kind: ProjectionName,
    streamed: StreamedBackbone | None = None,
) -> None:
    """Find the projection of a Skip model that has one, and its relative sizes; see `probe`."""
    found, rows = probe(place, model, samples, streamed), model.settings.projected
    assert rows is not None
    projections = [
        find_projection(kind, found.read(column), found.gradients, rows, seed=block)
        for column, block in enumerate(model.feature_blocks)
        if block in model.settings.blocks
    ]
    model.adapters.set_fixed(found.relative_sizes, torch.stack(projections))


def _ids_to_probe(samples: Samples) -> list[int]:
    """The first training samples, as many as have the positions that are wanted."""
    counts = samples.supervised_counts
    wanted = min(max(_FEWEST_PROBED, round(_PROBED_SHARE * sum(counts))), _MOST_PROBED)
    ids = calibration_ids(samples)
    while sum(counts[i] for i in ids) < wanted and len(ids) < len(samples):
        ids.append(len(ids))
    return ids


def _serve(
    place: Place,
    model: SkipGPT,
    samples: Samples,
    ids: Sequence[int],
    streamed: StreamedBackbone | None,
) -> Iterator[Served]:
    """What the frozen layers give for samples, nothing of it projected."""
    if streamed is None:
        source = PortionSource(place, model, samples, None, ServedLoss(model, "head"), max_rows=1)
        yield from source.serve(source.split(ids))
        return
    with place.autocast():
        computed = streamed.compute_samples(samples, ids)
    for i, features in zip(ids, computed, strict=True):
        _, targets = supervised_rows(samples.labels[i][None])
        yield Served(features=features, targets=targets.to(place.device))


def _loss_gradients(place: Place, model: SkipGPT, served: Served) -> Tensor:
    """Of each position's loss at what enters `lm_head`, (n, d), on the CPU."""
    # called below the hooks: no adapter
    norm, head = model.transformer.ln_f, model.lm_head
    found = []
    for rows, targets in zip(
        torch.split(served.features[:, -1], _CHUNK_ROWS),
        torch.split(served.targets, _CHUNK_ROWS),
        strict=True,
    ):
        with torch.enable_grad(), place.autocast():
            hidden = norm.forward(rows).detach().requires_grad_()
            loss = logits_loss(model.cap(head.forward(hidden)), targets)
        found.append(torch.autograd.grad(loss, hidden)[0].float().cpu())
    return torch.cat(found)


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
