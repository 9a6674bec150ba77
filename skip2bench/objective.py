"""How a method computes the loss of given samples: by running its model, or from Skip-Cache.

The training loop knows nothing else of a method. Loss is a sum over supervised positions; see
`loss`.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from skip2bench.cache import TOKEN_BUDGET, SkipCache, build_cache
from skip2bench.console import Bar
from skip2bench.data import Samples, TokenizedData, collate, length_buckets, micro_batches
from skip2bench.loss import feature_loss, token_loss
from skip2bench.measure import Clock
from skip2bench.skip2 import SkipGPT


class Objective(Protocol):
    """Losses of training and validation samples for one method."""

    def split(self, ids: Sequence[int]) -> list[list[int]]:
        """Cut a global batch into what one forward and backward pass takes."""

    def load(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs and labels of training samples, on the device."""

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Summed loss of what `load` gave."""

    def validation_loss(self) -> float:
        """Mean loss over all supervised positions of the validation samples."""


class TokenObjective:
    """Runs the whole model on tokens: `lora` and `skip`."""

    def __init__(
        self, fabric: Fabric, model: nn.Module, data: TokenizedData, micro_batch_size: int
    ) -> None:
        """`model` is the module that Fabric set up."""
        self._fabric, self._model, self._data = fabric, model, data
        self._micro_batch_size = micro_batch_size
        self._train_lengths = data.train.lengths
        self._val_buckets = length_buckets(range(len(data.val)), data.val.lengths, TOKEN_BUDGET)

    def split(self, ids: Sequence[int]) -> list[list[int]]:
        """Micro-batches of samples of similar length."""
        return micro_batches(ids, self._train_lengths, self._micro_batch_size)

    def load(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Padded token ids and labels, each (B, T)."""
        return self._collate(self._data.train, ids)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Summed loss of a padded batch."""
        return token_loss(self._model, *batch)

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean loss over the validation samples."""
        losses = [
            self.loss(self._collate(self._data.val, bucket)).double()
            for bucket in self._val_buckets
        ]
        return float(torch.stack(losses).sum()) / sum(self._data.val.supervised_counts)

    def _collate(self, samples: Samples, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        input_ids, labels = collate(samples, ids)
        return self._fabric.to_device(input_ids), self._fabric.to_device(labels)


class CachedObjective:
    """Serves features from Skip-Cache: `skip2`. A global batch is one pass."""

    def __init__(
        self, fabric: Fabric, model: SkipGPT, data: TokenizedData, train_ids: Sequence[int]
    ) -> None:
        """Prepare without computing anything; `build` fills the training cache."""
        self._fabric, self._model, self._data = fabric, model, data
        self._train_ids = train_ids
        self._train: SkipCache | None = None
        self._val: SkipCache | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the training cache."""
        return self._train.nbytes if self._train else 0

    def build(self, clock: Clock) -> None:
        """Compute the training cache inside the clock's `cache_build`."""
        samples, device = self._data.train, self._fabric.device
        tokens = sum(samples.lengths[i] for i in self._train_ids)
        with Bar("building Skip-Cache", tokens, "tokens") as bar, self._fabric.autocast():

            def show_progress(done_tokens: int) -> None:
                with clock.excluded("cache_build"):
                    bar.advance(done_tokens)

            with clock.part("cache_build"):
                self._train = build_cache(
                    self._model, samples, self._train_ids, device, show_progress
                )

    def split(self, ids: Sequence[int]) -> list[list[int]]:
        """The global batch, whole."""
        return [list(ids)]

    def load(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Features (N, K', d) and targets (N,)."""
        assert self._train is not None
        return self._train.gather(ids)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Summed loss of cached positions."""
        with self._fabric.autocast():
            return feature_loss(self._model, *batch)

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean loss over the validation samples, from their own cache; the first call builds it."""
        ids = range(len(self._data.val))
        if self._val is None:
            with self._fabric.autocast():
                self._val = build_cache(self._model, self._data.val, ids, self._fabric.device)
        counts = self._data.val.supervised_counts
        buckets = length_buckets(ids, counts, TOKEN_BUDGET)
        losses = [self.loss(self._val.gather(bucket)).double() for bucket in buckets]
        return float(torch.stack(losses).sum()) / sum(counts)
