"""A prompt prefix that all samples share, passed through the backbone once for all of them.

Attention is causal, so the activations of a prefix depend on nothing that follows: where every
sample starts with the same instruction, the same tokens need not be computed again for each. The
prefix is run alone, its keys and values are kept, and every other batch starts after it and
attends to them. Equal to the plain forward pass but for rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from litgpt.model import Block, CausalSelfAttention
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from skip2bench.data.samples import Samples
from skip2bench.models.switches import is_compiled
from skip2bench.models.top import CachedGPT

_SHORTEST = 8
"""Tokens below which a shared prefix saves nothing worth the copying of its keys and values."""

Heads = tuple[Tensor, Tensor]
"""Keys and values, each (1, heads, P, head size)."""


def find_prefix(model: CachedGPT, samples: Samples, ids: Sequence[int]) -> Tensor:
    """Token ids (P,) that all the given samples start with; empty where that is not to be used.

    Every sample keeps at least one token of its own.
    """
    tokens = [samples.input_ids[i] for i in ids]
    none = torch.empty(0, dtype=torch.long)
    if len(tokens) < 2 or not _is_supported(model):
        return none
    shortest = min(tokens, key=len)
    shared = len(shortest) - 1
    for other in tokens:
        differs = (other[:shared] != shortest[:shared]).nonzero()
        shared = int(differs[0]) if len(differs) else shared
    return shortest[:shared] if shared >= _SHORTEST else none


def _is_supported(model: CachedGPT) -> bool:
    """True where attention is plain and causal: no sliding window, cap or latent heads.

    And where blocks are not compiled: what stands in attention's place would be compiled for each.
    """
    return not is_compiled(model) and all(
        isinstance(block.attn, CausalSelfAttention)
        and not block.attn.apply_sliding_window_attention
        and model.config.attention_logit_softcapping is None
        for block in model.frozen_blocks
    )


class Backbone:
    """The frozen blocks of a model on batches that share a prefix."""

    def __init__(
        self,
        model: CachedGPT,
        prefix: Tensor,
        device: torch.device,
        run: Callable[[Tensor], list[Tensor]] | None = None,
    ) -> None:
        """Run the prefix (P,); an empty one leaves the plain forward pass.

        `run` passes token ids (B, T) through the blocks that `model` has; it stands in place of
        `model.compute_features` where those are not all blocks.
        """
        self._model, self._device = model, device
        self._run = run or model.compute_features
        self._length = len(prefix)
        self._heads: list[Heads] = []
        self._outputs: list[Tensor] = []
        if self._length:
            with _attention(model, [partial(self._keep, attn) for attn in _attentions(model)]):
                self._outputs = self._run(prefix[None].to(device))

    @property
    def prefix_outputs(self) -> list[Tensor]:
        """What the run of the prefix gave: tensors (1, P, d); empty without one."""
        return self._outputs

    def compute(self, input_ids: Tensor, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        """Run a batch.

        Args:
            input_ids: Whole samples, padded, (B, T).
            rows: Positions of interest (n,) in the flattened (B T).

        Returns:
            One tensor (any number of positions, d) for each of the model's feature blocks, and
            where in them the rows are, (n,); both on the device.
        """
        length, prefix = input_ids.size(1), self._length
        if not prefix:
            outputs = self._run(input_ids.to(self._device))
            return [h.flatten(0, 1) for h in outputs], rows.to(self._device)
        with self._after_prefix():
            outputs = self._run(input_ids[:, prefix:].to(self._device))
        flat = [h.flatten(0, 1) for h in outputs]
        sample, position = rows // length, rows % length
        places = sample * (length - prefix) + position - prefix
        within = position < prefix
        if bool(within.any()):
            # the prefix' own positions stand behind all others
            places = torch.where(within, len(flat[0]) + position, places)
            with torch.inference_mode():
                flat = [torch.cat([h, p[0]]) for h, p in zip(flat, self._outputs, strict=True)]
        return flat, places.to(self._device)

    def _keep(
        self, attn: CausalSelfAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> Tensor:
        self._heads.append((k, v))
        result: Tensor = type(attn).scaled_dot_product_attention(attn, q, k, v, mask)
        return result

    @contextmanager
    def _after_prefix(self) -> Iterator[None]:
        """Within, a forward pass takes its tokens for those that follow the prefix."""
        model = self._model
        cos, sin = model.cos, model.sin
        model.cos, model.sin = cos[self._length :], sin[self._length :]
        attend = [
            partial(_attend_after, attn, heads)
            for attn, heads in zip(_attentions(model), self._heads, strict=True)
        ]
        try:
            with _attention(model, attend):
                yield
        finally:
            model.cos, model.sin = cos, sin


def _attend_after(
    attn: CausalSelfAttention, heads: Heads, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> Tensor:
    """Attention of positions after the prefix to it and to each other."""
    assert mask is None
    batch = q.size(0)
    k, v = (
        torch.cat([first.expand(batch, -1, -1, -1), rest], dim=2)
        for first, rest in zip(heads, (k, v), strict=True)
    )
    own, whole = q.size(2), k.size(2)
    if q.device.type == "cuda":
        mask = causal_lower_right(own, whole)  # flash attention knows it without a matrix
    else:
        mask = torch.ones(own, whole, dtype=torch.bool, device=q.device).tril(whole - own)
    result: Tensor = type(attn).scaled_dot_product_attention(attn, q, k, v, mask)
    return result


def _attentions(model: CachedGPT) -> list[CausalSelfAttention]:
    """Of the blocks that are there: something else may stand in place of others."""
    return [block.attn for block in model.frozen_blocks if isinstance(block, Block)]


@contextmanager
def _attention(model: CachedGPT, replacements: Sequence[Any]) -> Iterator[None]:
    """Within, each block's attention product is the given one."""
    attentions = _attentions(model)
    for attn, replacement in zip(attentions, replacements, strict=True):
        attn.scaled_dot_product_attention = replacement
    try:
        yield
    finally:
        for attn in attentions:
            del attn.scaled_dot_product_attention  # the class' own again
