"""Workers on this machine: each on a GPU of its own, or on cores of its own."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from skip2bench.compare.engines.engine import Ended, Slot, end_process, last_line, launch
from skip2bench.config.engine import EngineConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.machine.hardware import count_cores

_VISIBLE = "CUDA_VISIBLE_DEVICES"


class LocalEngine:
    """Processes of this machine."""

    def __init__(self, config: EngineConfig, gpus_each: int) -> None:
        """Share the machine out.

        Args:
            config: How many workers, and how many cores each.
            gpus_each: GPUs of a worker; 0 where runs work on the processor.

        Raises:
            Skip2BenchError: it is too small for them.
        """
        self._gpus = _list_gpus() if gpus_each else []
        self._gpus_each = gpus_each
        cores = count_cores() or 1
        parallel = config.parallel or 1
        if gpus_each and parallel * gpus_each > len(self._gpus):
            raise Skip2BenchError(
                f"{parallel} runs at once on {gpus_each} GPU each, and {len(self._gpus)} are here; "
                f"give --parallel {max(1, len(self._gpus) // gpus_each)}"
            )
        each = config.cell_cores or max(1, cores // parallel)
        self.cores: int | None = each
        if parallel * each > cores:
            raise Skip2BenchError(
                f"{parallel} runs at once on {each} cores each, and {cores} cores are here; "
                "give less --parallel or --cell-cores: times of runs that share cores compare with "
                "nothing"
            )
        self.slots: Sequence[Slot] = [Slot(name=f"here-{n}") for n in range(parallel)]
        self._processes: dict[str, tuple[subprocess.Popen[bytes], Path, str]] = {}

    def start(self, folder: Path, jobs: Sequence[tuple[Slot, str]]) -> None:
        """Start a worker for each job."""
        for slot, name in jobs:
            variables = {}
            if self._gpus_each:
                first = self.slots.index(slot) * self._gpus_each
                variables[_VISIBLE] = ",".join(self._gpus[first : first + self._gpus_each])
            self._processes[slot.name] = (launch(folder, name, variables), folder, name)

    def poll(self, slot: Slot) -> Ended | None:
        """How the worker in a slot ended; None while it runs."""
        process, folder, name = self._processes[slot.name]
        status = process.poll()
        return None if status is None else Ended(exit_status=status, line=last_line(folder, name))

    def end(self, slot: Slot) -> None:
        """End the worker in a slot."""
        if slot.name in self._processes:
            end_process(self._processes.pop(slot.name)[0])

    def is_alive(self, slot: Slot) -> bool:
        """True: this machine is here."""
        return True

    def close(self) -> None:
        """End all that is left."""
        for slot in self.slots:
            self.end(slot)


def _list_gpus() -> list[str]:
    """What CUDA may use here, as CUDA_VISIBLE_DEVICES names it."""
    import torch

    visible = os.environ.get(_VISIBLE)
    return visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
