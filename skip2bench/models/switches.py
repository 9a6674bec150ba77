"""What `train` can switch on for any method and changes no result: checkpointing and compilation.

Both stand in place of the blocks' own `forward`: names in state dicts stay LitGPT's, and hooks stay
outside. Quantisation, which does change results, is `quantised`'s.
"""

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from litgpt.lora import LoRAQKVLinear
from litgpt.model import GPT
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from skip2bench.errors import Skip2BenchError
from skip2bench.models.skip import SkipGPT

_Forward = Callable[..., Tensor]

_MOST_GRAPHS = 64
"""Of one block: with and without gradients, in inference mode, a batch of one, equal sizes."""


def checkpoint_blocks(model: GPT) -> None:
    """Have backward compute each block's activations again, from the block's input alone.

    Blocks that no gradient walks (those of skip, last, lora-last) keep nothing anyway, and run as
    they are. The random state of the forward pass is used again, so that losses and gradients are
    the same bit for bit.
    """
    for block in model.transformer.h:
        is_trained = any(parameter.requires_grad for parameter in block.parameters())
        block.forward = _checkpointed(block.forward, is_trained)


def _checkpointed(forward: _Forward, is_trained: bool) -> _Forward:
    def run(x: Tensor, *others: object) -> Tensor:
        if not torch.is_grad_enabled() or not (is_trained or x.requires_grad):
            return forward(x, *others)
        output: Tensor = checkpoint(forward, x, *others, use_reentrant=False)
        return output

    return run


def compile_model(model: GPT) -> None:
    """Have torch compile the blocks and the Skip adapters, each when it first runs.

    Lengths and batches change from step to step, so their sizes are symbols; all blocks share what
    is compiled for one.
    """
    torch._dynamo.config.recompile_limit = _MOST_GRAPHS
    for module in model.modules():
        if isinstance(module, LoRAQKVLinear):
            getattr(module, "lora_ind", None)  # LitGPT makes it when first read: not to be compiled
            module.conv1d = partial(_multiply_groups, module)
    for block in model.transformer.h:
        block.forward = torch.compile(block.forward, dynamic=True)
    if isinstance(model, SkipGPT):
        adapters = model.adapters
        for name in ("forward", "reduce"):
            setattr(adapters, name, torch.compile(getattr(adapters, name), dynamic=True))


def _multiply_groups(layer: LoRAQKVLinear, x: Tensor, weight: Tensor) -> Tensor:
    """LitGPT's grouped convolution as products: torch would compile it anew for each length.

    Args:
        layer: LoRA on query, key and value; those of them that have it are the groups.
        x: (B, groups r, T).
        weight: (output features of all groups, r, 1).

    Returns:
        (B, output features of all groups, T).
    """
    weights = torch.split(weight.squeeze(-1), layer.qkv_shapes)
    parts = x.chunk(len(weights), dim=1)
    return torch.cat([own @ part for own, part in zip(weights, parts, strict=True)], dim=1)


def is_compiled(model: GPT) -> bool:
    """True where `compile_model` was called."""
    forwards = [block.forward for block in model.transformer.h]
    return any(hasattr(forward, "_torchdynamo_orig_callable") for forward in forwards)


def check_can_compile(device: torch.device) -> None:
    """Check that what torch.compile calls is there.

    Raises:
        Skip2BenchError: there is no C++ compiler, or on a GPU no Triton or C compiler.
    """
    if device.type == "cuda" and find_spec("triton") is None:
        raise Skip2BenchError("compile needs Triton on a GPU; pip install triton, or leave it out")
    name, default = (
        ("CC", "gcc") if device.type == "cuda" else ("CXX", "g++")
    )  # as torch looks for them
    if sys.platform == "darwin":
        default = "clang++"
    compiler = os.environ.get(name, default)
    if shutil.which(compiler) is None:
        raise Skip2BenchError(
            f"compile needs a compiler, and {compiler!r} is not found; install one (such as the "
            f"package {default}), name it in {name}, or leave --compile out"
        )
