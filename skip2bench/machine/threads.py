"""Threads that give way: fewer of them while others keep cores busy.

OpenMP's threads wait for one another by spinning. With a core each that costs nothing, and waking
threads that sleep would cost more; where something else wants a core, one thread waits for another
that is not running, and steps take several times as long (docs/measuring.md has how long).
So a run that is measured keeps as many threads as there are cores that nobody else uses.
"""

import os

import torch

from skip2bench.machine.hardware import count_cores

_MOST = torch.get_num_threads()
"""What torch has begun with."""


def give_way(others_cores: float | None) -> None:
    """Use the cores that others have left; those who set OMP_NUM_THREADS have decided themselves.

    Args:
        others_cores: Mean number of cores that others kept busy lately; None where nobody knows.
    """
    cores = count_cores()
    if others_cores is None or cores is None or "OMP_NUM_THREADS" in os.environ:
        return
    wanted = max(1, min(_MOST, cores - round(others_cores)))
    if wanted != torch.get_num_threads():
        torch.set_num_threads(wanted)
