"""Losses of many configurations from base logits that are made once.

A configuration's logits are base + R F', where R (n, w) is what its A make of the features and
F = s · W_head · B (V, w) was made once for a step. So of a further configuration only thin products
are computed, 6 n V w FLOPs where a step by the head takes 4 n V d: a few rows at a time, so that
logits are still near when they become probabilities P, and these when both gradients are taken:

    L = base + R F'      P = softmax(L)      of R: P F - F[targets]      of F: P' R - R[targets]
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_BYTES = {"cpu": 12 * 2**20, "cuda": 2**30}
"""Logits that are worked on at one time."""
_LEAST_PROBABILITY = 1e-30
"""Products with numbers that float32 has but a few digits of take a processor tenfold the time."""


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
        self._space = torch.empty(0)

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
        rows = max(1, _CHUNK_BYTES.get(base.device.type, _CHUNK_BYTES["cpu"]) // (4 * base.size(1)))
        self._make_room(base, min(rows, len(base)))
        cut = [torch.split(t, rows) for t in (base, targets, update.reduced)]
        found = [
            self._chunk(part, its_targets, reduced, update, scale)
            for part, its_targets, reduced in zip(*cut, strict=True)
        ]
        loss = torch.stack([own for own, _ in found]).sum() * scale
        gradients = [gradient for _, gradient in found if gradient is not None]
        return loss, torch.cat(gradients) if gradients else None

    def _chunk(
        self, base: Tensor, targets: Tensor, reduced: Tensor, update: Update, scale: float
    ) -> tuple[Tensor, Tensor | None]:
        """Summed loss of some rows, and the gradient of their `reduced`, `scale` times."""
        fold, own = update.fold, targets[:, None]
        logits = self._logits(base, reduced, fold)
        logits_of_targets = logits.gather(1, own)
        if update.gradient is None:
            return (logits.logsumexp(dim=1, keepdim=True) - logits_of_targets).sum(), None
        probabilities = torch.softmax(logits, dim=1, out=logits)
        # no pass of its own over all logits, but where a float has no digits for a target's
        likely = probabilities.gather(1, own)
        losses = -likely.log()
        is_lost = (likely < _LEAST_PROBABILITY).squeeze(1)
        if bool(is_lost.any()):
            exact = base[is_lost] + torch.mm(reduced[is_lost], fold.t()).float()
            losses[is_lost] = exact.logsumexp(dim=1, keepdim=True) - logits_of_targets[is_lost]
        probabilities.clamp_(min=_LEAST_PROBABILITY)
        of_reduced = torch.zeros(reduced.shape, dtype=torch.float32, device=base.device)
        _accumulate(of_reduced, probabilities, fold)
        of_reduced.sub_(fold[targets]).mul_(scale)
        scaled = reduced * scale
        _accumulate(update.gradient, probabilities.t(), scaled)
        update.gradient.index_add_(0, targets, scaled.float(), alpha=-1)
        return losses.sum(), of_reduced.to(reduced.dtype)

    def _logits(self, base: Tensor, reduced: Tensor, fold: Tensor) -> Tensor:
        """Base + R F', in float32 whatever the product is in, in the space for them."""
        logits = self._space[: len(base)]
        if reduced.dtype == torch.float32:
            return torch.addmm(base, reduced, fold.t(), out=logits)
        return torch.add(base, torch.mm(reduced, fold.t()), out=logits)

    def _make_room(self, like: Tensor, rows: int) -> None:
        held = self._space
        if held.device != like.device or held.size(0) < rows or held.shape[1:] != like.shape[1:]:
            self._space = torch.empty_like(like[:rows])


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left right to a total in float32; the product is in the dtype of the right one."""
    if right.dtype == torch.float32:
        total.addmm_(left, right)
    else:
        total += torch.mm(left.to(right.dtype), right)
