"""One configuration's inference pass and training steps on a fixed batch of random tokens.

The steps are those of training: the portions, their losses and the passes are made by `portions`,
with the micro-batch as large as the batch. What `bench` times, what it measures the memory of, and
(on the meta device) what it counts the FLOPs of are the same few calls; whoever measures enters
something of its own around their phases. Every position is supervised: the most work a batch of
this size can give.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from lightning.fabric import Fabric
from litgpt.config import Config
from litgpt.model import GPT
from torch import Tensor, nn

from skip2bench.cache.algebra import Name
from skip2bench.cache.arrays import MemoryWriter
from skip2bench.cache.loss import ServedLoss, portion_rows
from skip2bench.cache.plan import CachePlan, CacheRoom, CacheUse, plan_cache
from skip2bench.cache.portions import (
    Portion,
    PortionSource,
    count_largest_saved,
    make_passes,
    token_portion,
)
from skip2bench.cache.skip_cache import BuildOrder, SampleIndex, SkipCache, fill
from skip2bench.cache.trunk import TrunkSource
from skip2bench.config.commands import BenchConfig
from skip2bench.config.train import TrainConfig
from skip2bench.data.samples import Samples
from skip2bench.machine.clock import counting_flops
from skip2bench.machine.environment import weights_dtype
from skip2bench.machine.out_of_memory import fitting
from skip2bench.models.base import Base
from skip2bench.models.methods import MethodSettings, build_empty_model, build_model
from skip2bench.models.skip import SkipGPT
from skip2bench.models.top import CachedGPT

Phase = Callable[[str], AbstractContextManager[Any]]
"""Entered around a phase, by its name."""

_PASSES = TrainConfig.epochs
"""How often a run serves a cached position, where it is not asked for anything else."""


class OnMeta:
    """Stands in place of a Fabric on the meta device, where nothing is computed."""

    device = torch.device("meta")

    def autocast(self) -> AbstractContextManager[None]:
        """No other precision: no figure there depends on it."""
        return nullcontext()

    def setup_module(self, module: nn.Module, *, move_to_device: bool) -> nn.Module:
        """The module as it is."""
        return module

    def backward(self, loss: Tensor) -> None:
        """Of a loss."""
        loss.backward()  # type: ignore[no-untyped-call]


class Workload:
    """A model, a batch, and training steps on them."""

    def __init__(
        self,
        settings: MethodSettings,
        model: GPT,
        fabric: Fabric | OnMeta,
        shape: tuple[int, int],
        *,
        seed: int = 0,
        plan: CachePlan | None = None,
    ) -> None:
        """Prepare the batch and, with a plan, the Skip-Cache of it.

        Args:
            settings: Of the method.
            model: Its model, on the device of `fabric`.
            fabric: Of the steps.
            shape: Of the batch, (B, T).
            seed: Of its tokens.
            plan: How the batch is cached; None where no step is made from Skip-Cache.
        """
        self.settings, self.model, self._fabric = settings, model, fabric
        device, generator = fabric.device, torch.Generator().manual_seed(seed)
        tokens = torch.randint(model.config.vocab_size, shape, generator=generator)
        self.input_ids = tokens.to(device)
        places = torch.arange(tokens.numel(), device=device).view(shape)
        self._rows, self._targets = places[:, :-1].flatten(), self.input_ids[:, 1:].flatten()
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self.trainable, lr=1e-3, fused=device.type in ("cpu", "cuda")
        )
        self._cached: Callable[[], Iterator[Portion]] | None = None
        if plan is not None:
            assert isinstance(model, CachedGPT)
            self._cached = _cache_batch(model, fabric, _as_samples(tokens), plan)
        # not moved: it is there
        self._module = fabric.setup_module(model, move_to_device=False)

    @property
    def is_cached(self) -> bool:
        """True where a step can be made from Skip-Cache."""
        return self._cached is not None

    @torch.no_grad()
    def forward(self) -> None:
        """Inference forward pass."""
        self.model.eval()
        with self._fabric.autocast():
            self.model(self.input_ids)

    def take_step(self, phase: Phase, *, cached: bool) -> None:
        """Make a step of training, from tokens or from Skip-Cache.

        Args:
            phase: Entered around each of the step's phases: of every portion `train_forward` and
                `backward`, or `cached_forward` and `cached_backward`, and in the end `optimizer`.
                Bringing rows of the cache to where they are used is in none of them.
            cached: From Skip-Cache.

        Raises:
            DoesNotFitError: memory ran out; it names the phase.
        """
        self.make_passes(phase, cached=cached)
        with fitting("optimizer"), phase("optimizer"):
            self.optimizer_step()

    def make_passes(self, phase: Phase, *, cached: bool) -> None:
        """The forward and backward passes of `take_step`; gradients are left in place."""
        names = {"forward": "train_forward", "backward": "backward"}
        if cached:
            names = {"forward": "cached_forward", "backward": "cached_backward"}

        @contextmanager
        def named(part: str) -> Iterator[None]:
            if part == "data":
                with fitting(names["forward"]):
                    yield
            else:
                with fitting(names[part]), phase(names[part]):
                    yield

        self.model.train()
        make_passes(self._portions(cached=cached), len(self._rows), named, self.backward)

    def load_tokens(self) -> Portion:
        """The batch as one micro-batch."""
        return token_portion(self._module, self.input_ids, self._rows, self._targets)

    def backward(self, loss: Tensor) -> None:
        """Backward pass of one portion."""
        self._fabric.backward(loss)

    def optimizer_step(self) -> None:
        """AdamW update of what trains, and reset of the gradients."""
        self._optimizer.step()
        self._optimizer.zero_grad()

    def count_saved_bytes(self, *, cached: bool) -> int:
        """Most bytes that autograd keeps for backward in one forward pass of a step."""
        self.model.train()
        return count_largest_saved(self._portions(cached=cached), self.model.parameters())

    def _portions(self, *, cached: bool) -> Iterator[Portion]:
        if cached:
            assert self._cached is not None
            yield from self._cached()
        else:
            yield self.load_tokens()


def _as_samples(tokens: Tensor) -> Samples:
    """Rows of tokens (B, T) as samples that are supervised everywhere."""
    return Samples(input_ids=list(tokens), labels=list(tokens))


def _cache_batch(
    model: CachedGPT,
    fabric: Fabric | OnMeta,
    samples: Samples,
    plan: CachePlan,
) -> Callable[[], Iterator[Portion]]:
    """The portions of a step on a cache of all samples.

    It is filled as in a run; on the meta device there is nothing to.
    """
    device = fabric.device
    order = BuildOrder.of(model, samples, range(len(samples)), device)
    index = SampleIndex.of(order.ids, samples, plan.layout)
    writer = MemoryWriter(plan.layout, index.rows, device)
    if device.type != "meta":
        with fabric.autocast():
            fill(writer, model, samples, order, device)
    cache = SkipCache(layout=plan.layout, arrays=writer.finish(), index=index)
    ids = range(len(samples))
    if not isinstance(model, SkipGPT):
        trunk = TrunkSource(fabric, model, samples, cache)
        return lambda: iter([trunk.load(ids)])
    max_rows = portion_rows(model, plan.layout, plan.algebra_name, device)
    loss = ServedLoss(model, plan.algebra_name)
    source = PortionSource(fabric, model, samples, cache, loss, max_rows)
    return lambda: source.portions(source.split(ids))


def plan_step(
    model: GPT,
    shape: tuple[int, int],
    device: torch.device,
    precision: str,
    algebra: Name | None = None,
) -> CachePlan:
    """How training would cache a batch, if every global batch of a run were like it.

    Args:
        model: Of a method with a cache; its weights are not looked at.
        shape: Of the batch, (B, T).
        device: Where the steps are made, and the cache is.
        precision: Fabric's name of it.
        algebra: None for the one that training would choose.
    """
    assert isinstance(model, CachedGPT)
    samples = _as_samples(torch.zeros(shape, dtype=torch.int64))
    use = CacheUse(
        train=samples,
        train_ids=range(len(samples)),
        val=Samples(input_ids=[], labels=[]),
        steps=_PASSES,
        passes=_PASSES,
    )
    room = CacheRoom.of(device, {"ram" if device.type == "cpu" else "device": sys.maxsize // 2})
    plan = plan_cache(model, use, room, weights_dtype(precision))
    if algebra is None or plan.algebra is None or algebra == plan.algebra.name:
        return plan
    n_logits = model.config.padded_vocab_size if algebra == "folded" else 0
    return replace(
        plan,
        algebra=replace(plan.algebra, name=algebra),
        layout=replace(plan.layout, n_logits=n_logits),
    )


def build_workload(
    settings: MethodSettings,
    base: Base,
    config: BenchConfig,
    device: torch.device,
    precision: str,
    *,
    with_cache: bool = True,
) -> Workload:
    """The workload of a method on a base model's weights, with the sizes and seed of `config`.

    `with_cache` off leaves out the Skip-Cache of a method that has one.
    """
    model = build_model(settings, base, device, config.seed)
    shape = (config.batch_size, config.seq_length)
    is_cached = with_cache and settings.method.is_cached
    return Workload(
        settings,
        model,
        Fabric(accelerator=device.type, devices=1, precision=precision),
        shape,
        seed=config.seed,
        plan=plan_step(model, shape, device, precision) if is_cached else None,
    )


def count_workload_flops(
    settings: MethodSettings,
    base_config: Config,
    shape: tuple[int, int],
    device: torch.device,
    precision: str,
    algebra: Name | None = None,
) -> dict[str, int | None]:
    """FLOPs of every phase, counted on the meta device: exact, and free of memory and time.

    Args:
        settings: Of the method.
        base_config: Of the base model.
        shape: Of the batch, (B, T).
        device: Where the steps are made, which with the precision decides their algebra.
        precision: Fabric's name of it.
        algebra: None for the one that training would choose there.

    Returns:
        `<phase>_flops` for forward, train_forward, backward, cached_forward and cached_backward;
        None where a phase does not exist, or where the architecture cannot run on the meta device
        (mixtures of experts). A loss that takes its gradient in the forward pass counts it there.
    """
    counts: dict[str, int | None] = dict.fromkeys(
        f"{phase}_flops"
        for phase in ("forward", "train_forward", "backward", "cached_forward", "cached_backward")
    )
    with torch.device("meta"):
        model = build_empty_model(settings, base_config)
    plan = (
        plan_step(model, shape, device, precision, algebra) if settings.method.is_cached else None
    )
    found: Counter[str] = Counter()

    @contextmanager
    def counted(phase: str) -> Iterator[None]:
        with counting_flops() as flops:
            yield
        found[f"{phase}_flops"] += flops()

    try:
        work = Workload(settings, model, OnMeta(), shape, plan=plan)
        with counted("forward"):
            work.forward()
        for cached in (False, True) if work.is_cached else (False,):
            work.make_passes(counted, cached=cached)
    except NotImplementedError:
        pass
    return counts | found
