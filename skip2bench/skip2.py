"""Skip-LoRA for language models: adapters from blocks' outputs to the end of the network.

For one position, with blocks k in S, rank r and scale s = alpha / r, the logits are

    target "hidden":  W_head · ( ln_f(h_L) + s · Σ_k B_k A_k dropout(h_k) ),  B_k of shape (d, r)
    target "logits":  W_head · ln_f(h_L)   + s · Σ_k B_k A_k dropout(h_k),    B_k of shape (V, r)

h_k is the output of block k, h_L that of the last block. The backbone is frozen, so no gradient
enters a block: backward goes through `lm_head` and the adapters alone. The model is LitGPT's `GPT`
with hooks, so generation with its KV cache works as it does there. Source: Matsutani et al.,
arXiv:2410.21073, section 3.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from litgpt.config import Config
from litgpt.model import GPT, do_softcapping
from torch import Tensor, nn

from skip2bench.config import Target
from skip2bench.errors import Skip2BenchError


@dataclass(frozen=True, kw_only=True)
class SkipSettings:
    """Shape of the Skip adapters."""

    blocks: tuple[int, ...]
    """Blocks whose outputs are read, ascending."""
    r: int
    alpha: int
    dropout: float = 0.0
    target: Target = "hidden"


class SkipAdapters(nn.Module):
    """One low-rank adapter a block, held as two stacked tensors.

    `lora_A` is (K, r, d) and starts as an nn.Linear's weight would; `lora_B` is (K, d_out, r) and
    starts at zero, so that the adapters add exactly nothing before the first update.
    """

    def __init__(self, settings: SkipSettings, n_embd: int, d_out: int) -> None:
        super().__init__()
        self.scaling = settings.alpha / settings.r
        self.lora_A = nn.Parameter(torch.empty(len(settings.blocks), settings.r, n_embd))
        self.lora_B = nn.Parameter(torch.empty(len(settings.blocks), d_out, settings.r))
        self.dropout = nn.Dropout(settings.dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise A uniformly within ±1/sqrt(d), as nn.Linear does, and B to zero."""
        bound = 1 / math.sqrt(self.lora_A.size(-1))
        nn.init.uniform_(self.lora_A, -bound, bound)
        nn.init.zeros_(self.lora_B)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Sum of all adapters.

        Args:
            features: K tensors (..., d), the outputs of the K blocks.

        Returns:
            s · Σ_k B_k A_k dropout(features[k]), (..., d_out).
        """
        reduced = [
            nn.functional.linear(self.dropout(h), A)
            for h, A in zip(features, self.lora_A, strict=True)
        ]
        # the K products with B are one: (..., K r) times (K r, d_out)
        stacked_B = self.lora_B.permute(1, 0, 2).flatten(1)
        return nn.functional.linear(torch.cat(reduced, dim=-1), stacked_B) * self.scaling


class SkipGPT(GPT):  # type: ignore[misc]
    """LitGPT's GPT with Skip adapters; state-dict keys of the backbone are LitGPT's."""

    lm_head: nn.Module

    def __init__(self, config: Config, settings: SkipSettings) -> None:
        """Build the model with uninitialised backbone and fresh adapters.

        Raises:
            Skip2BenchError: a block that the model does not have.
        """
        super().__init__(config)
        outside = [block for block in settings.blocks if not 0 <= block < config.n_layer]
        if outside or not settings.blocks:
            raise Skip2BenchError(
                f"blocks {list(settings.blocks)} do not fit; "
                f"the model has blocks 0 to {config.n_layer - 1}"
            )
        self.settings = settings
        is_hidden = settings.target == "hidden"
        self.adapters = SkipAdapters(
            settings, config.n_embd, config.n_embd if is_hidden else config.padded_vocab_size
        )
        self._outputs: dict[int, Tensor] = {}
        self._next_position = 0
        for block in {*settings.blocks, config.n_layer - 1}:
            self.transformer.h[block].register_forward_hook(partial(self._keep_output, block))
        if is_hidden:
            self.transformer.ln_f.register_forward_hook(self._add_to_hidden)
        else:
            self.lm_head.register_forward_hook(self._add_to_logits)

    @property
    def feature_blocks(self) -> tuple[int, ...]:
        """Blocks whose outputs determine the logits: the adapters' and the last one, ascending."""
        return tuple(sorted({*self.settings.blocks, self.config.n_layer - 1}))

    @torch.inference_mode()
    def compute_features(self, idx: Tensor) -> list[Tensor]:
        """Run the frozen blocks, without head and adapters.

        Args:
            idx: Token ids, (B, T).

        Returns:
            One tensor (B, T, d) for each of `feature_blocks`.
        """
        with self._backbone_only():
            super().forward(idx)
            return [self._outputs.pop(block) for block in self.feature_blocks]

    def forward_features(self, features: Tensor) -> Tensor:
        """Logits from what `compute_features` gave, for any positions.

        The arithmetic is that of `forward`.

        Args:
            features: Outputs of `feature_blocks`, (N, len(feature_blocks), d).

        Returns:
            Logits, (N, padded_vocab_size).
        """
        self._outputs = dict(zip(self.feature_blocks, features.unbind(dim=1), strict=True))
        self._next_position = 0
        logits: Tensor = self.lm_head(self.transformer.ln_f(self._outputs[self.config.n_layer - 1]))
        cap = self.config.final_logit_softcapping
        return logits if cap is None else do_softcapping(logits, cap)

    @contextmanager
    def _backbone_only(self) -> Iterator[None]:
        """Within, a forward pass ends at the blocks: no final norm, no head, no adapters."""
        ln_f, head = self.transformer.ln_f, self.lm_head
        self.transformer.ln_f, self.lm_head = nn.Identity(), nn.Identity()
        try:
            yield
        finally:
            self.transformer.ln_f, self.lm_head = ln_f, head

    def _keep_output(self, block: int, _module: nn.Module, _args: Any, output: Tensor) -> None:
        self._outputs[block] = output
        self._next_position = 0

    def _features(self) -> list[Tensor]:
        return [self._outputs[block] for block in self.settings.blocks]

    def _add_to_hidden(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        update: Tensor = self.adapters(self._features())
        return output + update

    def _add_to_logits(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        # LitGPT may call the head on chunks of the sequence, in order: each takes what follows
        start, length = self._next_position, output.size(-2)
        self._next_position = start + length
        update: Tensor = self.adapters([h.narrow(-2, start, length) for h in self._features()])
        return output + update


def merge_skip_adapter() -> None:
    """Refuse to merge.

    Raises:
        Skip2BenchError: always; there is no weight of the base model that could hold the adapters.
    """
    raise Skip2BenchError(
        "a Skip adapter cannot be merged: it adds functions of the inner blocks' outputs after the "
        "last block, and no weight of the base model sees those outputs; keep the adapter beside "
        "the model and load it with skip2bench.checkpoints.load_skip_model"
    )
