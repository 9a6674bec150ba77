"""How a method computes the loss of given samples: by running its model, or from Skip-Cache.

The training loop knows nothing else of a method. Loss is a sum over supervised positions; see
`loss`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from skip2bench.cache.skip_cache import token_budget
from skip2bench.data.samples import Samples, TokenizedData, collate, length_buckets, micro_batches
from skip2bench.machine.clock import Clock
from skip2bench.machine.signals import StopRequest
from skip2bench.models.loss import token_loss
from skip2bench.train.ranks.ranks import Ranks, share


@dataclass(frozen=True, kw_only=True)
class Portion:
    """What one forward and backward pass takes, on the device."""

    tensors: tuple[Tensor, ...]
    loss: Callable[[], Tensor]
    """Summed loss of it."""


class Objective(Protocol):
    """Losses of training and validation samples for one method."""

    def prepare(self, clock: Clock, stop: StopRequest) -> None:
        """Do, by the clock, what comes before the first step; stop where that is asked for."""

    def release(self, clock: Clock) -> None:
        """Drop what no rank needs after `prepare`, and do by the clock what that makes room for."""

    def split(self, ids: Sequence[int]) -> list[Any]:
        """Cut a global batch into what `load` takes."""

    def load(self, part: Any) -> Portion:
        """Bring a part of a global batch to the device."""

    def prefetch(self, ids: Sequence[int]) -> None:
        """Make ready for a global batch that comes next."""

    def finish_step(self) -> None:
        """End the backward pass of a global batch, after its last portion."""

    def validation_loss(self) -> float:
        """Mean loss over all supervised positions of the validation samples."""

    def describe(self) -> dict[str, Any]:
        """What `summary.json` says of it."""

    def describe_state(self) -> dict[str, Any] | None:
        """What a run that is resumed needs to make it as it was; None where it needs nothing."""


class TokenObjective:
    """Runs the whole model on tokens: `lora` and `skip`."""

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        data: TokenizedData,
        micro_batch_size: int,
        ranks: Ranks | None = None,
    ) -> None:
        """`model` is the module that Fabric set up; without `ranks` the run is one process."""
        self._ranks = ranks or Ranks()
        self._fabric, self._model, self._data = fabric, model, data
        self.micro_batch_size = micro_batch_size
        self.search_seconds: float | None = None
        """What finding the micro-batch took; None where it was given."""
        self._train_lengths = data.train.lengths

    def longest(self, n: int) -> list[int]:
        """The n longest training samples: no micro-batch of that size takes more memory."""
        lengths = self._train_lengths
        return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))[:n]

    def prepare(self, clock: Clock, stop: StopRequest) -> None:
        """Nothing comes before the first step."""

    def release(self, clock: Clock) -> None:
        """Everything is needed."""

    def split(self, ids: Sequence[int]) -> list[list[int]]:
        """Micro-batches of samples of similar length, of this rank's share."""
        own = share(ids, self._train_lengths, self._ranks.size)[self._ranks.rank]
        return micro_batches(own, self._train_lengths, self.micro_batch_size)

    def load(self, part: list[int]) -> Portion:
        """Padded token ids and labels, each (B, T)."""
        return _token_portion(self._fabric, self._model, self._data.train, part)

    def prefetch(self, ids: Sequence[int]) -> None:
        """Nothing is to be made ready."""

    def finish_step(self) -> None:
        """Every portion has passed its gradients on."""

    def validation_loss(self) -> float:
        """Mean loss over the validation samples."""
        return token_validation_loss(self._fabric, self._model, self._data.val, self._ranks)

    def describe(self) -> dict[str, Any]:
        """There is no cache; the micro-batch, where it was found and not given."""
        return {"cache_bytes": 0} | (self.describe_state() or {})

    def describe_state(self) -> dict[str, Any] | None:
        """The micro-batch that was found; everything else depends on the configuration alone."""
        if self.search_seconds is None:
            return None
        return {
            "micro_batch_size": self.micro_batch_size,
            "micro_batch_search_seconds": self.search_seconds,
        }


@torch.no_grad()
def token_validation_loss(
    fabric: Fabric, model: nn.Module, samples: Samples, ranks: Ranks | None = None
) -> float:
    """Mean loss of a model on samples, in batches of similar length; each rank runs its share."""
    ranks = ranks or Ranks()
    own = share(range(len(samples)), samples.lengths, ranks.size)[ranks.rank]
    buckets = length_buckets(own, samples.lengths, token_budget(fabric.device))
    portions = (_token_portion(fabric, model, samples, ids) for ids in buckets)
    return mean_loss(portions, samples, ranks)


def _token_portion(
    fabric: Fabric, model: nn.Module, samples: Samples, ids: Sequence[int]
) -> Portion:
    input_ids, labels = map(fabric.to_device, collate(samples, ids))
    return Portion(tensors=(input_ids, labels), loss=partial(token_loss, model, input_ids, labels))


def mean_loss(portions: Any, samples: Samples, ranks: Ranks) -> float:
    """Mean over the supervised positions of `samples`, which the ranks' portions cover."""
    losses = [portion.loss().double() for portion in portions]
    own = float(torch.stack(losses).sum()) if losses else 0.0
    ranks.finish_passes()
    return ranks.sum(own)[0] / sum(samples.supervised_counts)
