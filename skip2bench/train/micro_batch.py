"""`--micro-batch-size auto`: the largest micro-batch that fits, found before a run's first step.

On a GPU by trying: forward and backward pass of the longest samples, beside what the optimizer will
hold. On a CPU, where a process that takes too much is killed, by what autograd keeps of one sample.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from lightning.fabric import Fabric
from torch import nn

from skip2bench.io.console import note, warn
from skip2bench.machine.hardware import read_memory
from skip2bench.machine.memory import count_saved_bytes, release_memory
from skip2bench.machine.out_of_memory import DoesNotFitError, fitting
from skip2bench.train.objective import TokenObjective
from skip2bench.train.ranks.ranks import Ranks
from skip2bench.train.ranks.sharded import local_tensors

_MARGIN_RATIO = 0.05
"""Of a GPU's memory that stays free: the allocator's holes, and lengths that were not tried."""
_SHARE_OF_FREE = 0.7
_PASS_OVER_SAVED = 2.0
"""A backward pass has gradients of about the size of what it reads."""


@dataclass(frozen=True, kw_only=True)
class FoundSize:
    """What a search came to."""

    micro_batch_size: int
    fits: bool
    """False where, by what was found, not even one sample fits; the size is 1 then."""
    tried: tuple[int, ...]
    seconds: float


def list_sizes(most: int) -> list[int]:
    """Sizes from 1 to `most`, ascending, that differ in how many passes `most` samples take."""
    return sorted({-(-most // passes) for passes in range(1, most + 1)})


def find_largest(sizes: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of ascending sizes that fits, by bisection; None where none does."""
    low, high = -1, len(sizes)  # sizes[low] fits, sizes[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        if fits(sizes[middle]):
            low = middle
        else:
            high = middle
    return sizes[low] if low >= 0 else None


def find_micro_batch_size(
    fabric: Fabric, model: nn.Module, objective: TokenObjective, most: int, ranks: Ranks
) -> FoundSize:
    """Find the largest micro-batch; the model's gradients are cleared, its weights untouched.

    Args:
        fabric: Of the run.
        model: The method's model, on its device.
        objective: Gives portions of its training samples.
        most: Samples of a global batch that this rank gets.
        ranks: Those of the run; a size fits where it fits on all of them.

    """
    started = time.monotonic()
    tried: list[int] = []
    is_gpu = fabric.device.type == "cuda"
    fits_here = _by_trial(fabric, model, objective) if is_gpu else _by_estimate(model, objective)

    def fits(size: int) -> bool:
        tried.append(size)
        return ranks.max(float(not fits_here(size)))[0] == 0

    model.train()
    found = find_largest(list_sizes(most), fits)
    if found is None:
        # the run itself will say whether that is so
        warn(
            "not even a micro-batch of one sample seems to fit into memory; if the run fails, "
            "use --method skip2, a smaller --max-seq-length, or --precision bf16-true"
        )
    else:
        sizes = ", ".join(map(str, list_sizes(most)))
        note(f"micro-batch {found}: the largest of {sizes} that fits")
    return FoundSize(
        micro_batch_size=found or 1,
        fits=found is not None,
        tried=tuple(tried),
        seconds=time.monotonic() - started,
    )


def _by_trial(fabric: Fabric, model: nn.Module, objective: TokenObjective) -> Callable[[int], bool]:
    device = fabric.device
    state_bytes = 2 * sum(p.nbytes for p in model.parameters() if p.requires_grad)  # AdamW's
    margin_bytes = int(_MARGIN_RATIO * torch.cuda.get_device_properties(device).total_memory)

    def fits(size: int) -> bool:
        ids = objective.longest(size)
        try:
            with fitting("backward"):
                ballast = torch.empty(state_bytes + margin_bytes, dtype=torch.uint8, device=device)
                fabric.backward(objective.load(ids).loss())
                del ballast
        except DoesNotFitError:
            return False
        finally:
            model.zero_grad(set_to_none=True)
        return True

    def fits_from_clean(size: int) -> bool:
        release_memory(device)  # what the last trial held on to went with its frame
        return fits(size)

    return fits_from_clean


def _by_estimate(model: nn.Module, objective: TokenObjective) -> Callable[[int], bool]:
    portion = objective.load(objective.longest(1))
    saved = count_saved_bytes(portion.loss, [*local_tensors(model), *portion.tensors])
    state_bytes = 3 * sum(p.nbytes for p in model.parameters() if p.requires_grad)
    free = _SHARE_OF_FREE * _free_bytes() - state_bytes  # gradients, and what AdamW keeps
    return lambda size: _PASS_OVER_SAVED * saved * size <= free


def _free_bytes() -> int:
    """Bytes that this process may still take: of the machine, and within a limit of its own."""
    free = read_memory().available_bytes
    if sys.platform == "linux":
        import resource

        limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
        if limit != resource.RLIM_INFINITY:
            # as proc(5) has it: data and stack, in pages
            with open("/proc/self/statm", encoding="ascii") as file:
                used = int(file.read().split()[5]) * resource.getpagesize()
            free = min(free, max(0, limit - used))
    return free
