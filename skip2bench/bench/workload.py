"""One configuration's forward, backward and optimizer step on a fixed batch of random tokens.

What `bench` times, what it measures the memory of, and (on the meta device) what it counts the
FLOPs of are the same few calls. Every position is supervised: the most work a batch of this size
can give.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from lightning.fabric import Fabric
from litgpt.config import Config
from litgpt.model import GPT
from torch import Tensor, nn

from skip2bench.config.commands import BenchConfig
from skip2bench.machine.clock import count_flops
from skip2bench.machine.memory import count_saved_bytes
from skip2bench.models.base import Base
from skip2bench.models.methods import MethodSettings, build_empty_model, build_model
from skip2bench.models.skip import SkipGPT


class Workload:
    """A model, a batch, and the phases of a training step on them."""

    def __init__(
        self,
        settings: MethodSettings,
        model: GPT,
        *,
        batch_size: int,
        seq_length: int,
        seed: int,
        device: torch.device,
        precision: str = "32-true",
        with_cache: bool = True,
    ) -> None:
        """Prepare the batch and, for a cached method, its features (unless `with_cache` is off)."""
        self.settings = settings
        self.model = model
        is_meta = device.type == "meta"
        self._fabric = (
            None if is_meta else Fabric(accelerator=device.type, devices=1, precision=precision)
        )
        generator = None if is_meta else torch.Generator().manual_seed(seed)
        vocabulary = model.config.vocab_size
        self.input_ids = torch.randint(
            vocabulary, (batch_size, seq_length), generator=generator
        ).to(device)
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self.trainable, lr=1e-3, fused=device.type in ("cpu", "cuda")
        )
        self._features: Tensor | None = None
        if with_cache and settings.method.is_cached and isinstance(model, SkipGPT):
            model.eval()
            with self._autocast():
                outputs = model.compute_features(self.input_ids)
            stacked = torch.stack([h[:, :-1].flatten(0, 1) for h in outputs], dim=1)
            # a plain tensor, that autograd may save
            self._features = torch.empty_like(stacked).copy_(stacked)

    @property
    def is_cached(self) -> bool:
        """True where a step can run from cached features."""
        return self._features is not None

    @torch.no_grad()
    def forward(self) -> None:
        """Inference forward pass."""
        self.model.eval()
        with self._autocast():
            self.model(self.input_ids)

    def train_forward(self) -> Tensor:
        """Forward pass with autograd and the loss."""
        self.model.train()
        with self._autocast():
            logits = self.model(self.input_ids)
        return self._mean_loss(logits[:, :-1].flatten(0, 1))

    def cached_forward(self) -> Tensor:
        """The same loss from cached features; no block runs."""
        assert self._features is not None
        assert isinstance(self.model, SkipGPT)
        self.model.train()
        with self._autocast():
            logits = self.model.forward_features(self._features)
        return self._mean_loss(logits)

    def backward(self, loss: Tensor) -> None:
        """Backward pass; gradients are left in place."""
        loss.backward()  # type: ignore[no-untyped-call]

    def optimizer_step(self) -> None:
        """AdamW update of what trains, and reset of the gradients."""
        self._optimizer.step()
        self._optimizer.zero_grad()

    def list_phases(self, *, cached: bool) -> dict[str, Callable[[], None]]:
        """The calls of one training step by phase, to be made in their order."""
        losses: list[Tensor] = []
        prefix, forward = ("cached_", self.cached_forward) if cached else ("", self.train_forward)
        return {
            f"{prefix or 'train_'}forward": lambda: losses.append(forward()),
            f"{prefix}backward": lambda: self.backward(losses.pop()),
            "optimizer": self.optimizer_step,
        }

    def count_saved_bytes(self, *, cached: bool) -> int:
        """Bytes that autograd keeps for backward in one step."""
        excluded = [*self.model.parameters(), self.input_ids]
        if self._features is not None:
            excluded.append(self._features)
        return count_saved_bytes(self.cached_forward if cached else self.train_forward, excluded)

    def _mean_loss(self, logits: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits.float(), self.input_ids[:, 1:].flatten())

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.enable_grad() if self._fabric is None else self._fabric.autocast()


def build_workload(
    settings: MethodSettings,
    base: Base,
    config: BenchConfig,
    device: torch.device,
    precision: str,
    *,
    with_cache: bool = True,
) -> Workload:
    """The workload of a method on a base model's weights, with the sizes and seed of `config`."""
    return Workload(
        settings,
        build_model(settings, base, device, config.seed),
        batch_size=config.batch_size,
        seq_length=config.seq_length,
        seed=config.seed,
        device=device,
        precision=precision,
        with_cache=with_cache,
    )


def count_workload_flops(
    settings: MethodSettings, base_config: Config, batch_size: int, seq_length: int
) -> dict[str, int | None]:
    """FLOPs of every phase, counted on the meta device: exact, and free of memory and time.

    Returns:
        `<phase>_flops` for forward, train_forward, backward, cached_forward and cached_backward;
        None where a phase does not exist, or where the architecture cannot run on the meta device
        (mixtures of experts).
    """
    device = torch.device("meta")
    counts: dict[str, int | None] = dict.fromkeys(
        f"{phase}_flops"
        for phase in ("forward", "train_forward", "backward", "cached_forward", "cached_backward")
    )
    with device:
        model = build_empty_model(settings, base_config)
        try:
            work = Workload(
                settings, model, batch_size=batch_size, seq_length=seq_length, seed=0, device=device
            )
            counts["forward_flops"] = count_flops(work.forward)
            counts["train_forward_flops"], counts["backward_flops"] = _count_pair(
                work, work.train_forward
            )
            if work.is_cached:
                counts["cached_forward_flops"], counts["cached_backward_flops"] = _count_pair(
                    work, work.cached_forward
                )
        except NotImplementedError:
            return counts
    return counts


def _count_pair(work: Workload, forward: Callable[[], Tensor]) -> tuple[int, int]:
    losses: list[Tensor] = []
    forward_flops = count_flops(lambda: losses.append(forward()))
    return forward_flops, count_flops(lambda: work.backward(losses.pop()))
