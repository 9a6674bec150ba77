"""A frozen backbone whose blocks are spread over the ranks, by torch's FSDP2.

Each rank holds its part of every block, and gathers a block's weights while a forward pass is in
it; so all ranks must make the same number of passes. A rank says, before a pass, that it makes one;
one that has nothing left to do makes empty passes until nobody does (`finish`).
"""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from skip2bench.models.skip import SkipGPT
from skip2bench.train.ranks.ranks import Ranks


def local_tensors(model: nn.Module) -> list[Tensor]:
    """Parameters as this rank holds them: of one that is spread out, its part."""
    return [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]


class ShardedBackbone:
    """The blocks of one Skip model, spread over the ranks."""

    def __init__(self, model: SkipGPT, ranks: Ranks) -> None:
        """Spread the blocks, one after the other, and bring the rest of the model to the device."""
        self._model, self._ranks = model, ranks
        self._is_empty_pass = False
        mesh = init_device_mesh(ranks.device.type, (ranks.size,))
        for block in model.transformer.h:
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
        model.to(ranks.device)
        model.transformer.wte.register_forward_pre_hook(self._announce)

    def finish(self) -> None:
        """Make empty passes for as long as another rank makes one; every rank calls this."""
        if self._model.is_released:
            return
        self._is_empty_pass = True
        was_training = self._model.training
        try:
            while self._ranks.sum(0.0)[0] > 0:
                self._model.compute_features(
                    torch.zeros((1, 1), dtype=torch.long, device=self._ranks.device)
                )
        finally:
            self._is_empty_pass = False
            self._model.train(was_training)

    def _announce(self, _module: object, _args: object) -> None:
        if not self._is_empty_pass:
            self._ranks.sum(1.0)
