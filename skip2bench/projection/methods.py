"""What training would take on a model and its data.

Weights, gradients and optimizer state come from the methods' own models, Skip-Cache from
`cache.plan`, and what is saved for backward from `saved`. The peak of a run adds what else is there
at the time: on a CPU the process with torch and LitGPT loaded, as this one is; Skip-Cache, where it
lives beside the model; and the tensors of a block that a batch passes without gradients, while a
cache is built or the model is validated.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from litgpt.model import GPT
from torch._subclasses.fake_tensor import FakeTensorMode

from skip2bench.cache.arrays import Tier
from skip2bench.cache.loss import portion_rows
from skip2bench.cache.plan import (
    CachePlan,
    CacheRoom,
    CacheUse,
    make_layout,
    plan_cache,
    share_of_free,
)
from skip2bench.cache.skip_cache import stored_counts, token_budget
from skip2bench.config.blocks import list_wanted
from skip2bench.config.commands import DoctorConfig
from skip2bench.config.methods import METHODS
from skip2bench.data.samples import count_steps
from skip2bench.io.units import parse_bytes
from skip2bench.machine.environment import weights_dtype
from skip2bench.machine.memory import read_memory
from skip2bench.models.base import HEAD, Base, is_head_tied, read_base_weights
from skip2bench.models.methods import MethodSettings, build_model, resolve_method
from skip2bench.models.skip import SkipGPT
from skip2bench.models.top import CachedGPT
from skip2bench.projection.saved import (
    count_saved_above,
    count_saved_on_features,
    count_saved_on_tokens,
    make_fake_base,
)
from skip2bench.projection.sizes import CacheProjection, MethodProjection, Projection
from skip2bench.projection.subject import Subject

_PLENTY_BYTES = sys.maxsize // 2
"""Stands for what is free where that is not known."""


def project(
    config: DoctorConfig,
    subject: Subject,
    device: torch.device,
    precision: str,
    micro_batch_size: int,
    free_bytes: Mapping[Tier, int | None],
) -> Projection:
    """Work out what every method would take.

    Args:
        config: Which methods and blocks.
        subject: On what.
        device: Where it would train.
        precision: Fabric's name of it.
        micro_batch_size: Samples in a forward pass on tokens.
        free_bytes: What is free now in each tier, before the model is loaded; None where that is
            not known.

    Raises:
        Skip2BenchError: a method or blocks that the model cannot have.
    """
    wanted = [
        resolve_method(name, blocks, subject.training, subject.model_config)
        for name in sorted(set(config.methods), key=list(METHODS).index)
        for blocks in dict.fromkeys(list_wanted(METHODS[name], config.blocks, config.top_blocks))
    ]
    data = subject.data
    run = prepare_projection(subject, device, precision, micro_batch_size, free_bytes)
    return Projection(
        model=subject.name,
        precision=precision,
        total_parameters=run.total_parameters,
        weights_bytes=run.weights_bytes,
        micro_batch_size=micro_batch_size,
        data=data.name if data else subject.training.data,
        data_problem=subject.data_problem,
        tokens_are_estimated=not subject.has_tokenizer,
        train_samples=len(data.train) if data else None,
        val_samples=len(data.val) if data else None,
        longest_tokens=subject.longest_tokens,
        methods=tuple(run.project(settings) for settings in wanted),
    )


def prepare_projection(
    subject: Subject,
    device: torch.device,
    precision: str,
    micro_batch_size: int,
    free_bytes: Mapping[Tier, int | None],
) -> "Projector":
    """What the projections of all methods share; the arguments are those of `project`."""
    dtype = weights_dtype(precision)
    with FakeTensorMode() as fake:
        parameters = sum(p.numel() for p in GPT(subject.model_config).parameters())
        base = make_fake_base(subject.model_config, device, dtype)
    return Projector(
        subject=subject,
        fake=fake,
        base=base,
        device=device,
        precision=precision,
        micro_batch_size=micro_batch_size,
        total_parameters=parameters,
        usable_bytes=_usable_beside(parameters * dtype.itemsize, free_bytes),
        shared_bytes=_count_tied(subject, dtype),
    )


@dataclass(frozen=True, kw_only=True)
class Projector:
    """Works out methods on one subject."""

    subject: Subject
    fake: FakeTensorMode
    """Entered around what runs on fake tensors, and not around what reads the data's real ones."""
    base: Base
    device: torch.device
    precision: str
    micro_batch_size: int
    total_parameters: int
    usable_bytes: dict[Tier, int | None]
    shared_bytes: int
    """See `MethodProjection`."""

    @property
    def weights_bytes(self) -> int:
        """Of the base."""
        return self.total_parameters * weights_dtype(self.precision).itemsize

    def project(self, settings: MethodSettings) -> MethodProjection:
        """Sizes of one method."""
        with self.fake:
            model = build_model(settings, self.base, self.device, seed=0)
        trained = [p for p in model.parameters() if p.requires_grad]
        shape = (self.micro_batch_size, self.subject.longest_tokens)
        positions = shape[0] * shape[1]
        caches: tuple[CacheProjection, ...] = ()
        plan, saved, problem = None, None, None
        try:
            if isinstance(model, CachedGPT) and settings.method.is_cached:
                plan = self._plan_cache(model, self.subject.training.cache_tier)
                caches = self._project_caches(model, plan)
                if isinstance(model, SkipGPT):
                    positions, saved = self._count_served(model, plan)
                else:
                    with self.fake:
                        saved = count_saved_above(model, self.device, self.precision, shape)
            else:
                with self.fake:
                    saved = count_saved_on_tokens(
                        settings, model, self.device, self.precision, shape
                    )
        except RuntimeError as error:  # shapes that depend on values, as in mixtures of experts
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        # a GPU's memory holds what lies on it, the machine's all but the disk's
        tiers = ("device",) if self.device.type == "cuda" else ("device", "ram")
        return MethodProjection(
            method=settings.method.name,
            label=settings.label,
            trainable_parameters=sum(p.numel() for p in trained),
            weights_bytes=sum(p.nbytes for p in model.parameters()),
            optimizer_bytes=3 * sum(p.nbytes for p in trained),
            saved_for_backward_bytes=saved,
            problem=problem,
            pass_positions=positions,
            process_bytes=read_memory(self.device) if self.device.type == "cpu" else 0,
            shared_bytes=0 if settings.method.weights else self.shared_bytes,
            cached_bytes=plan.nbytes if plan and plan.tier in tiers else 0,
            passing_bytes=_count_passing(model, self.device, self.base),
            caches=caches,
        )

    def _plan_cache(self, model: CachedGPT, tier: str) -> CachePlan | None:
        data, training = self.subject.data, self.subject.training
        if data is None:
            return None
        size, epochs = len(data.train), training.epochs
        use = CacheUse(
            train=data.train,
            train_ids=range(size),
            val=data.val,
            steps=count_steps(size, training.global_batch_size, epochs, None),
            passes=epochs,
            evaluations=2,
        )
        free = {
            name: _PLENTY_BYTES if usable is None else usable
            for name, usable in self.usable_bytes.items()
        }
        most = training.cache_max_bytes
        most_bytes = None if most is None else parse_bytes("cache_max_bytes", most)
        room = CacheRoom.of(self.device, free, tier, most_bytes)
        dtype = weights_dtype(self.precision)
        return plan_cache(model, use, room, dtype, training.cache_dtype, training.algebra)

    def _project_caches(
        self, model: CachedGPT, automatic: CachePlan | None
    ) -> tuple[CacheProjection, ...]:
        data, found = self.subject.data, []
        for tier, usable in self.usable_bytes.items():
            plan = self._plan_cache(model, tier)
            if plan is None or automatic is None or data is None:
                continue
            stored = [stored_counts(side, plan.layout) for side in (data.train, data.val)]
            found.append(
                CacheProjection(
                    tier=tier,
                    is_automatic=tier == automatic.tier,
                    positions=sum(map(sum, stored)),
                    position_bytes=plan.layout.position_bytes,
                    usable_bytes=usable,
                    recomputed_samples=plan.recomputed,
                )
            )
        return tuple(found)

    def _count_served(self, model: SkipGPT, plan: CachePlan | None) -> tuple[int, int]:
        """Positions of the largest pass from Skip-Cache, and the bytes it saves."""
        dtype = weights_dtype(self.precision)
        layout = plan.layout if plan else make_layout(model, dtype, dtype)
        algebra = plan.algebra_name if plan else "head"
        most = portion_rows(model, layout, algebra, self.device)
        smallest, largest = self.subject.batch_positions
        # of a batch between them, cut into even portions
        positions = min(most, -(-largest // -(-smallest // most)))
        with self.fake:
            saved = count_saved_on_features(
                model, layout, algebra, self.device, self.precision, positions
            )
        return positions, saved


def _count_tied(subject: Subject, dtype: torch.dtype) -> int:
    """Bytes of a head that is the embedding's own memory."""
    folder = subject.training.checkpoint_dir
    if folder is None:
        return 0
    weights = read_base_weights(folder)
    return weights[HEAD].numel() * dtype.itemsize if is_head_tied(weights) else 0


_MLP_TENSORS, _WIDE_TENSORS = 3, 6
"""Of a block at one time: both projections and their product; its input, its norm, queries, keys
and values together, attention's output, the sum."""


def _count_passing(model: GPT, device: torch.device, base: Base) -> int:
    """Bytes of the largest pass without gradients."""
    config, dtype = model.config, next(iter(base.weights.values())).dtype
    kept = len(model.feature_blocks) if isinstance(model, CachedGPT) else 0
    wide = _WIDE_TENSORS + 2 * kept  # outputs, and the same side by side
    numbers = _MLP_TENSORS * config.intermediate_size + wide * config.n_embd
    return token_budget(device) * int(numbers) * dtype.itemsize


def _usable_beside(
    weights_bytes: int, free_bytes: Mapping[Tier, int | None]
) -> dict[Tier, int | None]:
    """What a cache may take in each tier once the weights are in the nearest one."""
    nearest = next(iter(free_bytes))
    known = {
        tier: max(0, nbytes - (weights_bytes if tier == nearest else 0))
        for tier, nbytes in free_bytes.items()
        if nbytes is not None
    }
    shares = share_of_free(known)
    return {tier: shares.get(tier) for tier in free_bytes}
