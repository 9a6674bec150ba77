"""How a method computes the loss of given samples: by running its model, or from Skip-Cache.

The training loop knows nothing else of a method. Loss is a sum over supervised positions; see
`loss`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from lightning.fabric import Fabric
from torch import nn

from skip2bench.cache.portions import Portion, token_portion
from skip2bench.cache.skip_cache import supervised_rows, token_budget
from skip2bench.data.samples import Samples, TokenizedData, collate, length_buckets, micro_batches
from skip2bench.models.loss import counting_hits
from skip2bench.models.precise import in_float64
from skip2bench.results.run_records import ObjectiveFigures
from skip2bench.train.ranks.ranks import Ranks, share
from skip2bench.train.ranks.sharded import even_out_passes


class Validation(NamedTuple):
    """What the supervised positions of some samples come to."""

    loss: float
    """Mean over them."""
    next_token_accuracy: float
    """Those whose target has the highest logit / all of them."""


class Objective(Protocol):
    """Losses of training and validation samples for one method."""

    def portions(self, ids: Sequence[int], following: Sequence[int] = ()) -> Iterator[Portion]:
        """This rank's share of a global batch, each portion loaded when it is asked for.

        Ranks that share a backbone come to as many forward passes each, see `sharded`.

        Args:
            ids: Samples of the batch.
            following: Those of the batch that comes next, to be made ready meanwhile.
        """

    def validate(self) -> Validation:
        """Of all supervised positions of the validation samples."""

    def describe(self) -> ObjectiveFigures:
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
        search_seconds: float | None = None,
    ) -> None:
        """Nothing is computed yet.

        Args:
            fabric: Of the run.
            model: The module that Fabric set up.
            data: Both sides.
            micro_batch_size: Samples in a forward pass.
            ranks: Those of the run; None for one process.
            search_seconds: What finding the micro-batch took; None where it was given.
        """
        self._ranks = ranks or Ranks()
        self._fabric, self._model, self._data = fabric, model, data
        self.micro_batch_size, self._search_seconds = micro_batch_size, search_seconds
        self._train_lengths = data.train.lengths

    def longest(self, n: int) -> list[int]:
        """The n longest training samples: no micro-batch of that size takes more memory."""
        lengths = self._train_lengths
        return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))[:n]

    def portions(self, ids: Sequence[int], following: Sequence[int] = ()) -> Iterator[Portion]:
        """Micro-batches of samples of similar length; of those that follow, none is made ready."""
        own = share(ids, self._train_lengths, self._ranks.size)[self._ranks.rank]
        parts = micro_batches(own, self._train_lengths, self.micro_batch_size)
        even_out_passes(self._model, self._ranks, len(parts))
        yield from map(self.load, parts)

    def load(self, ids: Sequence[int]) -> Portion:
        """Padded token ids (B, T), and which positions are supervised by what."""
        return _token_portion(self._fabric, self._model, self._data.train, ids)

    def validate(self) -> Validation:
        """Of the validation samples."""
        return validate_tokens(self._fabric, self._model, self._data.val, self._ranks)

    def describe(self) -> ObjectiveFigures:
        """There is no cache; the micro-batch, where it was found and not given."""
        return ObjectiveFigures(cache_bytes=0, **(self.describe_state() or {}))

    def describe_state(self) -> dict[str, Any] | None:
        """The micro-batch that was found; everything else depends on the configuration alone."""
        if self._search_seconds is None:
            return None
        return {
            "micro_batch_size": self.micro_batch_size,
            "micro_batch_search_seconds": self._search_seconds,
        }


@torch.no_grad()
def validate_tokens(
    fabric: Fabric, model: nn.Module, samples: Samples, ranks: Ranks | None = None
) -> Validation:
    """Of a model on samples, in batches of similar length; each rank runs its share."""
    ranks = ranks or Ranks()
    own = share(range(len(samples)), samples.lengths, ranks.size)[ranks.rank]
    buckets = length_buckets(own, samples.lengths, token_budget(fabric.device))
    even_out_passes(model, ranks, len(buckets))
    portions = (_token_portion(fabric, model, samples, ids) for ids in buckets)
    return validate_portions(portions, samples, ranks)


def _token_portion(
    fabric: Fabric, model: nn.Module, samples: Samples, ids: Sequence[int]
) -> Portion:
    input_ids, labels = collate(samples, ids)
    return token_portion(model, *map(fabric.to_device, (input_ids, *supervised_rows(labels))))


def validate_portions(portions: Iterable[Portion], samples: Samples, ranks: Ranks) -> Validation:
    """Of the supervised positions of `samples`, which the ranks' portions cover."""
    with counting_hits() as hits:
        losses = [in_float64(portion.loss()) for portion in portions]
    own = float(torch.stack(losses).sum()) if losses else 0.0
    positions = sum(samples.supervised_counts)
    return Validation(*(part / positions for part in ranks.sum(own, hits())))
