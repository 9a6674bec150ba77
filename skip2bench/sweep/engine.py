"""Trains many Skip configurations in one pass over the rows of one Skip-Cache.

For a portion of positions, the rows are read once, the base logits are made once (one product with
the head), and every configuration takes what its own update costs. Each follows the losses of the
same configuration trained alone, but for rounding: the same initial values, order of samples and
schedule. The masks of dropout are the same for all configurations, but not those of a run alone.

    folded   logits are the base's plus a thin product (see `folded`)
    head     the configuration's own product with the head, where its update is no thinner
    capped   as folded, by autograd, where an architecture caps its logits after the update
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from skip2bench.cache.build import Side
from skip2bench.cache.loss import ServedLoss
from skip2bench.cache.portions import Place, PortionSource
from skip2bench.cache.skip_cache import Served, SkipCache
from skip2bench.data.samples import TokenizedData
from skip2bench.models.loss import head_loss, logits_loss
from skip2bench.models.optimizer import learning_rate_factor
from skip2bench.models.precise import in_float64
from skip2bench.models.skip import SkipGPT
from skip2bench.sweep.folded import FoldedLoss
from skip2bench.sweep.folds import Folds, Way, choose_way
from skip2bench.sweep.products import reduce_all
from skip2bench.sweep.trial import Trial

_PORTION_BYTES = {"cpu": 256 * 2**20, "cuda": 4 * 2**30}
"""What the rows and logits of one portion may take."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Which samples every step takes, and the learning rate's course; the same for all."""

    batches: Sequence[Sequence[int]]
    """Sample ids of every step of a whole run."""
    warmup_steps: int
    seed: int
    """Of dropout."""

    def factor(self, step: int) -> float:
        """On the peak learning rate, for one update."""
        return learning_rate_factor(step, self.warmup_steps, len(self.batches))


class Sweep:
    """Trains configurations on what one cache serves."""

    def __init__(
        self,
        place: Place,
        model: SkipGPT,
        data: TokenizedData,
        caches: Mapping[Side, SkipCache | None],
        schedule: Schedule,
    ) -> None:
        """Nothing is read yet.

        Args:
            place: Where passes are made.
            model: Reads all blocks that a configuration may adapt; its own adapters take no part.
            data: Both sides.
            caches: Of the sides; what is not cached passes the backbone each time it is used.
            schedule: Of every configuration.
        """
        self._place, self._model, self._data, self._schedule = place, model, data, schedule
        loss = ServedLoss(model, "head")  # none is taken by the sources
        rows = _portion_rows(model, place.device)
        self._sources = {
            side: PortionSource(place, model, data.sides[side], caches[side], loss, rows)
            for side in caches
        }
        self._folded = FoldedLoss()
        self.positions_per_step = count_positions_per_step(data, schedule)
        """Supervised positions of a step, on average."""

    def take_step(self, trials: Sequence[Trial]) -> None:
        """Make one update of every configuration; all have made as many before.

        One whose loss is not finite makes none, and is marked as diverged.
        """
        (step,) = {trial.step for trial in trials}
        batches = self._schedule.batches
        ids, following = batches[step], batches[step + 1 : step + 2]
        supervised = self._data.train.supervised_counts
        with self._place.autocast():
            folds = Folds(self._model, trials, self.ways(trials), with_gradient=True)
        sums = [torch.zeros((), device=self._place.device) for _ in trials]
        scale = 1 / sum(supervised[i] for i in ids)
        for number, served in enumerate(self.serve("train", ids, following)):
            mask_seed = (self._schedule.seed * 1_000_003 + step) * 65_537 + number
            losses = self._portion(served, trials, folds, scale, mask_seed)
            sums = [total + loss for total, loss in zip(sums, losses, strict=True)]
        folds.pass_on()
        factor = self._schedule.factor(step)
        # the only time that the host waits for the device
        for trial, loss in zip(trials, torch.stack(sums).tolist(), strict=True):
            trial.losses.append(loss)
            if math.isfinite(loss):
                trial.update(factor)
            else:
                trial.diverged_at_step = step

    @torch.no_grad()
    def validation_losses(self, trials: Sequence[Trial]) -> list[float]:
        """Mean loss of every configuration over the supervised positions of the validation side."""
        val = self._data.val
        with self._place.autocast():
            folds = Folds(self._model, trials, self.ways(trials), with_gradient=False)
        sums = torch.zeros(len(trials), dtype=torch.float64)
        for served in self.serve("val", range(len(val))):
            sums += in_float64(torch.stack(self._portion(served, trials, folds, 1.0))).cpu()
        mean: list[float] = (sums / sum(val.supervised_counts)).tolist()
        return mean

    def serve(
        self, side: Side, ids: Sequence[int], following: Sequence[Sequence[int]] = ()
    ) -> Iterator[Served]:
        """What the frozen layers give for samples of a side, those that follow read ahead."""
        source = self._sources[side]
        parts = source.split(ids)
        for batch in following:
            source.expect(batch)
        yield from source.serve(parts)

    def ways(self, trials: Sequence[Trial]) -> list[Way]:
        """How the losses of each are computed."""
        positions = self.positions_per_step
        return [choose_way(self._model, trial.settings, positions) for trial in trials]

    def _portion(
        self,
        served: Served,
        trials: Sequence[Trial],
        folds: Folds,
        scale: float,
        mask_seed: int | None = None,
    ) -> list[Tensor]:
        """Losses of the configurations on some positions; gradients are left where they belong."""
        model, with_gradient = self._model, torch.is_grad_enabled()
        features, targets = served.features, served.targets
        with self._place.autocast():
            reduced = reduce_all(
                model,
                served,
                [trial.adapters for trial in trials],
                [trial.settings for trial in trials],
                mask_seed,
            )
            with torch.no_grad():
                hidden = model.base_hidden(features[:, -1])
                base = None
                if any(way != "head" for way in folds.ways):
                    kept = served.base_logits
                    base = (model.lm_head.forward(hidden) if kept is None else kept).float()
        losses: list[Tensor] = []
        roots: list[Tensor] = []
        gradients: list[Tensor | None] = []
        for place, own in enumerate(reduced):
            if folds.ways[place] == "folded":
                assert base is not None
                loss, gradient = self._folded(base, targets, folds.update(place, own), scale)
                root = own
            else:
                with self._place.autocast():
                    loss = root = scale * self._loss_by_autograd(
                        folds, place, own, hidden, base, targets
                    )
                gradient = None
            losses.append(loss.detach())
            roots.append(root)
            gradients.append(gradient)
        if with_gradient:
            torch.autograd.backward(roots, gradients)
        return losses

    def _loss_by_autograd(
        self,
        folds: Folds,
        place: int,
        reduced: Tensor,
        hidden: Tensor,
        base: Tensor | None,
        targets: Tensor,
    ) -> Tensor:
        """Summed loss of one configuration whose gradients autograd finds."""
        model = self._model
        added = nn.functional.linear(reduced, folds.columns(place))
        if folds.ways[place] == "capped":
            assert base is not None
            return logits_loss(model.cap(base + added.float()), targets)
        has_cap = model.config.final_logit_softcapping is not None
        cap = model.cap if has_cap else None
        return head_loss(model.lm_head, cap, hidden + added, targets)


def _portion_rows(model: SkipGPT, device: torch.device) -> int:
    """Supervised positions of a portion: their features twice, base logits and powers."""
    config, blocks = model.config, len(model.feature_blocks)
    row = 4 * (2 * int(config.padded_vocab_size) + 2 * blocks * int(config.n_embd))
    return max(1, _PORTION_BYTES.get(device.type, _PORTION_BYTES["cpu"]) // row)


def count_positions_per_step(data: TokenizedData, schedule: Schedule) -> float:
    """Supervised positions of a step, on average."""
    supervised = data.train.supervised_counts
    used = [sum(supervised[i] for i in batch) for batch in schedule.batches]
    return sum(used) / len(used)
