"""Whether an exported model says what the original says, on samples, before it is handed out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite

import torch
from litgpt.model import GPT
from torch import Tensor, nn

from skip2bench.data.samples import IGNORE_INDEX, Samples
from skip2bench.errors import Skip2BenchError
from skip2bench.io.units import format_significant

Forward = Callable[[Tensor], Tensor]
"""Logits (1, T, V) of token ids (1, T)."""

MAX_SAMPLES, MAX_POSITIONS = 32, 1024
_BYTES = 1 << 30
"""Most for the logits that are kept to compare with."""
BOUNDS = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2, "q8_0": 0.1}
"""Largest difference of logits, as a share of the largest logit, by the dtype of the weights.

Those below float32 were measured: see docs/export.md.
"""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the original says."""

    sample_ids: list[int]
    samples: Samples
    logits: list[Tensor]
    """Of each sample, at its supervised positions, (N, V)."""
    spread: float
    """Largest ratio of the mean square of the last block's output to that of another's."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How near an exported model comes."""

    positions: int
    logit_scale: float
    """The largest absolute logit of the original."""
    max_logit_difference: float
    same_token_ratio: float
    """Positions whose most likely token is the same."""
    original_val_loss: float
    exported_val_loss: float

    @property
    def relative_difference(self) -> float:
        """Largest difference of logits as a share of the largest logit."""
        return self.max_logit_difference / max(self.logit_scale, 1e-30)


@torch.inference_mode()
def run_reference(model: GPT, samples: Samples) -> Reference:
    """Run the original on validation samples, as many as its logits have room for."""
    most = min(MAX_POSITIONS, max(1, _BYTES // (4 * int(model.config.padded_vocab_size))))
    ids: list[int] = []
    logits: list[Tensor] = []
    positions = 0
    with _watched_sizes(model) as squares:
        for i in range(min(len(samples), MAX_SAMPLES)):
            rows = _supervised(samples.labels[i])
            if positions + len(rows) > most and ids:
                break
            result = model(samples.input_ids[i][None])[0][rows[:most]]
            ids.append(i)
            logits.append(result.clone())
            positions += len(logits[-1])
    means = torch.stack([torch.stack(of_block).mean() for of_block in squares])
    return Reference(
        sample_ids=ids,
        samples=samples,
        logits=logits,
        spread=float((means[-1] / means.clamp(min=1e-30)).max()),
    )


@contextmanager
def _watched_sizes(model: GPT) -> Iterator[list[list[Tensor]]]:
    """Within, every forward pass leaves the mean square of each block's output."""
    squares: list[list[Tensor]] = [[] for _ in model.transformer.h]

    def watch(own: list[Tensor]) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _args, output: own.append(output.float().square().mean())

    handles = [
        block.register_forward_hook(watch(own))
        for block, own in zip(model.transformer.h, squares, strict=True)
    ]
    try:
        yield squares
    finally:
        for handle in handles:
            handle.remove()


def _supervised(labels: Tensor) -> Tensor:
    """Positions whose next token has a label."""
    return (labels[1:] != IGNORE_INDEX).nonzero()[:, 0]


@torch.inference_mode()
def compare_with(reference: Reference, forward: Forward) -> Agreement:
    """Run the exported model on the same samples."""
    difference, scale, same, count = 0.0, 0.0, 0, 0
    losses = [0.0, 0.0]
    for i, wanted in zip(reference.sample_ids, reference.logits, strict=True):
        labels = reference.samples.labels[i]
        rows = _supervised(labels)[: len(wanted)]
        found = forward(reference.samples.input_ids[i][None])[0][rows].float()
        found = found[:, : wanted.size(1)]
        # max() would leave out what is not a number
        own = float((found - wanted).abs().max()) if bool(found.isfinite().all()) else inf
        difference = max(difference, own)
        scale = max(scale, float(wanted.abs().max()))
        same += int((found.argmax(-1) == wanted.argmax(-1)).sum())
        targets = labels[rows + 1]
        for k, logits in enumerate((wanted, found)):
            loss = nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
            losses[k] += float(loss)
        count += len(rows)
    return Agreement(
        positions=count,
        logit_scale=scale,
        max_logit_difference=difference,
        same_token_ratio=same / count,
        original_val_loss=losses[0] / count,
        exported_val_loss=losses[1] / count,
    )


def check_agreement(agreement: Agreement, dtype: str) -> None:
    """Refuse an exported model that says something else.

    Raises:
        Skip2BenchError: what is off, and by how much.
    """
    bound = BOUNDS[dtype]
    # written so that what is not finite is refused too
    if agreement.relative_difference <= bound:
        return
    if not isfinite(agreement.max_logit_difference):
        raise Skip2BenchError(
            f"the exported model's logits are not finite in {dtype}; nothing was written: try "
            "--dtype float32"
        )
    raise Skip2BenchError(
        f"the exported model is not the trained one: logits differ by up to "
        f"{format_significant(agreement.max_logit_difference)} where the largest is "
        f"{format_significant(agreement.logit_scale)} (at most {bound:g} of it is allowed in "
        f"{dtype}), validation loss {agreement.original_val_loss:.4f} and "
        f"{agreement.exported_val_loss:.4f}; nothing was written: try --dtype float32"
    )
