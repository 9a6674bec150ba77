"""Skip-LoRA for language models: adapters from blocks' outputs to the end of the network.

For one position, with blocks k in S, rank r and a scale s, the logits are

    target "hidden":  W_head · ( ln_f(h_L) + s · Σ_k B_k A_k dropout(x_k) ),  B_k of shape (d, r)
    target "logits":  W_head · ln_f(h_L)   + s · Σ_k B_k A_k dropout(x_k),    B_k of shape (V, r)

h_k is the output of block k, h_L that of the last block. What an adapter reads of it is

    features "scaled":  x_k = h_k / size(h_L) / ρ_k    see `SkipGPT.last_size` and `calibration`
    features "raw":     x_k = h_k                      the paper's

since block outputs of real models differ in size by orders of magnitude. With a projection the
adapter of block k reads P_k x_k, of N numbers, P_k frozen (`projected`): it is the ordinary one of
A_k = A'_k P_k, and its Skip-Cache is smaller. With `share_b` all blocks have one B.
The backbone is frozen, so no gradient enters a block: backward goes through `lm_head` and the
adapters alone. The model is LitGPT's `GPT` with hooks, so generation with its KV cache works as it
does there. Source: Matsutani et al., arXiv:2410.21073, section 3.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from litgpt.config import Config
from litgpt.model import GPT, do_softcapping
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from skip2bench.config.run import Features, Target
from skip2bench.errors import Skip2BenchError
from skip2bench.models.dropout import dropped, keep_scale
from skip2bench.models.precise import in_float64

RELATIVE_SIZES = "relative_sizes"
"""Name of the buffer with the ρ_k."""
PROJECTION = "projection"
"""Name of the buffer with the P_k."""
FIXED = (RELATIVE_SIZES, PROJECTION)
"""Buffers that are found before the first step and stay with what trains."""


@dataclass(frozen=True, kw_only=True)
class SkipSettings:
    """Shape of the Skip adapters."""

    blocks: tuple[int, ...]
    """Blocks whose outputs are read, ascending."""
    r: int
    alpha: int
    dropout: float = 0.0
    target: Target = "hidden"
    features: Features = "scaled"
    share_b: bool = False
    """One B for all blocks."""
    projected: int | None = None
    """N: numbers that each block's output is projected to; None where adapters read all of it."""

    @property
    def width(self) -> int:
        """Numbers a position is reduced to by all A: K r, or r where B is shared."""
        return self.r if self.share_b else self.r * len(self.blocks)

    @property
    def scaling(self) -> float:
        """s: the factor on the sum of all adapters.

        alpha / r on raw features, as for LoRA. On scaled ones alpha / (4 sqrt(r K)): as rsLoRA
        (Kalajdzievski, arXiv:2312.03732) in the rank, and the same in the number of blocks, whose
        outputs are of one size and much alike; alpha / r for one block of rank 16. So one learning
        rate suits 1 block and all of them (docs/adapters.md has the measurements).
        """
        if self.features == "raw":
            return self.alpha / self.r
        return self.alpha / (4 * math.sqrt(self.r * len(self.blocks)))


class SkipAdapters(nn.Module):
    """One low-rank adapter a block, held as two stacked tensors.

    `lora_A` is (K, r, d), or (K, r, N) behind a projection, and starts as an nn.Linear's weight
    would; `lora_B` is (K, d_out, r), or (1, d_out, r) where it is shared, and starts at zero, so
    that the adapters add exactly nothing before the first update. `relative_sizes` (K,) are the ρ_k
    of scaled features, in float32; 1 until `calibration` has found them, and None for raw features.
    `projection` (K, N, d) are the P_k, NaN until they are found, and None without a projection.
    """

    relative_sizes: Tensor | None
    projection: Tensor | None

    def __init__(self, settings: SkipSettings, n_embd: int, d_out: int) -> None:
        super().__init__()
        n_blocks = len(settings.blocks)
        self.scaling, self.is_shared = settings.scaling, settings.share_b
        n_in = settings.projected or n_embd
        self.lora_A = nn.Parameter(torch.empty(n_blocks, settings.r, n_in))
        n_up = 1 if settings.share_b else n_blocks
        self.lora_B = nn.Parameter(torch.empty(n_up, d_out, settings.r))
        is_scaled = settings.features == "scaled"
        ones = torch.ones(n_blocks, dtype=torch.float32) if is_scaled else None
        self.register_buffer(RELATIVE_SIZES, ones)
        shape = (n_blocks, n_in, n_embd)
        # nothing of a projection that nobody has found looks like a result
        unknown = torch.full(shape, torch.nan) if settings.projected else None
        self.register_buffer(PROJECTION, unknown)
        self.dropout = settings.dropout
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise A uniformly within ±1/sqrt(d or N), as nn.Linear does, and B to zero."""
        bound = 1 / math.sqrt(self.lora_A.size(-1))
        nn.init.uniform_(self.lora_A, -bound, bound)
        nn.init.zeros_(self.lora_B)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SkipAdapters":
        """Move and convert as any module, but for the relative sizes, which stay in float32."""
        sizes = self.relative_sizes
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if sizes is not None:
            self.relative_sizes = sizes.to(self.lora_A.device)
        return self

    def forward(self, features: Sequence[Tensor], size: Tensor | None) -> Tensor:
        """Sum of all adapters.

        Args:
            features: K tensors (..., d), the outputs of the K blocks, or (..., N), what `project`
                made of them.
            size: (..., 1), that of the last block's output; None for raw features.

        Returns:
            s · Σ_k B_k A_k dropout(x_k), (..., d_out).
        """
        return nn.functional.linear(self.reduce(features, size), self.stack_B())

    def reduce(self, features: Sequence[Tensor], size: Tensor | None) -> Tensor:
        """All A_k dropout(x_k) side by side, (..., K r); their sum (..., r) where B is shared.

        What divides the features divides the few numbers that are made of them.
        """
        is_dropping = self.training and self.dropout > 0
        if is_dropping:
            features = [dropped(h, self.dropout) for h in features]
        parts = [
            nn.functional.linear(h, A) for h, A in zip(features, self.divided_A(), strict=True)
        ]
        return self.join(parts, size, is_dropping=is_dropping)

    def join(self, parts: list[Tensor], size: Tensor | None, *, is_dropping: bool) -> Tensor:
        """What `reduce` gives, of the K products A_k / ρ_k · h_k (..., r), masked or not."""
        reduced = torch.stack(parts).sum(0) if self.is_shared else torch.cat(parts, dim=-1)
        if is_dropping:
            reduced = reduced * keep_scale(self.dropout, reduced.device)
        return reduced if size is None else (reduced / size).to(reduced.dtype)

    def project(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """All P_k h_k (..., N) of the K blocks' outputs (..., d); these without a projection."""
        if self.projection is None:
            return list(outputs)
        pairs = zip(outputs, self.projection, strict=True)
        return [nn.functional.linear(h, rows) for h, rows in pairs]

    @torch.no_grad()
    def set_fixed(self, relative_sizes: Tensor | None, projection: Tensor) -> None:
        """Take over ρ_k (K,) and P_k (K, N, d), in the dtypes that the buffers have."""
        assert self.projection is not None
        self.projection.copy_(projection)
        if self.relative_sizes is not None and relative_sizes is not None:
            self.relative_sizes.copy_(relative_sizes)

    @torch.no_grad()
    def multiply_out(self) -> Tensor:
        """The A_k = A'_k P_k of the same adapters without a projection, (K, r, d), in float32."""
        A = self.lora_A.detach()
        if self.projection is None:
            return A.float()
        return torch.bmm(in_float64(A), in_float64(self.projection)).float().to(A.device)

    def divided_A(self) -> Tensor:
        """A_k / ρ_k, (K, r, d)."""
        if self.relative_sizes is None:
            return self.lora_A
        return (self.lora_A / self.relative_sizes[:, None, None]).to(self.lora_A.dtype)

    def stack_B(self) -> Tensor:
        """All s · B_k side by side, (d_out, K r): one product instead of K."""
        return self.lora_B.permute(1, 0, 2).flatten(1) * self.scaling


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
        self._inputs: list[Tensor] | None = None
        self._next_position = 0
        for block in {*settings.blocks, config.n_layer - 1}:
            self.transformer.h[block].register_forward_hook(partial(self._keep_output, block))
        if is_hidden:
            self.transformer.ln_f.register_forward_hook(self._add_to_hidden)
        self.replace_head(self.lm_head)

    def replace_head(self, head: nn.Module) -> None:
        """Have `head` stand as `lm_head`; with target "logits", the adapters add to its output."""
        self.lm_head = head
        if self.settings.target == "logits":
            head.register_forward_hook(self._add_to_logits)

    @property
    def feature_blocks(self) -> tuple[int, ...]:
        """Blocks whose outputs determine the logits: the adapters' and the last one, ascending."""
        return tuple(sorted({*self.settings.blocks, self.config.n_layer - 1}))

    @property
    def whole_blocks(self) -> tuple[int, ...]:
        """Of `feature_blocks`, those that a cache holds whole: behind a projection the last one."""
        return self.feature_blocks[-1:] if self.settings.projected else self.feature_blocks

    @property
    def frozen_blocks(self) -> list[nn.Module]:
        """The blocks that `compute_features` runs."""
        return list(self.transformer.h)

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

    @torch.inference_mode()
    def run_blocks(self, idx: Tensor) -> Tensor:
        """What enters the final norm, (B, T, d), for token ids (B, T); nothing else is kept."""
        caught: list[Tensor] = []
        with self._backbone_only():
            # not what comes back: some architectures put the logits' cap on it
            self.transformer.ln_f.register_forward_hook(lambda *call: caught.append(call[-1]))
            super().forward(idx)
        self._outputs.clear()
        return caught[0]

    def forward_features(self, features: Tensor, projected: Tensor | None = None) -> Tensor:
        """Logits from what `compute_features` gave, for any positions.

        The arithmetic is that of `forward`.

        Args:
            features: Outputs of `feature_blocks`, (n, K', d); beside `projected`, the last one's
                alone, (n, 1, d).
            projected: What `adapters.project` made of the adapted blocks' outputs, (n, K, N).

        Returns:
            Logits, (n, padded_vocab_size).
        """
        return self.cap(self.lm_head(self.final_hidden(features, projected)))

    def final_hidden(self, features: Tensor, projected: Tensor | None = None) -> Tensor:
        """What enters `lm_head`, (n, d); with target "hidden", the adapters' sum included."""
        last = features[:, -1]
        self._outputs = {self.config.n_layer - 1: last}
        self._inputs = self.read_inputs(features, projected)
        self._next_position = 0
        hidden: Tensor = self.transformer.ln_f(last)
        return hidden

    def read_inputs(self, features: Tensor, projected: Tensor | None) -> list[Tensor]:
        """What each adapter reads, K tensors (n, d) or (n, N); see `forward_features`."""
        if projected is not None:
            return list(projected.unbind(dim=1))
        columns = dict(zip(self.feature_blocks, features.unbind(dim=1), strict=True))
        return self.adapters.project([columns[block] for block in self.settings.blocks])

    def base_logits(self, last_output: Tensor) -> Tensor:
        """Logits (N, V) of the base model, before any cap, from the last block's output (N, d)."""
        logits: Tensor = self.lm_head.forward(self.base_hidden(last_output))  # below the hooks
        return logits

    def base_hidden(self, last_output: Tensor) -> Tensor:
        """What enters `lm_head` of the base model, (N, d), from the last block's output (N, d)."""
        hidden: Tensor = self.transformer.ln_f.forward(last_output)  # below the hooks: no adapter
        return hidden

    def fold_head(self) -> Tensor:
        """Everything that follows A, as one matrix (V, K r): s · W_head · B, or s · B.

        With it, logits are `base_logits` + `adapters.reduce(features)` · its transpose.
        """
        stacked = self.adapters.stack_B()
        return stacked if self.settings.target == "logits" else self.through_head(stacked)

    def through_head(self, stacked: Tensor) -> Tensor:
        """W_head · columns, (V, w) for (d, w)."""
        # through the module, not its weight, which may be quantised; without its bias
        head = self.lm_head.forward
        zero = torch.zeros(1, stacked.size(0), dtype=stacked.dtype, device=stacked.device)
        folded = head(stacked.t())
        has_bias = getattr(self.lm_head, "bias", None) is not None
        matrix: Tensor = (folded - head(zero) if has_bias else folded).t()
        return matrix

    def reduce(self, features: Tensor, projected: Tensor | None = None) -> Tensor:
        """What the adapters' A make of what `forward_features` takes: (n, `settings.width`)."""
        own = self.read_inputs(features, projected)
        return self.adapters.reduce(own, self.last_size(features[:, -1]))

    def last_size(self, last_output: Tensor) -> Tensor | None:
        """What scaled features are divided by, of the last block's output (..., d).

        Returns:
            (..., 1), in float32: the denominator of the final norm, sqrt(mean(h²) + eps), for a
            LayerNorm sqrt(var(h) + eps); None for raw features.
        """
        if self.settings.features == "raw":
            return None
        hidden = last_output.float()
        if self.config.norm_class_name == "LayerNorm":
            hidden = hidden - hidden.mean(dim=-1, keepdim=True)
        squares = hidden.square().mean(dim=-1, keepdim=True)
        return torch.sqrt(squares + self.config.norm_eps)

    def measure_relative_sizes(self, features: Tensor) -> Tensor:
        """Of all features (N, K', d), rms(h_k) / size(h_L) of every adapted block: (N, K).

        Raises:
            Skip2BenchError: blocks give what is not finite, the last one nothing but zeros at a
                position, or another one at all of them.
        """
        size = self.last_size(features[:, -1])
        assert size is not None
        columns = [self.feature_blocks.index(block) for block in self.settings.blocks]
        squares = torch.stack([features[:, k].float().square().mean(-1) for k in columns], dim=1)
        last = features[:, -1].float()
        if not bool(torch.isfinite(squares).all()) or not bool(torch.isfinite(last).all()):
            raise Skip2BenchError(
                "the base model's blocks give what is not finite; use --precision 32-true, or "
                "check the checkpoint"
            )
        if not bool((last != 0).any(dim=-1).all()):
            raise Skip2BenchError(
                "the base model's last block gives nothing but zeros at a position, so that "
                "features cannot be scaled by it; check the checkpoint, or use --features raw"
            )
        for block, is_zero in zip(self.settings.blocks, (squares == 0).all(dim=0), strict=True):
            if is_zero and len(squares):
                raise Skip2BenchError(
                    f"block {block} gives nothing but zeros, so that its features cannot be "
                    "scaled; leave it out of --blocks, or use --features raw"
                )
        return torch.sqrt(squares + self.config.norm_eps) / size

    def cap(self, logits: Tensor) -> Tensor:
        """Logits after the cap that some architectures put on them."""
        cap = self.config.final_logit_softcapping
        return logits if cap is None else do_softcapping(logits, cap)

    def check_is_deterministic(self) -> None:
        """Check that the same tokens always give the same features.

        Raises:
            Skip2BenchError: something random is in the backbone, so a cache would be inexact.
        """
        check_no_dropout(self.transformer)

    @property
    def is_released(self) -> bool:
        """True where embedding and blocks were dropped."""
        return len(self.transformer.h) == 0

    def release_backbone(self) -> None:
        """Drop embedding and blocks; from here on only the methods that take features work."""
        self.transformer.wte = _Released()
        self.transformer.h = nn.ModuleList()

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
        self._inputs = None
        self._next_position = 0

    def _update(self, pick: Callable[[Tensor], Tensor] = lambda output: output) -> Tensor:
        """What the adapters add, of the part of the blocks' outputs that `pick` takes."""
        last = pick(self._outputs[self.config.n_layer - 1])
        if self._inputs is None:
            outputs = [pick(self._outputs[block]) for block in self.settings.blocks]
            own = self.adapters.project(outputs)
        else:
            own = [pick(read) for read in self._inputs]
        update: Tensor = self.adapters(own, self.last_size(last))
        return update

    def _add_to_hidden(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output + self._update()

    def _add_to_logits(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        # LitGPT may call the head on chunks of the sequence, in order: each takes what follows
        start, length = self._next_position, output.size(-2)
        self._next_position = start + length
        return output + self._update(lambda h: h.narrow(-2, start, length))


class _Released(nn.Module):
    """Stands where the backbone was."""

    def forward(self, _idx: Tensor) -> Tensor:
        raise RuntimeError("the backbone was released; load the adapter on its base to run tokens")


def check_no_dropout(frozen: nn.Module) -> None:
    """Check that nothing in frozen layers is random while the model trains.

    Raises:
        Skip2BenchError: something is.
    """
    for name, module in frozen.named_modules():
        if isinstance(module, _DropoutNd) and module.p > 0:
            raise Skip2BenchError(
                f"the backbone is random in training (dropout {module.p} in {name}), so "
                "Skip-Cache would not be exact; use the method without a cache"
            )


def merge_skip_adapter() -> None:
    """Refuse to merge.

    Raises:
        Skip2BenchError: always; there is no weight of the base model that could hold the adapters.
    """
    raise Skip2BenchError(
        "a Skip adapter cannot be merged into weights of the same shapes: it adds functions of the "
        "inner blocks' outputs after the last block, and no weight of the base model sees those; "
        "'skip2bench export' makes an ordinary model of both that is a few channels wider"
    )
