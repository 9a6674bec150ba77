"""A model with Skip adapters as an ordinary model of a wider residual stream, exactly.

Every write into the residual stream is linear (embedding rows, `attn.proj`, `mlp.proj`). So further
channels can carry ε Â_k h_k along, with Â_k = A_k / ρ_k: block j, if j ≤ k, writes ε Â_k W beside
what it writes with W. No block reads them, norms see them as ε² only, and the final norm divides
them by the size of h_L, as scaled features are. A wider head then reads the adapters' update:

    width          d' = d + K r (r with one B), and dead channels up to a round number
    writers        W' = [ W ; ε Â_k W for k ≥ j, else 0 ], their biases alike
    readers        W' = [ W, 0 ]
    norms          γ' = [ f γ, 0 ], f = sqrt(d / d'); eps' = f² eps
    final norm     γ' = [ f γ, g ], g a power of two near f / ε
    lm_head        W' = [ W_head, f / (ε g) · s W_head B_k ... ]

The gain g brings the channels back to the size of the others where half precision or a quantised
product would lose them. What else architectures bring:

    norms behind attention and MLP   rows f ε Â diag(γ) W, whose gain is 1
    LayerNorm        writers are centred, since it subtracts the mean; one more channel holds the
                     negative sum of the others, so that they do not move the mean, and the head's
                     columns sum to zero, so that a rounding error of the mean does not move them
    LayerNorm without weights    readers and the head are f times as large, and g is 1
    q and k norms    of eps', so that q and k are made f times as large
    scaled embeddings    rows by sqrt(d) / sqrt(d'), as the model multiplies by sqrt(d')
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from litgpt.config import Config
from torch import Tensor

from skip2bench.errors import Skip2BenchError
from skip2bench.models.skip import SkipGPT, SkipSettings

CONTAMINATION = {
    torch.float32: 2.0**-30,
    torch.bfloat16: 2.0**-24,
    torch.float16: 2.0**-16,
    torch.int8: 2.0**-14,
}
"""Share of a norm's mean square that the added channels may have, by the dtype of the weights.

float16 and quantised blocks, whose scales are float16, have little range for small numbers, so
that ε must be larger there.
"""
_EXPONENTS = {torch.float32: 40, torch.bfloat16: 40, torch.float16: 12, torch.int8: 8}
"""The smallest ε is 2 to the minus this."""
_CHUNK = 1 << 25
"""Numbers of a weight that are multiplied at a time, in float64."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the channels of the wider stream lie: [model | dead | added | dead]."""

    d: int
    """Of the model."""
    start: int
    """First of those that are added."""
    added: int
    width: int
    """d'."""
    n_head: int
    """Of the exported model; more than the model's where its heads' size must be d' / n_head."""

    @property
    def f(self) -> float:
        """sqrt(d / d'): what a norm over d' channels is larger by."""
        return math.sqrt(self.d / self.width)


@dataclass(frozen=True, kw_only=True)
class OrdinaryModel:
    """What is exported: a model without adapters, in memory."""

    config: Config
    weights: dict[str, Tensor]
    """LitGPT's state dict."""
    layout: Layout | None
    """None where nothing was added."""
    epsilon: float | None


def plan_layout(
    config: Config,
    settings: SkipSettings,
    *,
    multiple_of: int = 8,
    start_multiple: int = 1,
    grow_heads: bool = False,
) -> Layout:
    """Lay out the channels.

    Args:
        config: Of the base.
        settings: Of the adapters.
        multiple_of: The width is one of it.
        start_multiple: The added channels begin at one of it, as blocks of a quantisation do.
        grow_heads: Add dead heads until n_head · head_size is the width, for formats that have no
            size of a head of its own.

    Raises:
        Skip2BenchError: dead heads cannot be added to grouped queries.
    """
    is_centred = config.norm_class_name == "LayerNorm"
    added = settings.width + is_centred
    start = _round_up(config.n_embd, start_multiple)
    if not grow_heads:
        width = _round_up(start + added, multiple_of)
        return Layout(d=config.n_embd, start=start, added=added, width=width, n_head=config.n_head)
    if config.n_query_groups != config.n_head or (
        config.norm_qk and config.norm_qk_type != "default"
    ):
        raise Skip2BenchError(
            f"{config.name} ties its heads to each other, and its format has no size of a head: "
            "it cannot be widened there; export --to litgpt can"
        )
    size = config.head_size
    assert size is not None
    width = _round_up(start + added, math.lcm(size, multiple_of))
    return Layout(d=config.n_embd, start=start, added=added, width=width, n_head=width // size)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def check_can_widen(config: Config, settings: SkipSettings) -> None:
    """Check that a Skip adapter is exactly an ordinary model.

    Raises:
        Skip2BenchError: it is not, and why.
    """
    retrain = "a few cached epochs with the defaults make an adapter that can be exported"
    if settings.features == "raw":
        raise Skip2BenchError(
            "the adapter reads raw features (--features raw), which no norm of an ordinary model "
            f"divides by the size of the last block's output; {retrain}"
        )
    if settings.target == "logits":
        raise Skip2BenchError(
            "the adapter adds to the logits beside the head (--target logits), which an ordinary "
            f"checkpoint has no place for; {retrain}"
        )
    if config.latent_attention is not None:
        raise Skip2BenchError(
            f"{config.name} has latent attention, whose own norms lie between reading and writing: "
            "it cannot be exported; keep the adapter beside its base"
        )
    has_bare_readers = not config.norm_1 or not config.norm_2
    if config.norm_class_name == "LayerNorm" and has_bare_readers:
        raise Skip2BenchError(
            f"{config.name} reads its stream without a norm in front of it, but subtracts means "
            "elsewhere: it cannot be exported; keep the adapter beside its base"
        )


def choose_epsilon(model: SkipGPT, dtype: torch.dtype, spread: float) -> float:
    """The power of two that the added channels are multiplied by.

    Of a position of unit size, A_k makes numbers whose mean square is about |A_k|² / d. So their
    share of what a norm sees is at most about ε² |A|² / d, times how much smaller a block's output
    is than the last one's.

    Args:
        model: With its adapters.
        dtype: Of the exported weights; int8 for quantised blocks.
        spread: Largest ratio of the mean square of h_L to that of a block's output that is read.
    """
    size = float(model.adapters.lora_A.detach().double().square().sum())
    share = max(size / model.config.n_embd, 1e-30) * max(spread, 1.0)
    exponent = math.floor(0.5 * math.log2(CONTAMINATION[dtype] / share))
    return 2.0 ** max(min(exponent, 0), -_EXPONENTS[dtype])


def widened_config(config: Config, layout: Layout) -> Config:
    """LitGPT's configuration of the exported model."""
    is_grown = layout.n_head != config.n_head
    return replace(
        config,
        n_embd=layout.width,
        n_head=layout.n_head,
        n_query_groups=layout.n_head if is_grown else config.n_query_groups,
        norm_eps=config.norm_eps * layout.d / layout.width,
    )


class Widening:
    """The weights of the exported model, one after the other."""

    def __init__(self, model: SkipGPT, layout: Layout, epsilon: float, dtype: torch.dtype) -> None:
        """Nothing is computed yet.

        Args:
            model: With its adapters; the weights are made where it lies.
            layout: Of its channels.
            epsilon: What the added channels are multiplied by, a power of two.
            dtype: Of the weights.
        """
        check_can_widen(model.config, model.settings)
        self._model, self._config, self._layout = model, model.config, layout
        self._epsilon, self._dtype = epsilon, dtype
        self._is_centred = self._config.norm_class_name == "LayerNorm"
        norm = model.transformer.ln_f
        self._has_offset = bool(getattr(norm, "add_unit_offset", False))
        self._has_weights = getattr(norm, "weight", None) is not None

    @torch.no_grad()
    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Names of LitGPT's state dict, and tensors of the dtype."""
        state = {
            name: value
            for name, value in self._model.state_dict().items()
            if not name.startswith("adapters.")
        }
        for name, value in state.items():
            yield name, self._convert(name, value, state).to(self._dtype)

    def _convert(self, name: str, value: Tensor, state: dict[str, Tensor]) -> Tensor:
        config, layout = self._config, self._layout
        first, *rest = name.removeprefix("transformer.").split(".")
        if first == "wte":
            scale = (
                math.sqrt(config.n_embd) / math.sqrt(layout.width)
                if config.scale_embeddings
                else 1.0
            )
            return self._write(value.t(), block=-1).t() * scale
        if first == "ln_f":
            return self._norm(rest[-1], value, self._final_gain)
        if first == "lm_head":
            return self._head(value) if rest[-1] == "weight" else value
        block, part = int(rest[0]), rest[1:]
        kind = part[-1]
        if part[0].startswith(("norm_", "post_")):
            # one behind attention or MLP lets all through
            return self._norm(kind, value, 1.0 if part[0].startswith("post_") else 0.0)
        if part[-2] == "proj":
            written = self._write(value, block, behind=_gain_behind(part[0], block, state, self))
            return (
                self._dead_columns(written) if part[0] == "attn" and kind == "weight" else written
            )
        if part[-2] == "qkv":
            return self._queries(value, kind)
        if part[-2].startswith("norm_"):  # of q and k
            return value
        if kind == "weight":
            return self._read(value)
        return value

    def _write(self, weight: Tensor, block: int, behind: Tensor | None = None) -> Tensor:
        """A writer's weight (d, n) or bias (d,), with what it writes into the added channels.

        Args:
            weight: Of `block`, -1 for the embedding.
            block: Adapters of blocks before it do not see it.
            behind: Gain (d,) of the norm behind it, if there is one.
        """
        layout = self._layout
        flat = weight.unsqueeze(-1) if weight.dim() == 1 else weight
        rows = self._rows(block)
        if behind is not None:
            rows = rows * behind.double() * layout.f
        result = weight.new_zeros(layout.width, flat.size(1), dtype=_kept(weight.dtype))
        added = slice(layout.start, layout.start + layout.added)
        columns = max(1, _CHUNK // flat.size(0))
        for start in range(0, flat.size(1), columns):
            part = flat[:, start : start + columns]
            wide = part.double()
            own = wide - wide.mean(dim=0) if self._is_centred and behind is None else part
            result[: layout.d, start : start + columns] = own
            result[added, start : start + columns] = rows @ wide
        return result.squeeze(-1) if weight.dim() == 1 else result

    def _rows(self, block: int) -> Tensor:
        """ε Â_k of the adapters whose block has not passed, else 0: (added, d)."""
        settings = self._model.settings
        seen = self._divided_A.new_tensor([float(k >= block) for k in settings.blocks])
        parts = self._divided_A * seen[:, None, None] * self._epsilon
        rows = parts.sum(0) if settings.share_b else parts.flatten(0, 1)
        return torch.cat([rows, -rows.sum(0, keepdim=True)]) if self._is_centred else rows

    @cached_property
    def _divided_A(self) -> Tensor:
        """Â_k = A_k / ρ_k, (K, r, d)."""
        adapters = self._model.adapters
        assert adapters.relative_sizes is not None
        divided: Tensor = adapters.lora_A.detach().double()
        return divided / adapters.relative_sizes.double()[:, None, None]

    def _read(self, weight: Tensor) -> Tensor:
        """A reader's weight (n, d): it does not see the added channels."""
        pad = self._layout.width - weight.size(1)
        weight = weight if self._has_weights else weight.double() * self._layout.f
        return torch.nn.functional.pad(weight, (0, pad))

    def _queries(self, value: Tensor, kind: str) -> Tensor:
        """Queries, keys and values (n, d), or their bias (n,), with dead heads after each."""
        config, layout = self._config, self._layout
        size = config.head_size
        assert size is not None
        assert config.n_query_groups is not None
        counts = (config.n_head, config.n_query_groups, config.n_query_groups)
        parts = list(torch.split(value, [count * size for count in counts]))
        if config.norm_qk and self._dtype == torch.float32:
            parts[:2] = [part.double() * layout.f for part in parts[:2]]
            parts[2] = parts[2].double()
        dead = (layout.n_head - config.n_head) * size
        shape = (dead, *value.shape[1:])
        joined = torch.cat([torch.cat([part, part.new_zeros(shape)]) for part in parts])
        return self._read(joined) if kind == "weight" else joined

    def _dead_columns(self, weight: Tensor) -> Tensor:
        """What attention writes, of dead heads too."""
        assert self._config.head_size is not None
        pad = (self._layout.n_head - self._config.n_head) * self._config.head_size
        return torch.nn.functional.pad(weight, (0, pad))

    def gain(self, weight: Tensor) -> Tensor:
        """What a norm multiplies by, of its weight."""
        return weight.double() + 1 if self._has_offset else weight.double()

    def _norm(self, kind: str, value: Tensor, added: float) -> Tensor:
        """A norm's weight or bias (d,), with the gain of the added channels."""
        layout = self._layout
        result = value.new_zeros(layout.width, dtype=torch.float64)
        if kind != "weight":
            result[: layout.d] = value
            return result
        result[: layout.d] = self.gain(value) * layout.f
        result[layout.start : layout.start + layout.added] = added
        return result - 1 if self._has_offset else result

    @cached_property
    def _final_gain(self) -> float:
        """g, which the dtype holds exactly, the norm's offset included."""
        if not self._has_weights:
            return 1.0
        gain = 2.0 ** round(math.log2(self._layout.f / self._epsilon))
        return gain + 1 if self._has_offset else gain

    def _head(self, weight: Tensor) -> Tensor:
        """[W_head, f / (ε g) · s W_head B_k ...], (V, d')."""
        layout, rows = self._layout, weight.size(0)
        columns = self._model.adapters.stack_B().detach().double()
        columns = columns * (layout.f / (self._epsilon * self._final_gain))
        result = weight.new_zeros(rows, layout.width, dtype=_kept(weight.dtype))
        result[:, : layout.d] = weight if self._has_weights else weight.double() * layout.f
        added = slice(layout.start, layout.start + layout.added)
        step = max(1, _CHUNK // weight.size(1))
        for start in range(0, rows, step):
            folded = weight[start : start + step].double() @ columns
            if self._is_centred:
                folded = torch.nn.functional.pad(folded, (0, 1))
                folded = folded - folded.mean(dim=1, keepdim=True)
            result[start : start + step, added] = folded.to(result.dtype)
        return result


def _kept(dtype: torch.dtype) -> torch.dtype:
    """What an intermediate weight is held in: nothing of float32 is lost before the last step."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _gain_behind(
    part: str, block: int, state: dict[str, Tensor], widening: Widening
) -> Tensor | None:
    """Gain of the norm behind a block's attention or MLP; None where there is none."""
    name = "post_attention_norm" if part == "attn" else "post_mlp_norm"
    weight = state.get(f"transformer.h.{block}.{name}.weight")
    return None if weight is None else widening.gain(weight)
