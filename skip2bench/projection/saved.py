"""Bytes that a step saves for backward, counted on tensors that have none.

torch's FakeTensorMode runs the code of the run itself on shapes, dtypes and devices alone, and
takes the kernels that the device would take, so the count is that of a real step, to the byte (on
the meta device attention falls back to the kernel that keeps its matrix).
"""

import torch
from lightning.fabric import Fabric
from litgpt.config import Config
from litgpt.model import GPT
from torch._subclasses.fake_tensor import FakeTensor

from skip2bench.bench.workload import Workload
from skip2bench.cache.algebra import Name
from skip2bench.cache.arrays import Layout, MemoryWriter
from skip2bench.cache.loss import ServedLoss
from skip2bench.cache.portions import count_largest_saved, served_portion
from skip2bench.cache.skip_cache import Served
from skip2bench.cache.trunk import portion_above
from skip2bench.machine.environment import weights_dtype
from skip2bench.models.base import Base
from skip2bench.models.methods import MethodSettings
from skip2bench.models.skip import SkipGPT
from skip2bench.models.top import TopGPT


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
    fabric = Fabric(accelerator=device.type, devices=1, precision=precision)
    if isinstance(next(model.parameters()), FakeTensor):
        # parameters without bytes cannot be swapped; what is left to convert are the buffers
        dtype = weights_dtype(precision)
        model.cos, model.sin = model.cos.to(dtype), model.sin.to(dtype)
        precision_plugin = fabric.strategy.precision
        precision_plugin.convert_module = lambda module: module
    return Workload(settings, model, fabric, shape).count_saved_bytes(cached=False)


def count_saved_above(
    model: TopGPT, device: torch.device, precision: str, shape: tuple[int, int]
) -> int:
    """Bytes saved in a forward pass above a cached trunk for samples of `shape` (B, T)."""
    fabric = Fabric(accelerator=device.type, devices=1, precision=precision)
    dtype = weights_dtype(precision)
    model.cos, model.sin = model.cos.to(dtype), model.sin.to(dtype)
    hidden = torch.empty(*shape, model.config.n_embd, dtype=dtype, device=device)
    places = torch.arange(shape[0] * shape[1], device=device).view(shape)[:, :-1].flatten()
    targets = torch.zeros_like(places)
    model.train()
    portion = portion_above(fabric, model, hidden, places, targets)
    return count_largest_saved([portion], model.parameters())


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
    rows = MemoryWriter(layout, positions, device).finish().tensors
    served = Served(
        features=layout.decode(rows),
        targets=torch.zeros_like(rows["targets"]),
        base_logits=rows.get("base_logits"),
        projected=layout.decode_projected(rows),
    )
    model.train()
    portion = served_portion(fabric, ServedLoss(model, algebra), served)
    return count_largest_saved([portion], model.parameters())
