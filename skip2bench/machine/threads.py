"""Threads that give way: fewer of them while others keep cores busy.

OpenMP's threads wait for one another by spinning. With a core each that costs nothing, and waking
threads that sleep would cost more; where something else wants a core, one thread waits for another
that is not running, and steps take several times as long (docs/measuring.md has how long).
So a run that is measured keeps as many threads as there are cores that nobody else uses.
"""

import os

import torch

from skip2bench.machine.hardware import count_cores


class _Threads:
    """What is known of torch's threads between two looks."""

    most = 0
    """What torch has begun with, or the program has asked it for since."""
    left = 0
    """What was set here; another number is the program's own."""


def give_way(others_cores: float | None) -> None:
    """Use the cores that others have left, with no more threads than the program asked torch for.

    Those who set OMP_NUM_THREADS have decided themselves.

    Args:
        others_cores: Mean number of cores that others kept busy lately; None where nobody knows.
    """
    cores = count_cores()
    if others_cores is None or cores is None or "OMP_NUM_THREADS" in os.environ:
        return
    if (now := torch.get_num_threads()) != _Threads.left:
        _Threads.most = now
    _Threads.left = max(1, min(_Threads.most, cores - round(others_cores)))
    if now != _Threads.left:
        torch.set_num_threads(_Threads.left)
