"""Summed cross-entropy over supervised positions: of a model on tokens, of a head on hidden states.

A sum, not a mean: the caller divides by the supervised positions of the *global* batch, so the loss
does not depend on how the batch is cut. The cross-entropy itself is computed in float32.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from skip2bench.data.samples import IGNORE_INDEX

CHUNK = 512
"""Positions whose logits exist at one time on a CPU; their gradient is taken at once."""
_GPU_CHUNK = 4096


def token_loss(model: nn.Module, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Summed loss of a padded batch.

    Args:
        model: Maps (B, T) token ids to (B, T, V) logits.
        input_ids: Token ids, (B, T).
        labels: Labels of the same positions, (B, T); position t predicts label t + 1.
    """
    logits = model(input_ids)[:, :-1]
    targets = labels[:, 1:]
    supervised = targets != IGNORE_INDEX
    return logits_loss(logits[supervised], targets[supervised])


def logits_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed loss of logits (N, V) on targets (N,)."""
    return nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


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
    chunk = CHUNK if hidden.device.type == "cpu" else _GPU_CHUNK
    if cap is None and isinstance(head, nn.Linear) and _torch_can_fuse(head, hidden):
        options = nn.LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=chunk)
        return nn.functional.linear_cross_entropy(
            hidden, head.weight, targets, linear_bias=head.bias, reduction="sum", options=options
        )

    def loss(part: Tensor, part_targets: Tensor) -> Tensor:
        logits = head(part)
        return logits_loss(logits if cap is None else cap(logits), part_targets)

    if not hidden.requires_grad:
        parts = zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True)
        return torch.stack([loss(*part) for part in parts]).sum()
    total: Tensor = _ChunkedLoss.apply(hidden, targets, loss, chunk)  # type: ignore[no-untyped-call]
    return total


def _torch_can_fuse(head: nn.Linear, hidden: Tensor) -> bool:
    """True where torch has its fused loss (2.13 has) and it serves: in float32.

    In narrower dtypes it rounds the summed loss itself; and on the meta device its FLOPs could not
    be counted.
    """
    return (
        hasattr(nn.functional, "linear_cross_entropy")
        and hasattr(nn, "LinearCrossEntropyOptions")
        and type(head) is nn.Linear
        and hidden.dtype == head.weight.dtype == torch.float32
        and not torch.is_autocast_enabled(hidden.device.type)
        and hidden.device.type != "meta"
    )


def _same(tensor: Tensor) -> Tensor:
    return tensor


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradient of one chunk of positions after the other, in the forward pass."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
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
            part_gradient.copy_(torch.autograd.grad(part_loss, leaf)[0])
            total += part_loss.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: Tensor
    ) -> tuple[Tensor, None, None, None]:
        (saved,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return saved * gradient.to(saved.dtype), None, None, None
