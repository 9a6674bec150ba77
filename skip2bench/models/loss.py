"""Summed cross-entropy over supervised positions: of a model on tokens, of a head on hidden states.

A sum, not a mean: the caller divides by the supervised positions of the *global* batch, so the loss
does not depend on how the batch is cut. The cross-entropy itself is computed in float32.

A vocabulary of 50,000 makes logits the largest tensors of a step, and reading them again and again
its slowest part. So a plain linear head never makes those that no loss asks for, and:

    on tokens          logits become probabilities in place, a few rows at a time while they are
                       near; backward is one product with the head, no more
    on hidden states   (Skip-Cache, CPU) logits are made a slice of the vocabulary at a time, with a
                       running maximum and sum as in online softmax (Milakov & Gimelshein,
                       arXiv:1805.02867); the gradient is gathered on the way, scaled again where
                       the maximum grows. Two products with the head, and no logits kept.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from litgpt.lora import LoRALinear
from litgpt.model import GPT
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from skip2bench.models.skip import SkipGPT

_SLICE_BYTES = 8 * 2**20
"""Logits that exist at one time on a CPU, of `head_loss`; near its caches."""
_SLICE_ROWS = 2048
"""Positions in a slice, so that it has more than a few columns."""
_NEAR_BYTES = 4 * 2**20
"""Logits that are worked on at one time on a CPU, of `token_loss`."""
_LEAST_POWER = -60.0
"""Nothing beside the maximum's e^0, and far from where float32 has but a few digits left: products
with such numbers take a processor hundreds of times as long."""
_CHUNK = {"cpu": 512}
"""Positions whose logits exist at one time where the head is no plain linear layer."""
_GPU_CHUNK = 4096
_hits: ContextVar[list[Tensor] | None] = ContextVar("hits", default=None)
"""By loss, how many targets had the highest logit; None where nobody counts."""


@contextmanager
def counting_hits() -> Iterator[Callable[[], int]]:
    """Gives a function that returns how many targets had the highest logit, of losses within.

    It is read from what the losses are made of, so it costs next to nothing and changes none. Of
    equal highest logits, which a narrow dtype has, each counts. Losses that take a gradient are
    not counted.
    """
    found: list[Tensor] = []
    token = _hits.set(found)
    try:
        yield lambda: int(torch.stack(found).sum()) if found else 0
    finally:
        _hits.reset(token)


def _note_hits(targets: Tensor, highest: Tensor) -> None:
    """Count where the target's logit (n, 1) is the highest (n, 1) of its position."""
    if (found := _hits.get()) is not None:
        found.append((targets >= highest).sum())


def token_loss(model: nn.Module, input_ids: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """Summed loss of a padded batch; of its logits, only those of supervised positions are made.

    Args:
        model: Maps (B, T) token ids to (B, T, V) logits: LitGPT's, or what Fabric made of it.
        input_ids: Token ids, (B, T).
        rows: Supervised positions (n,) in the flattened (B T): found before, on the CPU, so that
            no device is waited for and the shapes are known.
        targets: The token that follows each, (n,).
    """
    inner = getattr(model, "module", model)
    adds_to_logits = isinstance(inner, SkipGPT) and inner.settings.target == "logits"
    if not isinstance(inner, GPT) or adds_to_logits:  # the adapters count positions
        return logits_loss(model(input_ids).flatten(0, 1)[rows], targets)
    head, plain = inner.lm_head, _plain_head(inner)
    inner.lm_head = _OnRows(head, rows) if plain is None else _LossOfRows(plain, rows, targets)
    try:
        output: Tensor = model(input_ids)
    finally:
        inner.lm_head = head
    return logits_loss(output, targets) if plain is None else output


def logits_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed loss of logits (N, V) on targets (N,)."""
    logits = logits.float()
    if _hits.get() is not None:
        _note_hits(logits.gather(1, targets[:, None]), logits.amax(dim=1, keepdim=True))
    return nn.functional.cross_entropy(logits, targets, reduction="sum")


def position_losses(model: nn.Module, input_ids: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """Loss of each supervised position (n,), whose logits are all made; else as `token_loss`."""
    inner = getattr(model, "module", model)
    if isinstance(inner, SkipGPT) and inner.settings.target == "logits":
        logits = model(input_ids).flatten(0, 1)[rows]
    else:
        head: Any = inner.lm_head
        inner.lm_head = _OnRows(head, rows)
        try:
            logits = model(input_ids)
        finally:
            inner.lm_head = head
    return nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def head_loss(
    head: nn.Module,
    cap: Callable[[Tensor], Tensor] | None,
    hidden: Tensor,
    targets: Tensor,
) -> Tensor:
    """Summed loss of a frozen head, without ever holding all logits.

    Args:
        head: Maps hidden states (n, d) to logits (n, V); gets no gradient.
        cap: Applied to the logits; None where the architecture has no cap.
        hidden: (N, d).
        targets: (N,).
    """
    if cap is None and type(head) is nn.Linear and hidden.device.type == "cpu":
        return cast(Tensor, _SlicedLoss.apply(hidden, head.weight, head.bias, targets))  # type: ignore[no-untyped-call]
    chunk = _CHUNK.get(hidden.device.type, _GPU_CHUNK)

    def loss(part: Tensor, part_targets: Tensor) -> Tensor:
        logits = head(part)
        return logits_loss(logits if cap is None else cap(logits), part_targets)

    if not hidden.requires_grad:
        parts = zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True)
        return torch.stack([loss(*part) for part in parts]).sum()
    return cast(Tensor, _ChunkedLoss.apply(hidden, targets, loss, chunk))  # type: ignore[no-untyped-call]


def _plain_head(model: GPT) -> nn.Linear | None:
    """The head, where all that it does is a product and nothing follows; else None."""
    head = model.lm_head
    if isinstance(head, LoRALinear) and head.r == 0:
        head = head.linear
    is_plain = type(head) is nn.Linear and not head._forward_hooks and not head._forward_pre_hooks
    return head if is_plain and model.config.final_logit_softcapping is None else None


class _OnRows(nn.Module):
    """A head that maps hidden states (B, T, d) to the logits (n, V) of some positions."""

    def __init__(self, head: nn.Module, rows: Tensor) -> None:
        super().__init__()
        self._head, self._rows = head, rows

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._head(hidden.flatten(0, 1)[self._rows])
        return logits


class _LossOfRows(nn.Module):
    """Stands in a plain head's place, and gives the summed loss of some positions."""

    def __init__(self, head: nn.Linear, rows: Tensor, targets: Tensor) -> None:
        super().__init__()
        self._head, self._rows, self._targets = head, rows, targets

    def forward(self, hidden: Tensor) -> Tensor:
        own, head = hidden.flatten(0, 1)[self._rows], self._head
        if not torch.is_grad_enabled():  # whole batches are validated at one time
            return head_loss(head, None, own, self._targets)
        return cast(Tensor, _RowsLoss.apply(own, head.weight, head.bias, self._targets))  # type: ignore[no-untyped-call]


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What a linear layer would compute in."""
    kind = hidden.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


class _RowsLoss(torch.autograd.Function):
    """Loss of a linear head; the head may train too.

    Forward keeps e^(logit - maximum) in the logits' own memory, and each row's sum of them.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        dtype = _product_dtype(hidden, weight)
        narrow = hidden.to(dtype)
        powers = nn.functional.linear(
            narrow, weight.to(dtype), None if bias is None else bias.to(dtype)
        )
        near = max(1, _NEAR_BYTES // (4 * powers.size(1)))
        chunk = near if powers.device.type == "cpu" else _GPU_CHUNK
        losses, sums = [], []
        for part, own in zip(torch.split(powers, chunk), torch.split(targets, chunk), strict=True):
            logits = part.float()  # the same memory, where they are in float32
            target = logits.gather(1, own[:, None])
            highest = logits.amax(dim=1, keepdim=True)
            logits.sub_(highest).clamp_(min=_LEAST_POWER).exp_()
            total = logits.sum(dim=1, keepdim=True)
            losses.append((highest + total.log() - target).sum())
            sums.append(total)
            if logits is not part:
                part.copy_(logits)
        ctx.save_for_backward(narrow, weight, targets, powers, torch.cat(sums))
        ctx.hidden_dtype = hidden.dtype
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        narrow, weight, targets, powers, sums = ctx.saved_tensors
        of_hidden = of_weight = of_bias = None
        scale = gradient / sums  # (n, 1)
        if ctx.needs_input_grad[0]:
            product = torch.mm(powers, weight.to(powers.dtype)).float() * scale
            of_hidden = (product - gradient * weight[targets].float()).to(ctx.hidden_dtype)
        if ctx.needs_input_grad[1]:
            of_weight = torch.mm(powers.t(), (narrow * scale).to(powers.dtype)).to(weight.dtype)
            of_weight.index_add_(0, targets, (-gradient * narrow).to(weight.dtype))
        if ctx.needs_input_grad[2]:
            of_bias = (powers * scale).sum(0)
            of_bias.index_add_(0, targets, -gradient.expand(len(targets)).to(of_bias.dtype))
            of_bias = of_bias.to(weight.dtype)
        return of_hidden, of_weight, of_bias, None


class _SlicedLoss(torch.autograd.Function):
    """Loss of a frozen linear head and its gradient, a slice of the vocabulary at a time."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        dtype = _product_dtype(hidden, weight)
        narrow, needs_gradient = hidden.detach().to(dtype), ctx.needs_input_grad[0]
        losses, gradients = [torch.zeros((), dtype=torch.float32)], []
        for rows, own in zip(
            torch.split(narrow, _SLICE_ROWS), torch.split(targets, _SLICE_ROWS), strict=True
        ):
            loss, gradient = _slice_by_slice(rows, weight, bias, own, needs_gradient)
            losses.append(loss)
            gradients.append(gradient)
        if needs_gradient:
            ctx.save_for_backward(torch.cat(gradients).to(hidden.dtype))
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (saved,) = ctx.saved_tensors
        return saved * gradient.to(saved.dtype), None, None, None


def _slice_by_slice(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, needs_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Summed loss of hidden states (n, d), and its gradient (n, d) in float32 where needed.

    After each slice, `sums` and `gathered` are Σ e^(logit - highest), and that times the head's
    rows, over the vocabulary so far.
    """
    n, vocabulary = hidden.size(0), weight.size(0)
    highest = torch.full((n, 1), float("-inf"), dtype=torch.float32)
    sums = torch.zeros(n, 1, dtype=torch.float32)
    gathered = torch.zeros(hidden.shape if needs_gradient else (0,), dtype=torch.float32)
    width = max(256, _SLICE_BYTES // (4 * max(1, n)) // 64 * 64)
    own, seen = weight[targets], torch.full((n, 1), float("-inf"), dtype=torch.float32)
    target = (hidden.float() * own.float()).sum(dim=1, keepdim=True)
    if bias is not None:
        target += bias[targets].float()[:, None]
    for start in range(0, vocabulary, width):
        part = weight[start : start + width].to(hidden.dtype)
        logits = torch.mm(hidden, part.t()).float()
        if bias is not None:
            logits += bias[start : start + width].float()
        if _hits.get() is not None:  # not `target`, which is rounded otherwise
            place = (targets - start)[:, None]
            is_here = (place >= 0) & (place < len(part))
            seen = torch.where(is_here, logits.gather(1, place.clamp(0, len(part) - 1)), seen)
        higher = torch.maximum(highest, logits.amax(dim=1, keepdim=True))
        logits.sub_(higher).clamp_(min=_LEAST_POWER).exp_()
        shrink = (highest - higher).exp_()
        highest = higher
        sums.mul_(shrink).add_(logits.sum(dim=1, keepdim=True))
        if needs_gradient:
            gathered.mul_(shrink)
            if hidden.dtype == torch.float32:
                torch.addmm(gathered, logits, part, out=gathered)
            else:
                gathered += torch.mm(logits.to(hidden.dtype), part)
    _note_hits(seen, highest)
    loss = (highest + sums.log() - target).sum()
    return loss, gathered.div_(sums).sub_(own) if needs_gradient else gathered


def _same(tensor: Tensor) -> Tensor:
    return tensor


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradient of one chunk of positions after the other, in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
        chunk: int,
    ) -> Tensor:
        # in full: Fabric makes a narrow dtype the default one
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        rows = zip(
            *(torch.split(t, chunk) for t in (hidden.detach(), targets, gradient)), strict=True
        )
        for part, part_targets, part_gradient in rows:
            leaf = part.requires_grad_()
            # what this graph keeps is gone with the chunk: hidden from whoever counts
            with torch.enable_grad(), saved_tensors_hooks(_same, _same):
                part_loss = loss(leaf, part_targets)
            # not autograd.grad, which torch's FLOP counter cannot follow to a module's input
            torch.autograd.backward(part_loss, inputs=[leaf])
            assert leaf.grad is not None
            part_gradient.copy_(leaf.grad)
            total += part_loss.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (saved,) = ctx.saved_tensors
        return saved * gradient.to(saved.dtype), None, None, None
