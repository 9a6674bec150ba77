"""Losses of many configurations from base logits that are made once.

A configuration's logits are base + R F', where R (n, w) is what its A make of the features and
F = s · W_head · B (V, w) was made once for a step. So of a further configuration only thin products
are computed, 6 n V w FLOPs where a step by the head takes 4 n V d: a slice of the vocabulary at a
time, so that logits are still near when they become probabilities (see `models.loss`).

    forward      L = base + R F'          per slice: maximum, powers, sums as in online softmax
    gradients    of R: Σ P F              gathered on the way, scaled again where the maximum grows
                 of F: P' (R / sums)      in a second pass over the powers, which are kept
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from skip2bench.models.loss import RunningSoftmax

_SLICE_BYTES = {"cpu": 4 * 2**20}
"""Logits that are worked on at one time; elsewhere all of them."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """What a configuration adds to the base logits of n positions."""

    reduced: Tensor
    """R, (n, w), detached."""
    fold: Tensor
    """F, (V, w), detached."""
    gradient: Tensor | None
    """(V, w) in float32: takes up the gradient of F. None where none is asked for."""


class FoldedLoss:
    """Computes losses in a workspace that is made once."""

    def __init__(self) -> None:
        """No workspace yet."""
        self._powers = torch.empty(0)

    def __call__(
        self, base: Tensor, targets: Tensor, update: Update, scale: float
    ) -> tuple[Tensor, Tensor | None]:
        """Summed loss times `scale`, and its gradient.

        Args:
            base: Base logits (n, V) in float32; left as they are.
            targets: (n,).
            update: The configuration's; its `gradient` is added to.
            scale: What the sum is multiplied by.

        Returns:
            The loss, and the gradient (n, w) of `update.reduced` where `update.gradient` is given.
        """
        n, vocabulary = base.shape
        powers = self._space(base)
        softmax = RunningSoftmax(n, base.device)
        reduced, fold = update.reduced, update.fold
        gathered = torch.zeros(reduced.shape, dtype=torch.float32, device=base.device)
        peaks: list[tuple[slice, Tensor]] = []
        width = _slice_width(n, vocabulary, base.device)
        for start in range(0, vocabulary, width):
            own = slice(start, start + width)
            part = powers[:, own]
            _add_product(base[:, own], reduced, fold[own].t(), part)
            shrink = softmax.absorb(part)
            if update.gradient is not None:
                gathered.mul_(shrink)
                _accumulate(gathered, part, fold[own])
                peaks.append((own, softmax.highest))
        of_target = fold[targets]
        target = base.gather(1, targets[:, None]) + (reduced * of_target).float().sum(1, True)
        loss = (softmax.log_sums() - target).sum() * scale
        if update.gradient is None:
            return loss, None
        for own, highest in peaks:
            factor = (highest - softmax.highest).exp_().div_(softmax.sums).mul_(scale)
            scaled = (reduced.float() * factor).to(reduced.dtype)
            _accumulate(update.gradient[own], powers[:, own].t(), scaled)
        update.gradient.index_add_(0, targets, reduced.float() * -scale)
        of_reduced = gathered.div_(softmax.sums).sub_(of_target).mul_(scale)
        return loss, of_reduced.to(reduced.dtype)

    def _space(self, like: Tensor) -> Tensor:
        n, _vocabulary = like.shape
        held = self._powers
        if held.device != like.device or held.size(0) < n or held.shape[1:] != like.shape[1:]:
            self._powers = torch.empty_like(like)
        return self._powers[:n]


def _slice_width(n: int, vocabulary: int, device: torch.device) -> int:
    nbytes = _SLICE_BYTES.get(device.type)
    return vocabulary if nbytes is None else max(256, nbytes // (4 * max(1, n)) // 64 * 64)


def _add_product(base: Tensor, left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write base + left right, in float32 whatever the product is in."""
    if left.dtype == torch.float32:
        torch.addmm(base, left, right, out=out)
    else:
        torch.add(base, torch.mm(left, right), out=out)


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left right to a total in float32; the product is in the dtype of the right one."""
    if right.dtype == torch.float32:
        total.addmm_(left, right)
    else:
        total += torch.mm(left.to(right.dtype), right)
