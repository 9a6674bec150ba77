"""What follows the A of every configuration, made once for a step, and where its gradients gather.

The portions of a step share these matrices; what their backward passes give goes on to the B once,
after the last one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from skip2bench.models.skip import SkipGPT, SkipSettings
from skip2bench.sweep.folded import Update
from skip2bench.sweep.trial import Trial

Way = Literal["folded", "head", "capped"]
"""How the losses of a configuration are computed, see `engine`."""


def choose_way(model: SkipGPT, settings: SkipSettings, positions_per_step: float) -> Way:
    """How the losses of a configuration cost least, by FLOPs."""
    has_cap = model.config.final_logit_softcapping is not None
    if settings.target == "logits":
        return "capped" if has_cap else "folded"
    if has_cap:
        return "head"
    by_head = _count_head(model, settings)
    return "folded" if _count_folded(model, settings, positions_per_step) < by_head else "head"


def count_flops(model: SkipGPT, settings: SkipSettings, positions_per_step: float) -> float:
    """FLOPs that a configuration adds to a step of a sweep, for each supervised position.

    What all share, base logits above all, is not in them.
    """
    reduce = float(4 * settings.r * len(settings.blocks) * model.config.n_embd)
    if choose_way(model, settings, positions_per_step) == "head":
        return reduce + _count_head(model, settings)
    return reduce + _count_folded(model, settings, positions_per_step)


def _count_head(model: SkipGPT, settings: SkipSettings) -> float:
    d, vocabulary = model.config.n_embd, model.config.padded_vocab_size
    return float(4 * d * vocabulary + 6 * settings.width * d)


def _count_folded(model: SkipGPT, settings: SkipSettings, positions_per_step: float) -> float:
    """Forward, gradients of R and of F; F itself and its gradient, once a step."""
    width, d, vocabulary = settings.width, model.config.n_embd, model.config.padded_vocab_size
    fold = 0 if settings.target == "logits" else 4 * width * d * vocabulary
    return float(6 * width * vocabulary + fold / positions_per_step)


@dataclass(frozen=True, kw_only=True)
class _Matrix:
    """A matrix of one or several configurations, cut off from what it was made of."""

    made: Tensor
    """With its graph back to the B."""
    leaf: Tensor
    gathered: Tensor | None
    """Its gradient in float32; None where autograd gathers it, or nobody."""

    def pass_on(self) -> None:
        gradient = self.leaf.grad if self.gathered is None else self.gathered
        if gradient is not None:
            torch.autograd.backward(self.made, gradient.to(self.made.dtype))


class Folds:
    """The matrices of all configurations, for the portions of one step."""

    def __init__(
        self, model: SkipGPT, trials: Sequence[Trial], ways: Sequence[Way], *, with_gradient: bool
    ) -> None:
        """Make them, in the precision that holds here."""
        self.ways, self._with_gradient = ways, with_gradient
        self._matrices: list[_Matrix] = []
        self._places: dict[int, tuple[_Matrix, slice]] = {}
        columns = [trial.adapters.stack_B() for trial in trials]
        side_by_side = [
            place
            for place, (way, trial) in enumerate(zip(ways, trials, strict=True))
            if way == "folded" and trial.settings.target == "hidden"
        ]
        if side_by_side:  # one product with the head for all of them
            together = torch.cat([columns[place] for place in side_by_side], dim=1)
            matrix = self._add(model.through_head(together), by_autograd=False)
            start = 0
            for place in side_by_side:
                end = start + columns[place].size(1)
                self._places[place] = matrix, slice(start, end)
                start = end
        for place, own in enumerate(columns):
            if place not in self._places:
                by_autograd = ways[place] != "folded"
                self._places[place] = self._add(own, by_autograd=by_autograd), slice(None)

    def update(self, place: int, reduced: Tensor) -> Update:
        """What a folded configuration adds to base logits, of what its A gave (n, w)."""
        matrix, own = self._places[place]
        gathered = matrix.gathered
        return Update(
            reduced=reduced.detach(),
            fold=matrix.leaf[:, own],
            gradient=None if gathered is None else gathered[:, own],
        )

    def columns(self, place: int) -> Tensor:
        """Of a configuration that is not folded, s · B, (d, w) or (V, w), for autograd."""
        return self._places[place][0].leaf

    def pass_on(self) -> None:
        """Pass on to the B what the portions have gathered; once."""
        for matrix in self._matrices:
            matrix.pass_on()

    def _add(self, made: Tensor, *, by_autograd: bool) -> _Matrix:
        leaf, gathered = made.detach(), None
        if self._with_gradient and by_autograd:
            leaf.requires_grad_()
        elif self._with_gradient:
            gathered = torch.zeros(leaf.shape, dtype=torch.float32, device=leaf.device)
        matrix = _Matrix(made=made, leaf=leaf, gathered=gathered)
        self._matrices.append(matrix)
        return matrix
