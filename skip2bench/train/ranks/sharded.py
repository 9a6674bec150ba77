"""A frozen backbone whose blocks are spread over the ranks, by torch's FSDP2.

Each rank holds its part of every block, and gathers a block's weights while a forward pass is in
it; so all ranks must make the same number of passes, and one that has fewer to make adds empty
ones, which gather the weights and compute nothing. For a batch they agree once on the number. While
caches are made none can know its own, which a kept cache, an error or a wish to stop changes on the
way: there they agree before each pass on whether any rank makes one, a few bytes beside the weights
that travel in it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from skip2bench.errors import Skip2BenchError
from skip2bench.models.skip import SkipGPT
from skip2bench.train.ranks.ranks import RankLostError, Ranks


def local_tensors(model: nn.Module) -> list[Tensor]:
    """Parameters as this rank holds them: of one that is spread out, its part."""
    return [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]


def shard_blocks(model: SkipGPT, ranks: Ranks) -> None:
    """Spread the blocks, one after the other, and bring the rest of the model to the device."""
    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    model.to(ranks.device)
    # What torch gathers into is made with the first gathering. In inference mode, as most passes
    # are, it would be a kind of tensor that no other pass could be gathered into.
    _pass_empty(model)


def even_out_passes(model: nn.Module, ranks: Ranks, own: int) -> None:
    """Make empty passes, so that with the `own` that follow every rank makes as many as any.

    Where the backbone is not spread out, nothing is sent or computed.

    Args:
        model: The method's model, or the module that Fabric made of it.
        ranks: Those of the run; every one calls this.
        own: Forward passes that this rank makes next.
    """
    sharded = _find_sharded(model)
    if sharded is None:
        return
    for _ in range(int(ranks.max(own)[0]) - own):
        _pass_empty(sharded)


@contextmanager
def uncounted_passes(model: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Within, each rank makes as many passes as it finds that it needs; every one enters this.

    A rank that is done, or has an error or a wish to stop of which `Ranks.together` tells the
    others, makes empty passes until none makes one any more.
    """
    sharded = _find_sharded(model)
    if sharded is None:
        yield
        return
    embedding: nn.Module = sharded.transformer.wte
    announcing = embedding.register_forward_pre_hook(partial(_announce, ranks))
    error: BaseException | None = None
    try:
        yield
    except RankLostError:
        raise
    except (Skip2BenchError, KeyboardInterrupt) as caught:
        error = caught
    finally:
        announcing.remove()
    while ranks.max(0.0)[0] > 0:
        _pass_empty(sharded)
    if error is not None:
        raise error


def _announce(ranks: Ranks, _module: nn.Module, _args: object) -> None:
    ranks.max(1.0)


def _pass_empty(model: SkipGPT) -> None:
    """Take part in what other ranks gather for a forward pass."""
    for block in model.transformer.h:
        assert isinstance(block, FSDPModule)
        block.unshard()
        block.reshard()


def _find_sharded(model: nn.Module) -> SkipGPT | None:
    """The Skip model whose blocks are spread out; None where each rank has all, or needs none."""
    inner = getattr(model, "module", model)  # what Fabric set up wraps it
    if not isinstance(inner, SkipGPT):
        return None
    is_sharded = any(isinstance(block, FSDPModule) for block in inner.transformer.h)
    return inner if is_sharded else None
