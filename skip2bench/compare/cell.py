"""One cell of a comparison, in the process that `process` starts for it.

The run is the same as `skip2bench train` or `bench` would make; this adds a cap on memory, and an
end when the comparison that started it is gone.
"""

import sys
import threading
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from skip2bench.config.commands import BenchConfig
from skip2bench.config.options import coerce
from skip2bench.config.train import TrainConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.machine.command_end import run_to_end
from skip2bench.machine.processes import interrupt_oneself


def main(spec: dict[str, Any]) -> None:
    """Run the cell that is described; its process ends as the command line's does."""
    run_to_end(lambda: _run_described(spec))


def _run_described(spec: dict[str, Any]) -> None:
    threading.Thread(target=_watch_parent, daemon=True).start()
    if spec["max_memory_bytes"] is not None:
        limit_memory(spec["max_memory_bytes"])
    _run(spec)


def limit_memory(max_bytes: int) -> None:
    """Let allocations of this process fail beyond `max_bytes` of data, on Linux.

    Raises:
        Skip2BenchError: the system knows no such limit.
    """
    if sys.platform != "linux":
        raise Skip2BenchError("max_memory needs Linux; leave it out")
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (max_bytes, max_bytes))


def _watch_parent() -> None:
    """Interrupt this process once the comparison is gone, however that ended."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    interrupt_oneself()


def _run(spec: dict[str, Any]) -> None:
    own = {"out_dir": Path(spec["out_dir"])}
    if spec["kind"] == "bench":
        from skip2bench.bench.run import run_bench

        run_bench(BenchConfig(**coerce(BenchConfig, spec["config"] | own)), spec["arguments"])
        return
    config = TrainConfig(**coerce(TrainConfig, spec["config"] | own))
    if spec["kind"] == "train":
        from skip2bench.train.run import run_training

        run_training(config, spec["arguments"])
    else:
        from skip2bench.compare.peers.run import run_peer

        run_peer(spec["kind"], config, spec["arguments"])
