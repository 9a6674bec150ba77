"""What one forward and backward pass takes, and the passes of a step, wherever one is made.

A portion is tokens, or rows of Skip-Cache. Training, `bench` and `doctor` make theirs here, so that
what is timed or counted is what a run does. Which samples a step has is the objectives' business.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from skip2bench.cache.loss import ServedLoss
from skip2bench.cache.skip_cache import Served, SkipCache, supervised_rows, token_budget
from skip2bench.cache.staging import Expected, Stager, is_worth_staging
from skip2bench.data.samples import Samples, collate, length_buckets
from skip2bench.machine.memory import count_saved_bytes
from skip2bench.models.loss import token_loss
from skip2bench.models.skip import SkipGPT


class Place(Protocol):
    """Where passes are made and in which precision; a Fabric is one."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Within, a forward pass has the precision of the run."""


@dataclass(frozen=True, kw_only=True)
class Portion:
    """What one forward and backward pass takes, on the device."""

    tensors: tuple[Tensor, ...]
    loss: Callable[[], Tensor]
    """Summed loss of it."""
    finish: Callable[[], None] = lambda: None
    """Called after its backward pass; the last portion of a batch ends that of the whole batch."""


def token_portion(model: nn.Module, input_ids: Tensor, rows: Tensor, targets: Tensor) -> Portion:
    """Tokens that pass the whole model; as in `loss.token_loss`."""
    tensors = (input_ids, rows, targets)
    return Portion(tensors=tensors, loss=partial(token_loss, model, *tensors))


def served_portion(place: Place, loss: ServedLoss, served: Served) -> Portion:
    """Positions whose activations come from Skip-Cache."""

    def autocast_loss() -> Tensor:
        with place.autocast():
            return loss(served)

    others = (served.base_logits, served.projected)
    tensors = (served.features, served.targets, *(t for t in others if t is not None))
    return Portion(tensors=tensors, loss=autocast_loss)


def even_portions(rows: Tensor, max_rows: int) -> tuple[Tensor, ...]:
    """Cut rows (n,) into as few portions as may be, of about the same size."""
    return rows.chunk(-(-len(rows) // max_rows))


def make_passes(
    portions: Iterator[Portion],
    scale: float,
    phase: Callable[[str], AbstractContextManager[Any]],
    backward: Callable[[Tensor], Any],
) -> list[Tensor]:
    """Forward and backward passes of a step, portion by portion; gradients are left in place.

    Args:
        portions: Of the step; each is brought to the device when it is asked for.
        scale: What summed losses are divided by: the supervised positions of the global batch.
        phase: Entered around each "data", "forward" and "backward", for whoever measures them.
        backward: Of one loss.

    Returns:
        The portions' losses; their sum is the step's.
    """
    losses: list[Tensor] = []
    while True:
        with phase("data"):
            portion = next(portions, None)
        if portion is None:
            return losses
        with phase("forward"):
            loss = portion.loss() / scale
        with phase("backward"):
            backward(loss)
            portion.finish()
        losses.append(loss.detach())


def count_largest_saved(portions: Iterable[Portion], held: Iterable[Tensor]) -> int:
    """Most bytes that autograd keeps for one forward pass of a step.

    Args:
        portions: All of the step, on the device; their own tensors are not counted.
        held: What is there with or without autograd and not counted either: the parameters.
    """
    held, largest = list(held), 0
    for portion in portions:
        saved = count_saved_bytes(portion.loss, [*held, *portion.tensors])
        largest = max(largest, saved)
        portion.finish()
    return largest


Part = Tensor | Expected | list[int]
"""Of a batch: rows of the cache, such rows on their way to the device, or samples to recompute."""


class PortionSource:
    """Cuts samples of one side into portions, and brings these to the device."""

    def __init__(
        self,
        place: Place,
        model: SkipGPT,
        samples: Samples,
        cache: SkipCache | None,
        loss: ServedLoss,
        max_rows: int,
    ) -> None:
        """Nothing is computed or copied yet.

        Args:
            place: Of the run.
            model: The Skip model; its backbone is needed where a sample is not cached.
            samples: All of the side.
            cache: What is cached of them.
            loss: Of what is served, shared by both sides.
            max_rows: Supervised positions in a portion.
        """
        self._place, self._model, self._samples, self._cache = place, model, samples, cache
        self._loss, self._max_rows = loss, max_rows
        is_staged = cache is not None and is_worth_staging(cache.arrays, place.device)
        self._stager = Stager(cache.arrays, place.device) if cache and is_staged else None
        self._expected: dict[tuple[int, ...], list[Part]] = {}

    def expect(self, ids: Sequence[int]) -> None:
        """Have the batch that comes next read ahead from disk and brought to a GPU."""
        if self._cache is not None:
            self._cache.prefetch(ids)
        if self._stager is not None:
            parts = self._cut(ids)
            for place, part in enumerate(parts):
                if isinstance(part, Tensor):
                    parts[place] = self._stager.expect(part)
            self._expected = {tuple(ids): parts}

    def split(self, ids: Sequence[int]) -> list[Part]:
        """Rows of cached samples in even portions, and samples of similar length to recompute."""
        expected = self._expected.pop(tuple(ids), None)
        return self._cut(ids) if expected is None else expected

    def portions(self, parts: Sequence[Part]) -> Iterator[Portion]:
        """All parts of a batch, each brought to the device when it is asked for."""
        for number, part in enumerate(parts, start=1):
            portion = self._load(part)
            is_last = number == len(parts)
            yield replace(portion, finish=self._loss.finish_step) if is_last else portion

    def serve(self, parts: Sequence[Part]) -> Iterator[Served]:
        """What the frozen layers give for all parts of a batch, no gradient taken."""
        for part in parts:
            if isinstance(part, list):
                with self._place.autocast():
                    yield self._recompute(*self._load_tokens(part))
            else:
                yield self._pick(part)

    def _cut(self, ids: Sequence[int]) -> list[Part]:
        cache = self._cache
        cached = [i for i in ids if cache is not None and cache.index.counts[i] > 0]
        parts: list[Part] = []
        if cache is not None and cached:
            parts += even_portions(cache.index.find_rows(cached), self._max_rows)
        if len(cached) < len(ids):
            there = set(cached)
            left = [i for i in ids if i not in there]
            parts += length_buckets(left, self._samples.lengths, token_budget(self._place.device))
        return parts

    def _load(self, part: Part) -> Portion:
        if isinstance(part, list):
            tensors = self._load_tokens(part)
            return Portion(tensors=tensors, loss=partial(self._recomputed_loss, *tensors))
        return served_portion(self._place, self._loss, self._pick(part))

    def _load_tokens(self, ids: list[int]) -> tuple[Tensor, ...]:
        input_ids, labels = collate(self._samples, ids)
        rows, targets = supervised_rows(labels)
        device = self._place.device
        return tuple(t.to(device, non_blocking=True) for t in (input_ids, rows, targets))

    def _pick(self, part: Tensor | Expected) -> Served:
        assert self._cache is not None
        if isinstance(part, Expected):
            assert self._stager is not None
            return self._cache.unpack(self._stager.take(part))
        return self._cache.serve(part, self._place.device)

    def _recomputed_loss(self, *tensors: Tensor) -> Tensor:
        with self._place.autocast():
            return self._loss(self._recompute(*tensors))

    def _recompute(self, input_ids: Tensor, rows: Tensor, targets: Tensor) -> Served:
        outputs = self._model.compute_features(input_ids)
        # plain tensors, that autograd may save
        features = torch.stack([h.flatten(0, 1)[rows] for h in outputs], dim=1)
        # whole ones, where the cache has them projected: the model does both
        return Served(features=features, targets=targets)
