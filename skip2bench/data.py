"""Training and validation samples as token ids and labels, and the batches made of them.

Three sources: the embedded `pydoc` (see `stdlib`), an Alpaca JSON or JSONL file, and LitGPT's own
data modules by name. Prompting, tokenizing and label masking are LitGPT's. Every sample keeps one
id, its index, for the whole run; which samples form a batch depends on (seed, epoch) alone, for
every method.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from litgpt.data import SFTDataset
from litgpt.prompts import prompt_styles
from litgpt.tokenizer import Tokenizer
from torch import Tensor

from skip2bench.config import EMBEDDED_DATA, TrainConfig
from skip2bench.data_modules import load_module
from skip2bench.errors import Skip2BenchError
from skip2bench.records import Record, is_records_file, load_records
from skip2bench.stdlib import INSTRUCTION, read_modules, sample_documented_functions

IGNORE_INDEX = -100
PYDOC_TRAIN, PYDOC_VAL = 2000, 200
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
    """Over the token ids and labels of both sides."""

    @property
    def sides(self) -> dict[str, Samples]:
        """Samples by what they are for: train, val."""
        return {"train": self.train, "val": self.val}


def load_data(config: TrainConfig, tokenizer: Tokenizer, max_seq_length: int) -> TokenizedData:
    """Load what `config.data` names and tokenize it.

    Args:
        config: Uses data, mask_prompt, prompt_style, val_split_fraction and train_samples.
        tokenizer: The base model's.
        max_seq_length: Samples are cut to this many tokens.

    Raises:
        Skip2BenchError: the source is unknown, unreadable, or empty, or the tokenizer has no end of
            text.
    """
    if config.prompt_style not in prompt_styles:
        raise Skip2BenchError(
            f"prompt_style is {config.prompt_style!r}; choose from {', '.join(prompt_styles)}"
        )
    if tokenizer.eos_id is None:
        raise Skip2BenchError(
            "the tokenizer of the checkpoint has no end of text; add its eos_token to "
            "tokenizer_config.json, or download the checkpoint again"
        )
    path = Path(config.data)
    sides: tuple[list[Record], list[Record]] = ([], [])
    if config.data == EMBEDDED_DATA:
        name, sides = EMBEDDED_DATA, pydoc_records()
        train, val = _datasets(sides, config, tokenizer, max_seq_length, mask_prompt=True)
    elif is_records_file(config.data):
        name, sides = path.name, load_records(path, config.val_split_fraction)
        train, val = _datasets(sides, config, tokenizer, max_seq_length, mask_prompt=False)
    else:
        name, (train, val) = config.data, load_module(config, tokenizer, max_seq_length)
    train_samples, dropped = _tokenize(train, config.train_samples)
    val_samples, dropped_val = _tokenize(val, None)
    for side, samples in (("training", train_samples), ("validation", val_samples)):
        if not len(samples):
            raise Skip2BenchError(
                f"data {config.data!r} has no {side} sample with a supervised token within "
                f"{max_seq_length} tokens; give more records or a larger --max-seq-length"
            )
    return TokenizedData(
        name=name,
        train=train_samples,
        val=val_samples,
        dropped=dropped + dropped_val,
        cut=sum(
            _count_cut(side, max_seq_length, tokenizer) for side in (train_samples, val_samples)
        ),
        empty=sum(not record["output"].strip() for side in sides for record in side),
        shared=_count_shared(train_samples, val_samples),
        sha256=_hash(train_samples, val_samples),
    )


def pydoc_records() -> tuple[list[Record], list[Record]]:
    """`pydoc` in Alpaca form: 2,000 records to train, 200 from other packages to validate."""
    sides = sample_documented_functions(read_modules(), PYDOC_TRAIN, PYDOC_VAL)
    train, val = (
        [{"instruction": INSTRUCTION, "input": f.source, "output": f.summary} for f in functions]
        for functions in sides
    )
    return train, val


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


def _tokenize(dataset: SFTDataset, limit: int | None) -> tuple[Samples, int]:
    input_ids: list[Tensor] = []
    labels: list[Tensor] = []
    dropped = 0
    for i in range(len(dataset)):
        if limit is not None and len(input_ids) == limit:
            break
        item = dataset[i]
        if bool((item["labels"][1:] != IGNORE_INDEX).any()):
            input_ids.append(item["input_ids"])
            labels.append(item["labels"])
        else:
            dropped += 1
    return Samples(input_ids=input_ids, labels=labels), dropped


def _count_cut(samples: Samples, max_seq_length: int, tokenizer: Tokenizer) -> int:
    """Samples of the full length that do not end as every whole one does."""
    return sum(
        len(ids) == max_seq_length and int(ids[-1]) != tokenizer.eos_id for ids in samples.input_ids
    )


def _count_shared(train: Samples, val: Samples) -> int:
    known = {ids.numpy().tobytes() for ids in train.input_ids}
    return sum(ids.numpy().tobytes() in known for ids in val.input_ids)


def _hash(*sides: Samples) -> str:
    digest = hashlib.sha256()
    for side in sides:
        for ids, labels in zip(side.input_ids, side.labels, strict=True):
            for tensor in (ids, labels):
                digest.update(tensor.numpy().astype("<i8").tobytes())
            digest.update(b"|")  # ends a sample
        digest.update(b"||")  # ends a side
    return digest.hexdigest()


def _datasets(
    sides: tuple[list[Record], list[Record]],
    config: TrainConfig,
    tokenizer: Tokenizer,
    max_seq_length: int,
    *,
    mask_prompt: bool,
) -> tuple[SFTDataset, SFTDataset]:
    train, val = (
        SFTDataset(
            data=records,
            tokenizer=tokenizer,
            prompt_style=config.prompt_style,
            max_seq_length=max_seq_length,
            mask_prompt=mask_prompt if config.mask_prompt is None else config.mask_prompt,
            ignore_index=IGNORE_INDEX,
        )
        for records in sides
    )
    return train, val
