"""Loss of what Skip-Cache serves, by either algebra (see `algebra`)."""

import torch
from torch import Tensor, nn

from skip2bench.cache.algebra import Name
from skip2bench.cache.arrays import Layout
from skip2bench.cache.skip_cache import Served
from skip2bench.models.loss import head_loss, logits_loss
from skip2bench.models.skip import SkipGPT

_PORTION_BYTES = {"cpu": 24 * 2**20, "cuda": 2**30}
"""What one forward and backward pass may keep; larger batches are cut, which changes no result."""


def portion_rows(model: SkipGPT, layout: Layout, algebra: Name, device: torch.device) -> int:
    """Supervised positions that one forward and backward pass takes."""
    features = 2 * layout.feature_numbers * layout.compute_dtype.itemsize
    holds_logits = algebra == "folded" or model.settings.target == "logits"
    logits = 3 * 4 * model.config.padded_vocab_size if holds_logits else 0
    budget = _PORTION_BYTES.get(device.type, _PORTION_BYTES["cpu"])
    return max(1, budget // (features + logits))


class ServedLoss:
    """Summed loss of served positions.

    With the folded algebra, the portions of a step share one product of head and adapters; its
    gradient goes on to the adapters in `finish_step`, once.
    """

    def __init__(self, model: SkipGPT, algebra: Name) -> None:
        """`algebra` takes effect where base logits are served."""
        self._model, self._algebra = model, algebra
        self._fold: Tensor | None = None
        self._leaf: Tensor | None = None

    def __call__(self, served: Served) -> Tensor:
        """Summed loss, with gradients to the adapters or, folded, to where `finish_step` starts."""
        model = self._model
        if self._algebra == "folded" and served.base_logits is not None:
            reduced = model.reduce(served.features, served.projected)
            logits = served.base_logits + nn.functional.linear(reduced, self._shared_fold())
            return logits_loss(model.cap(logits), served.targets)
        if model.settings.target == "logits":
            logits = model.forward_features(served.features, served.projected)
            return logits_loss(logits, served.targets)
        has_cap = model.config.final_logit_softcapping is not None
        return head_loss(
            model.lm_head,
            model.cap if has_cap else None,
            model.final_hidden(served.features, served.projected),
            served.targets,
        )

    def finish_step(self) -> None:
        """Pass on the gradient that the step's portions have gathered."""
        if self._fold is not None and self._leaf is not None and self._leaf.grad is not None:
            torch.autograd.backward(self._fold, self._leaf.grad)
        self._fold = self._leaf = None

    def _shared_fold(self) -> Tensor:
        if not torch.is_grad_enabled():
            return self._model.fold_head()
        if self._leaf is None:
            self._fold = self._model.fold_head()
            self._leaf = self._fold.detach().requires_grad_()
        return self._leaf
