"""Tokenized samples, and the batches made of them.

Every sample keeps one id, its index, for the whole run; which samples form a batch depends on
(seed, epoch) alone, for every method.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from skip2bench.data.chat import ChatRenderer
from skip2bench.data.records import Record

IGNORE_INDEX = -100
MAX_PADDING = 0.04
"""Most padding in a batch of samples sorted by length, as a share of its tokens."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Tokenized samples; `labels[i][t]` is the label of `input_ids[i][t]` itself, not shifted."""

    input_ids: list[Tensor]
    labels: list[Tensor]

    def __len__(self) -> int:
        return len(self.input_ids)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each sample."""
        return [len(ids) for ids in self.input_ids]

    @cached_property
    def supervised_counts(self) -> list[int]:
        """Supervised positions of each sample: those whose next token has a label."""
        return [int((labels[1:] != IGNORE_INDEX).sum()) for labels in self.labels]


@dataclass(frozen=True, kw_only=True)
class TokenizedData:
    """A data set ready for training."""

    name: str
    train: Samples
    val: Samples
    dropped: int
    """Samples left out because the cut to max_seq_length left nothing to learn from."""
    cut: int
    """Samples that were used and lost the end of their output by that cut."""
    empty: int
    """Records without an output: all they teach is to end the text."""
    shared: int
    """Validation samples that are among the training samples too."""
    sha256: str
    """Over the token ids and labels of both sides, and the records of a test side."""
    held_out: tuple[Record, ...] = ()
    """Records that `--score` asks: those of the test side, or all that validate; none of LitGPT's
    modules."""
    conversations: int = 0
    """Records of both sides that are some."""
    renderer: ChatRenderer | None = None
    """Of conversations, where records are known as text."""
    prompt_style: str | None = None
    """LitGPT's name of the style in which all of it asks; None where nobody has chosen one."""
    train_records: int = 0
    """To train on, before `train_samples` takes the first of them."""

    @property
    def sides(self) -> dict[str, Samples]:
        """Samples by what they are for: train, val."""
        return {"train": self.train, "val": self.val}


def hash_samples(*sides: Samples, tests: Sequence[Record] | None = None) -> str:
    """sha256 over token ids and labels, and the records of a test side where there is one."""
    digest = hashlib.sha256()
    if tests is not None:  # what is asked is a part of the data, which no token says
        digest.update(json.dumps(tests, sort_keys=True).encode())
    for side in sides:
        for ids, labels in zip(side.input_ids, side.labels, strict=True):
            for tensor in (ids, labels):
                digest.update(tensor.numpy().astype("<i8").tobytes())
            digest.update(b"|")  # ends a sample
        digest.update(b"||")  # ends a side
    return digest.hexdigest()


def global_batches(n_samples: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Sample ids of an epoch's batches; the last one may be smaller.

    The order is drawn from (seed, epoch) alone, so that every method sees the same batches.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(n_samples, generator=generator).tolist()
    return [order[start : start + batch_size] for start in range(0, n_samples, batch_size)]


def count_steps(n_samples: int, batch_size: int, epochs: int, max_steps: int | None) -> int:
    """Optimizer steps of a run."""
    steps = epochs * math.ceil(n_samples / batch_size)
    return steps if max_steps is None else min(steps, max_steps)


def micro_batches(ids: Sequence[int], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Cut a global batch into micro-batches of samples of similar length, which keeps padding low.

    The loss is exact over the global batch whatever the cut, so this changes no result.
    """
    by_length = sorted(ids, key=lambda i: lengths[i])
    return [by_length[start : start + size] for start in range(0, len(by_length), size)]


def length_buckets(
    ids: Sequence[int], lengths: Sequence[int], token_budget: int
) -> list[list[int]]:
    """Cut samples into batches of similar length.

    No batch is padded by more than MAX_PADDING of its tokens, nor has more than `token_budget`
    tokens, padding included; longer samples stand alone.
    """
    buckets: list[list[int]] = []
    real = 0
    for i in sorted(ids, key=lambda i: lengths[i]):
        padded = (len(buckets[-1]) + 1) * lengths[i] if buckets else 0
        is_tight = padded - real - lengths[i] <= MAX_PADDING * padded
        if buckets and padded <= token_budget and is_tight:
            buckets[-1].append(i)
            real += lengths[i]
        else:
            buckets.append([i])
            real = lengths[i]
    return buckets


def collate(samples: Samples, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Pad samples on the right: token ids (B, T) and labels (B, T), IGNORE_INDEX on padding."""
    pad = torch.nn.utils.rnn.pad_sequence
    input_ids = pad([samples.input_ids[i] for i in ids], batch_first=True, padding_value=0)
    labels = pad([samples.labels[i] for i in ids], batch_first=True, padding_value=IGNORE_INDEX)
    return input_ids, labels
