"""Skip-Cache: every sample's frozen activations, computed once and served in every later epoch.

Only supervised positions are held, in flat arrays; all of them where blocks follow (`whole_samples`
of a layout). The final norm is not stored: it is cheap to
derive. Source: Matsutani et al., arXiv:2410.21073, section 3.3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skip2bench.cache.arrays import Arrays, Layout, Writer
from skip2bench.cache.prefix import Backbone, find_prefix
from skip2bench.data.samples import IGNORE_INDEX, Samples, collate, length_buckets
from skip2bench.models.skip import SkipGPT
from skip2bench.models.top import CachedGPT


def token_budget(device: torch.device) -> int:
    """Tokens, padding included, in one forward pass while a cache is built.

    On a CPU few enough that a block's activations stay near; on a GPU enough to fill it, and few
    enough for all logits of a validation batch.
    """
    return 2048 if device.type == "cpu" else 4096


def stored_counts(samples: Samples, layout: Layout) -> list[int]:
    """Positions of each sample that a layout has."""
    return samples.lengths if layout.whole_samples else samples.supervised_counts


@dataclass(frozen=True, kw_only=True)
class SampleIndex:
    """Where each sample's rows are in the flat arrays."""

    starts: Tensor
    """(S,): first row of each sample; S samples in all, cached or not."""
    counts: Tensor
    """(S,): rows of each sample; 0 for samples that are not cached."""

    @classmethod
    def of(cls, order: Sequence[int], samples: Samples, layout: Layout) -> "SampleIndex":
        """Index of `samples` of which those in `order` are stored one after the other."""
        stored = torch.tensor(stored_counts(samples, layout))
        starts, counts = torch.zeros_like(stored), torch.zeros_like(stored)
        counts[order] = stored[order]
        starts[order] = counts[order].cumsum(0) - counts[order]
        return cls(starts=starts, counts=counts)

    @property
    def rows(self) -> int:
        """Rows of all samples together."""
        return int(self.counts.sum())

    def find_rows(self, ids: Sequence[int]) -> Tensor:
        """Rows (n,) of the given samples, in their order.

        Raises:
            KeyError: a sample that is not cached.
        """
        chosen = torch.tensor(ids, dtype=torch.long)
        counts = self.counts[chosen]
        if not bool(counts.all()):
            raise KeyError(f"samples {chosen[counts == 0].tolist()} are not in the cache")
        # rows of sample i: starts[i], starts[i] + 1, …; all samples at once
        before = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        starts = torch.repeat_interleave(self.starts[chosen], counts)
        return starts + torch.arange(len(before)) - before


@dataclass(frozen=True, kw_only=True)
class Served:
    """What the cache gives for n positions."""

    features: Tensor
    """(n, K', d): outputs of the Skip model's `feature_blocks`, in the compute dtype; beside
    `projected` those of its `whole_blocks` alone."""
    targets: Tensor
    """(n,): the token that follows each position; IGNORE_INDEX where it is not supervised."""
    base_logits: Tensor | None = None
    """(n, V), where they are cached."""
    projected: Tensor | None = None
    """(n, K, N): what is cached of the adapted blocks' outputs where they are projected."""


@dataclass(frozen=True, kw_only=True)
class SkipCache:
    """Features of the supervised positions of some samples."""

    layout: Layout
    arrays: Arrays
    index: SampleIndex
    columns: tuple[int, ...] | None = None
    """Which of the stored blocks the model reads; None for all of them."""
    is_kept: bool = False
    """True where it was opened, not built by this run."""
    prefix_tokens: int = 0
    """Of a cache that was built: tokens that all samples share, computed once."""

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.arrays.nbytes

    def serve(self, rows: Tensor, device: torch.device) -> Served:
        """What is cached of the given rows (n,), on `device`."""
        return self.unpack(self.arrays.select(rows, device))

    def unpack(self, picked: dict[str, Tensor]) -> Served:
        """What is in rows of the arrays, copied to wherever they are needed."""
        features = self.layout.decode(picked)
        if self.columns is not None:
            # not by a list, which would wait for the device to have it
            features = torch.stack([features[:, k] for k in self.columns], dim=1)
        return Served(
            features=features,
            targets=picked["targets"],
            base_logits=picked.get("base_logits"),
            projected=self.layout.decode_projected(picked),
        )

    def prefetch(self, ids: Sequence[int]) -> None:
        """Have the given samples read ahead, where the cache is on disk; others are passed over."""
        if self.arrays.maps:
            for i in ids:
                count = int(self.index.counts[i])
                if count:
                    self.arrays.prefetch(int(self.index.starts[i]), count)


@dataclass(frozen=True, kw_only=True)
class BuildOrder:
    """How samples pass the backbone, and so the order in which they are stored."""

    prefix: Tensor
    """(P,) token ids that they all start with, computed once."""
    buckets: list[list[int]]
    """Sample ids of each batch, of similar length."""

    @classmethod
    def of(
        cls, model: CachedGPT, samples: Samples, ids: Sequence[int], device: torch.device
    ) -> "BuildOrder":
        """Batch the given samples."""
        prefix = find_prefix(model, samples, ids)
        lengths = [length - len(prefix) for length in samples.lengths]
        return cls(prefix=prefix, buckets=length_buckets(ids, lengths, token_budget(device)))

    @property
    def ids(self) -> list[int]:
        """Sample ids in order."""
        return [i for bucket in self.buckets for i in bucket]


def fill(
    writer: Writer,
    model: CachedGPT,
    samples: Samples,
    order: BuildOrder,
    device: torch.device,
    on_batch: Callable[[Sequence[int], Writer], None] = lambda _ids, _writer: None,
) -> None:
    """Run the frozen backbone once over the given samples and write what the layout asks for.

    Args:
        writer: Where the rows go; its layout has the blocks that `model` reads.
        model: The Skip model; put in evaluation mode while this runs.
        samples: All samples of a side.
        order: Those to cache.
        device: Where the model runs.
        on_batch: Called after each forward pass with the samples it did, and the writer.
    """
    was_training = model.training
    model.eval()
    layout, backbone = writer.layout, Backbone(model, order.prefix, device)
    for ids in order.buckets:
        input_ids, rows, targets = stored_rows(samples, ids, layout)
        outputs, rows = backbone.compute(input_ids, rows)
        # not before: what a writer does with the rows before these, it does while a GPU computes
        space = writer.reserve(len(rows))
        with torch.inference_mode():
            store_outputs(layout, model, outputs, rows, space)
            if layout.n_logits:
                assert isinstance(model, SkipGPT)
                last, logits = outputs[-1].index_select(0, rows), space["base_logits"]
                logits.copy_(model.base_logits(last), non_blocking=logits.is_pinned())
            space["targets"].copy_(targets)
        writer.commit()
        on_batch(ids, writer)
    model.train(was_training)


def store_outputs(
    layout: Layout, model: CachedGPT, outputs: list[Tensor], rows: Tensor, into: dict[str, Tensor]
) -> None:
    """Store the given rows of what `compute_features` gave, as the layout asks for it.

    Args:
        layout: Of the cache.
        model: The Skip model, whose projection the layout has.
        outputs: One tensor (m, d) for each of the model's `feature_blocks`.
        rows: (n,), places in the outputs.
        into: Arrays of n rows to write to.
    """
    if not layout.projected:
        layout.encode(outputs, rows, into)
        return
    assert isinstance(model, SkipGPT)
    layout.encode(outputs[-1:], rows, into)
    own = [outputs[model.feature_blocks.index(block)] for block in layout.projected_blocks]
    # of the rows alone: most positions may be padding, or a prompt without loss
    projected = model.adapters.project([output.index_select(0, rows) for output in own])
    everything = torch.arange(len(rows), device=rows.device)
    layout.encode(projected, everything, into, "projected")


def stored_rows(
    samples: Samples, ids: Sequence[int], layout: Layout
) -> tuple[Tensor, Tensor, Tensor]:
    """What a layout has of samples.

    Returns:
        Padded token ids (B, T); of the positions that are stored, sample after sample, the places
        in the flattened (B T); and their targets, each (n,).
    """
    input_ids, labels = collate(samples, ids)
    if not layout.whole_samples:
        return input_ids, *supervised_rows(labels)
    lengths = torch.tensor([samples.lengths[i] for i in ids])
    rows = sample_rows(lengths)
    return input_ids, rows, _next_labels(labels).flatten()[rows]


def sample_rows(lengths: Tensor) -> Tensor:
    """Places (n,) of all tokens of samples of the given lengths (B,) in a padded batch (B T)."""
    is_token = torch.arange(int(lengths.max())) < lengths[:, None]
    return is_token.flatten().nonzero().squeeze(1)


def supervised_rows(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Supervised positions of a padded batch.

    Args:
        labels: (B, T); position t predicts label t + 1.

    Returns:
        Their places in the flattened (B T) positions, and their targets, each (n,), sample after
        sample.
    """
    targets = _next_labels(labels).flatten()
    rows = (targets != IGNORE_INDEX).nonzero().squeeze(1)
    return rows, targets[rows]


def _next_labels(labels: Tensor) -> Tensor:
    """Each position's target: the next label, and none at the end."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
