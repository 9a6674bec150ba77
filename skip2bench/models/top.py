"""LoRA on the last blocks alone, over a trunk that is frozen and so can be cached.

The first L - m blocks, the trunk, have no adapter: what they give for a sample never changes, and
is one vector a position. With it kept, an epoch runs the last m blocks and the head. These mix
positions, which Skip adapters cannot; so every position of a sample is kept, supervised or not.
The model is LitGPT's LoRA with plain blocks in its trunk, and merges as LoRA does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TypeAlias

import torch
from litgpt.config import Config
from litgpt.lora import GPT as LoraGPT
from litgpt.lora import Config as LoraConfig
from litgpt.model import Block
from torch import Tensor, nn

from skip2bench.models.skip import SkipGPT, check_no_dropout


class TopGPT(LoraGPT):  # type: ignore[misc]
    """LitGPT's GPT with LoRA on its last blocks; the trunk's state-dict keys are LitGPT's."""

    lm_head: nn.Module

    def __init__(self, config: LoraConfig, top_blocks: int) -> None:
        """Build the model with uninitialised weights; `top_blocks` from 1 to all but one."""
        super().__init__(config)
        assert 0 < top_blocks < config.n_layer
        self.trunk_blocks = config.n_layer - top_blocks
        """How many blocks are frozen and without an adapter."""
        plain = Config(**{item.name: getattr(config, item.name) for item in fields(Config)})
        for k in range(self.trunk_blocks):
            self.transformer.h[k] = Block(plain, k)
        self._is_released = False

    @property
    def feature_blocks(self) -> tuple[int, ...]:
        """The block whose output a cache holds: the trunk's last."""
        return (self.trunk_blocks - 1,)

    @property
    def whole_blocks(self) -> tuple[int, ...]:
        """As `feature_blocks`: there is no projection."""
        return self.feature_blocks

    @property
    def frozen_blocks(self) -> list[nn.Module]:
        """The blocks that `compute_features` runs."""
        return list(self.transformer.h)[: self.trunk_blocks]

    @torch.inference_mode()
    def compute_features(self, idx: Tensor) -> list[Tensor]:
        """Run the trunk on token ids (B, T): one tensor (B, T, d)."""
        top = range(self.trunk_blocks, self.config.n_layer)
        ln_f, head = self.transformer.ln_f, self.lm_head
        caught: list[Tensor] = []
        self.transformer.ln_f, self.lm_head = _Catching(caught), nn.Identity()
        try:
            with self._replaced(dict.fromkeys(top, _Passed())):
                self.forward(idx)
            return caught
        finally:
            self.transformer.ln_f, self.lm_head = ln_f, head

    @contextmanager
    def from_trunk(self, hidden: Tensor) -> Iterator[Tensor]:
        """Within, a forward pass starts behind the trunk, at what that gave, (B, T, d).

        Yields:
            Token ids (B, T) to call the model with; what they are does not matter.
        """
        embedding = self.transformer.wte
        trunk: dict[int, nn.Module] = dict.fromkeys(range(1, self.trunk_blocks), _Passed())
        self.transformer.wte = _NoEmbedding()
        try:
            with self._replaced({0: _Given(hidden), **trunk}):
                yield torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        finally:
            self.transformer.wte = embedding

    def check_is_deterministic(self) -> None:
        """Raise a Skip2BenchError where the same tokens may give other features."""
        check_no_dropout(nn.ModuleList(self.frozen_blocks))

    @property
    def is_released(self) -> bool:
        """True where embedding and trunk were dropped."""
        return self._is_released

    def release_backbone(self) -> None:
        """Drop embedding and trunk; from here on only `from_trunk` works."""
        self._is_released = True
        self.transformer.wte = _NoEmbedding()
        for k in range(self.trunk_blocks):
            self.transformer.h[k] = _Passed()

    @contextmanager
    def _replaced(self, blocks: dict[int, nn.Module]) -> Iterator[None]:
        own = {k: self.transformer.h[k] for k in blocks}
        for k, other in blocks.items():
            self.transformer.h[k] = other
        try:
            yield
        finally:
            for k, block in own.items():
                self.transformer.h[k] = block


class _Passed(nn.Module):
    """Stands in a block's place, and gives what it is given."""

    def forward(self, x: Tensor, *_others: object) -> Tensor:
        return x


class _Catching(nn.Module):
    """Stands before a head that is not there, and keeps what comes."""

    def __init__(self, caught: list[Tensor]) -> None:
        super().__init__()
        self._caught = caught

    def forward(self, x: Tensor) -> Tensor:
        self._caught.append(x)
        return x


class _Given(nn.Module):
    """Stands in a block's place, and gives what is known already."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self._hidden = hidden

    def forward(self, _x: Tensor, *_others: object) -> Tensor:
        return self._hidden


class _NoEmbedding(nn.Module):
    """Stands in the embedding's place where nothing is made of the tokens."""

    def forward(self, idx: Tensor) -> Tensor:
        return idx.float()


CachedGPT: TypeAlias = SkipGPT | TopGPT
"""Models with frozen blocks whose outputs a cache can hold."""
