"""What of a run goes into Skip-Cache, where it lives, and whether that pays; decided beforehand."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from skip2bench.cache.algebra import Algebra, Name, Sizes, Use, choose_algebra, count_costs
from skip2bench.cache.arrays import STORED_DTYPES, Layout, Tier
from skip2bench.cache.skip_cache import stored_counts
from skip2bench.data.samples import Samples
from skip2bench.errors import Skip2BenchError
from skip2bench.io.units import format_amount, format_bytes
from skip2bench.machine.hardware import read_memory
from skip2bench.models.skip import SkipGPT
from skip2bench.models.top import CachedGPT

_SHARE_OF_FREE = {"device": 0.7, "ram": 0.7, "disk": 0.9}
"""Of what is free, how much a cache may take; the rest is for the training itself."""


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """The decision."""

    tier: Tier
    layout: Layout
    algebra: Algebra | None
    """How losses come from what is served; None where blocks follow."""
    train_ids: list[int]
    """Training samples that are cached."""
    val_ids: list[int]
    """Validation samples that are cached."""
    recomputed: int
    """Samples of both sides that do not fit: they pass the backbone each time they are used."""
    nbytes: int
    """Bytes of both caches."""
    capacity_bytes: int
    may_move: bool = False
    """True where nobody asked for the tier: a cache in RAM may move to the device when it can."""

    @property
    def algebra_name(self) -> Name:
        """Of the algebra; "head" where there is none to choose."""
        return self.algebra.name if self.algebra else "head"

    @property
    def is_complete(self) -> bool:
        """True where no sample is recomputed, and so no backbone needed after building."""
        return self.recomputed == 0


@dataclass(frozen=True, kw_only=True)
class CacheUse:
    """What the run will ask of the cache."""

    train: Samples
    train_ids: Sequence[int]
    """Training samples that the run uses."""
    val: Samples
    steps: int
    passes: float
    """How often a training sample is used, on average."""
    own_val_ids: Sequence[int] | None = None
    """Validation samples of this rank; None for all of them."""
    evaluations: int = 0
    """How often the validation samples are evaluated."""

    @property
    def val_ids(self) -> Sequence[int]:
        """Validation samples that the run uses."""
        return range(len(self.val)) if self.own_val_ids is None else self.own_val_ids

    def count_rows(self, layout: Layout) -> int:
        """Positions of both sides: what a whole cache holds."""
        of_train, of_val = stored_counts(self.train, layout), stored_counts(self.val, layout)
        return sum(of_train[i] for i in self.train_ids) + sum(of_val[i] for i in self.val_ids)


@dataclass(frozen=True, kw_only=True)
class CacheRoom:
    """Where the caches of a run may live."""

    device: torch.device
    """Where it trains."""
    capacity_bytes: Mapping[Tier, int]
    """What both caches may take in each tier, the nearest to the device first."""
    may_move: bool
    """See `CachePlan`."""

    @classmethod
    def of(
        cls,
        device: torch.device,
        free: Mapping[Tier, int],
        tier: str = "auto",
        max_bytes: int | None = None,
    ) -> "CacheRoom":
        """What is free, as far as it is to be used.

        Args:
            device: Where the run trains.
            free: What a cache may take in each tier, the nearest first; see `measure_free`.
            tier: auto, device, ram or disk.
            max_bytes: Cap on the bytes of both caches; None for what the tier has.
        """
        wanted = "ram" if (tier, device.type) == ("device", "cpu") else tier
        capacity = {
            name: nbytes if max_bytes is None else min(nbytes, max_bytes)
            for name, nbytes in free.items()
            if wanted in ("auto", name)
        }
        return cls(device=device, capacity_bytes=capacity, may_move=tier == "auto")


def plan_cache(
    model: CachedGPT,
    use: CacheUse,
    room: CacheRoom,
    compute_dtype: torch.dtype,
    dtype: str = "model",
    algebra: Name | Literal["auto"] = "auto",
) -> CachePlan:
    """Decide tier, algebra and samples.

    Args:
        model: A Skip model, or LoRA on the last blocks.
        use: What the run needs.
        room: Where the caches may live.
        compute_dtype: Of the backbone's activations.
        dtype: model, bf16 or int8.
        algebra: head, folded, or auto: the one that costs less, if its cache leaves a run's memory
            below that of traditional LoRA.

    Raises:
        Skip2BenchError: the folded algebra is asked for, and its base logits have no room.
    """
    capacity = room.capacity_bytes
    layout = make_layout(model, STORED_DTYPES.get(dtype, compute_dtype), compute_dtype)
    needed = use.count_rows(layout) * layout.position_bytes
    chosen = next(
        (name for name in capacity if needed <= capacity[name]),
        max(capacity, key=capacity.__getitem__),
    )
    choice = None
    if isinstance(model, SkipGPT):
        choice, layout = _settle_algebra(model, use, layout, room, chosen, algebra)
    limit = capacity[chosen] // layout.position_bytes
    train_ids, used = _take(use.train, use.train_ids, limit, layout)
    val_ids, used_by_val = _take(use.val, use.val_ids, limit - used, layout)
    return CachePlan(
        tier=chosen,
        layout=layout,
        algebra=choice,
        train_ids=train_ids,
        val_ids=val_ids,
        recomputed=len(use.train_ids) + len(use.val_ids) - len(train_ids) - len(val_ids),
        nbytes=(used + used_by_val) * layout.position_bytes,
        capacity_bytes=capacity[chosen],
        may_move=room.may_move,
    )


def _settle_algebra(
    model: SkipGPT,
    use: CacheUse,
    layout: Layout,
    room: CacheRoom,
    tier: Tier,
    algebra: Name | Literal["auto"],
) -> tuple[Algebra, Layout]:
    """The algebra, and the layout that it needs; see `plan_cache`."""
    choice = _choose_algebra(model, use, layout, room.device, tier)
    with_logits = replace(layout, n_logits=model.config.padded_vocab_size)
    needed = use.count_rows(layout) * with_logits.position_bytes
    capacity = room.capacity_bytes[tier]
    # base logits of less precision would not be the model's; nor is a larger cache worth samples
    # that are recomputed
    fits = layout.dtype == layout.compute_dtype and needed <= capacity
    if algebra == "folded" and not fits:
        raise Skip2BenchError(
            f"algebra folded caches {format_bytes(needed)} in the model's own dtype, and {tier} "
            f"has room for {format_bytes(capacity)}; use --algebra head, a larger "
            "--cache-max-bytes, or --cache-dtype model"
        )
    if algebra != "auto":
        choice = replace(choice, name=algebra)
    elif choice.name == "folded":
        is_small = needed <= _bytes_of_lora(model, use, layout)
        choice = choice if fits and is_small else replace(choice, name="head")
    return choice, with_logits if choice.name == "folded" else layout


def make_layout(model: CachedGPT, dtype: torch.dtype, compute_dtype: torch.dtype) -> Layout:
    """What a model reads of a cache: its blocks' outputs, behind a projection only the last whole.

    Args:
        model: Its weights are not looked at.
        dtype: Of what is stored.
        compute_dtype: Of the backbone's activations.
    """
    skip = model.settings if isinstance(model, SkipGPT) else None
    projected = (skip.projected if skip else None) or 0
    return Layout(
        blocks=model.whole_blocks,
        n_embd=model.config.n_embd,
        dtype=dtype,
        compute_dtype=compute_dtype,
        projected=projected,
        projected_blocks=skip.blocks if skip and projected else (),
        whole_samples=skip is None,
    )


def measure_free(device: torch.device, folder: Path) -> dict[Tier, int]:
    """Bytes that a cache may take in each tier, the nearest to the device first."""
    available = read_memory().available_bytes
    free: dict[Tier, int] = {}
    if device.type == "cuda":
        # what the allocator holds and does not use is free for a cache too
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free["device"] = torch.cuda.mem_get_info(device)[0] + held
    elif device.type == "mps":
        free["device"] = available
    free["ram"] = available
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free["disk"] = shutil.disk_usage(there).free
    return share_of_free(free)


def free_of_rank(device: torch.device, folder: Path, local_size: int) -> dict[Tier, int]:
    """As `measure_free`, for one of `local_size` processes that share a machine's RAM and disk."""
    return {
        name: nbytes if name == "device" else nbytes // local_size
        for name, nbytes in measure_free(device, folder).items()
    }


def share_of_free(free: dict[Tier, int]) -> dict[Tier, int]:
    """Of the bytes that are free in each tier, those that a cache may take."""
    return {name: int(nbytes * _SHARE_OF_FREE[name]) for name, nbytes in free.items()}


def describe_projection(
    plan: CachePlan, passes: float, build_seconds: float, serve_seconds: float
) -> str:
    """What building will cost and when it has paid for itself, in one line.

    Args:
        plan: What is cached.
        passes: How often a training sample is used.
        build_seconds: Projected for the training samples.
        serve_seconds: Projected for reading all of them from the cache once.
    """
    share = (
        ""
        if plan.is_complete
        else f"; no room for {format_amount(plan.recomputed, 'sample')}: recomputed"
    )
    epoch = break_even_epoch(build_seconds, serve_seconds)
    if epoch is None:
        verdict = (
            "it will not pay: reading it takes longer than computing anew; use the method "
            "without it"
        )
    elif epoch > passes:
        verdict = (
            f"it will not pay: it needs {epoch} epochs and this run has {passes:.3g}; "
            "use the method without it"
        )
    else:
        verdict = f"it has paid for itself in epoch {epoch}"
    return (
        f"Skip-Cache: {format_bytes(plan.nbytes)} on {plan.tier}, validation included{share}; "
        f"about {build_seconds:.0f} s to build; {verdict}"
    )


def break_even_epoch(forward_seconds: float, serve_seconds: float) -> int | None:
    """First epoch by whose end a cache has cost less than forward passes would have.

    Args:
        forward_seconds: One forward pass over the cached samples, which building costs too.
        serve_seconds: Reading them from the cache once.

    Returns:
        The least e with forward + e · serve < e · forward; None where there is none.
    """
    saved = forward_seconds - serve_seconds
    if saved <= 0:
        return None
    return math.floor(forward_seconds / saved) + 1


def _choose_algebra(
    model: SkipGPT, use: CacheUse, layout: Layout, device: torch.device, tier: Tier
) -> Algebra:
    config, settings = model.config, model.settings
    sizes = Sizes(
        n_adapters=len(settings.blocks),
        rank=settings.r,
        width=settings.width,
        n_embd=config.n_embd,
        vocabulary=config.padded_vocab_size,
        stored_blocks=len(layout.blocks),
        feature_bytes=layout.dtype.itemsize,
        logit_bytes=layout.compute_dtype.itemsize,
        adds_to_logits=settings.target == "logits",
        projected=layout.projected,
    )
    supervised, of_val = use.train.supervised_counts, use.val.supervised_counts
    rows = max(1, sum(supervised[i] for i in use.train_ids))  # a rank may have no sample
    costs = count_costs(
        sizes,
        Use(
            positions_per_step=rows * use.passes / use.steps,
            passes=use.passes,
            val_ratio=sum(of_val[i] for i in use.val_ids) / rows,
            evaluations=use.evaluations,
        ),
    )
    return choose_algebra(costs, device.type, tier)


_LEAST_KEPT = 10
"""Tensors (T, d) that autograd keeps of a Llama block at the very least: inputs of both norms and
what these give, queries, keys and values, attention's output, and two of the MLP's width."""
_SMALL_BYTES = 64 * 2**20
"""Lost in what a process with torch in it takes anyway."""


def _bytes_of_lora(model: SkipGPT, use: CacheUse, layout: Layout) -> int:
    """What a cache may take at most for a run to stay below LoRA's memory.

    Both hold the weights; LoRA also what its blocks keep of the longest sample for backward.
    """
    longest = max((use.train.lengths[i] for i in use.train_ids), default=0)
    kept = int(model.config.n_layer) * longest * _LEAST_KEPT * layout.n_embd
    return max(_SMALL_BYTES, kept * layout.compute_dtype.itemsize)


def _take(
    samples: Samples, ids: Sequence[int], limit: int, layout: Layout
) -> tuple[list[int], int]:
    """Samples whose rows fit, those that save the most forward tokens a row first, and their rows.

    Without a limit that bites, all of them.
    """
    lengths, counts = samples.lengths, stored_counts(samples, layout)
    taken, used = [], 0
    for i in sorted(ids, key=lambda i: (-lengths[i] / counts[i], i)):
        if used + counts[i] <= limit:
            taken.append(i)
            used += counts[i]
    return sorted(taken), used
