"""Bytes that a training step would save for backward, counted on tensors that have no bytes.

torch's FakeTensorMode runs the code of the run itself on shapes, dtypes and devices alone, and
takes the kernels that the device would take, so the count is that of a real step, to the byte. The
meta device would do for FLOPs; but there attention falls back to the kernel that keeps its matrix.
All functions here are called within a FakeTensorMode.
"""

import torch
from lightning.fabric import Fabric
from litgpt.config import Config
from litgpt.model import GPT
from torch import Tensor

from skip2bench.algebra import Name
from skip2bench.cache import Served
from skip2bench.cache_arrays import Layout
from skip2bench.measure import count_saved_bytes
from skip2bench.methods import MethodSettings
from skip2bench.models import Base
from skip2bench.served_loss import ServedLoss
from skip2bench.skip2 import SkipGPT
from skip2bench.workload import Workload


def make_fake_base(config: Config, device: torch.device, dtype: torch.dtype) -> Base:
    """A base model's tensors without their bytes."""
    with device:
        weights = GPT(config).state_dict()
    return Base(
        name=str(config.name),
        config=config,
        # not `GPT.to`, which cannot swap fake parameters
        weights={name: value.to(dtype) for name, value in weights.items()},
        folder=None,
    )


def count_saved_on_tokens(
    settings: MethodSettings,
    model: GPT,
    device: torch.device,
    precision: str,
    shape: tuple[int, int],
) -> int:
    """Bytes saved in a forward pass on tokens of `shape` (B, T), every position supervised."""
    work = Workload(
        settings,
        model,
        batch_size=shape[0],
        seq_length=shape[1],
        seed=0,
        device=device,
        precision=precision,
        with_cache=False,
    )
    return work.count_saved_bytes(cached=False)


def count_saved_on_features(
    model: SkipGPT,
    layout: Layout,
    algebra: Name,
    device: torch.device,
    precision: str,
    positions: int,
) -> int:
    """Bytes saved in a forward pass on what Skip-Cache serves for that many positions."""
    fabric = Fabric(accelerator=device.type, devices=1, precision=precision)
    shape = (positions, len(layout.blocks), layout.n_embd)
    features = torch.empty(shape, dtype=layout.compute_dtype, device=device)
    targets = torch.zeros(positions, dtype=torch.int64, device=device)
    logits: Tensor | None = None
    if layout.n_logits:
        logits = torch.empty(positions, layout.n_logits, dtype=layout.compute_dtype, device=device)
    served = Served(features=features, targets=targets, base_logits=logits)
    given = [features, targets, *([] if logits is None else [logits])]
    loss = ServedLoss(model, algebra)
    model.train()
    with fabric.autocast():
        return count_saved_bytes(lambda: loss(served), [*model.parameters(), *given])
