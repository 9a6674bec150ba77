"""Starts the ranks of a run, or finds them started by torchrun or SLURM, and watches over them.

Lightning Fabric does the finding, starting and connecting. A rank that ends before its time ends
the run: the first rank looks at the processes that it started, and those look at it. Fabric has an
observer for that, which kills the first rank without a word, so that nobody would learn which rank
has died and how to go on: it is given nothing to look at.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.fabric.strategies import DDPStrategy
from lightning_utilities.core import rank_zero
from torch import nn

from skip2bench.config.train import TrainConfig
from skip2bench.errors import DivergedError, Skip2BenchError, error_line
from skip2bench.io import console
from skip2bench.io.whole import write_json
from skip2bench.machine.environment import choose_device, choose_precision
from skip2bench.machine.hardware import count_cores
from skip2bench.results.reading import read_run
from skip2bench.train.ranks.ranks import UNKNOWN_LOST, RankLostError, Ranks

TIMEOUT_SECONDS = float(os.environ.get("SKIP2BENCH_RANK_TIMEOUT_SECONDS", "600"))
"""How long a collective waits for a rank that lives and does not answer."""
_LOOK_SECONDS = 0.5
_GRACE_SECONDS = 10.0
"""How long the first rank has to end by itself after another has died."""
_END_SECONDS = 20.0


class _Replicas(DDPStrategy):  # type: ignore[misc]
    """Fabric's ranks, without DDP around the model: `Ranks.reduce_step` adds up the gradients."""

    watch: "_Watch"
    """Over the ranks that were started here, from before they are connected."""

    def setup_module(self, module: nn.Module) -> nn.Module:
        return module

    def setup_environment(self) -> None:
        started = self.launcher.procs
        self.watch = _Watch(list(started))
        started.clear()  # Fabric's observer, which holds this list, looks seconds after the start
        try:
            super().setup_environment()
        except BaseException:
            self.watch.end_children()  # they would wait for this one
            raise


class _Watch:
    """Looks at the processes that belong to this one, and ends it where it would wait in vain."""

    ranks = Ranks()
    """Those of the run, once they are connected."""

    def __init__(self, children: list[subprocess.Popen[bytes]]) -> None:
        self._children = children
        self._parent = os.getppid()
        self._is_over = threading.Event()
        threading.Thread(target=self._look, daemon=True, name="rank-watch").start()

    def find_lost(self) -> str:
        """Which child has ended, asked after a collective has failed."""
        deadline = time.monotonic() + 2.0
        while self._children and time.monotonic() < deadline:
            if (found := self._dead_child()) is not None:
                return found
            time.sleep(_LOOK_SECONDS / 10)
        return UNKNOWN_LOST

    def close(self) -> None:
        """Stop looking, and end the children that are still there."""
        self._is_over.set()
        deadline = time.monotonic() + _END_SECONDS
        for child in self._children:
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()

    def end_children(self) -> None:
        """End them at once: the run has failed."""
        self._is_over.set()
        for child in self._children:
            with suppress(OSError):
                child.kill()

    def _dead_child(self) -> str | None:
        for rank, child in enumerate(self._children, start=1):
            status = child.poll()
            if status:
                how = f"signal {-status}" if status < 0 else f"exit status {status}"
                return f"rank {rank} ended ({how})"
        return None

    def _look(self) -> None:
        while not self._is_over.wait(_LOOK_SECONDS):
            if not self._children and not self.ranks.is_first and os.getppid() != self._parent:
                os._exit(1)  # the first rank has gone, and its record with it
            if (found := self._dead_child()) is not None:
                if not self._is_over.wait(_GRACE_SECONDS):
                    self._end(found)
                return

    def _end(self, found: str) -> None:
        """End a process that waits in a collective which nobody will complete."""
        text = self.ranks.describe_loss(found)
        if self.ranks.folder is not None:
            with suppress(OSError, Skip2BenchError):
                failed = {"status": "failed", "error": text}
                summary = read_run(self.ranks.folder).summary.model_copy(update=failed)
                write_json(self.ranks.folder / "summary.json", summary)
        print(error_line(text), file=sys.stderr, flush=True)  # noqa: T201
        self.end_children()
        os._exit(1)


@contextmanager
def open_ranks(
    config: TrainConfig, arguments: Sequence[str]
) -> Iterator[tuple[Ranks, Fabric | None]]:
    """The ranks of a run and the Fabric that connects them; (alone, None) for one process.

    Args:
        config: Uses devices, num_nodes, device and precision.
        arguments: The command line: ranks that are started here repeat it.

    Raises:
        Skip2BenchError: the devices are not there, or nobody can start the ranks.
    """
    if config.devices * config.num_nodes == 1:
        yield Ranks(), None
        return
    device = choose_device(config.device)
    _check_device(config, device)
    strategy = _Replicas(timeout=timedelta(seconds=TIMEOUT_SECONDS))
    fabric = Fabric(
        accelerator=device.type,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=strategy,
        precision=choose_precision(config.precision, device),
    )
    _check_start(config, arguments, strategy.cluster_environment)
    for log in (logging.getLogger("lightning.fabric"), rank_zero.log):
        log.setLevel(logging.WARNING)  # else a banner on each rank
    fabric.launch()
    watch = strategy.watch
    watch.ranks = ranks = Ranks(
        rank=fabric.global_rank,
        size=fabric.world_size,
        local_size=config.devices,
        device=fabric.device,
        find_lost=watch.find_lost,
    )
    if device.type == "cpu":
        torch.set_num_threads(max(1, (count_cores() or 1) // config.devices))
    with _quiet_unless_first(ranks), _ended(ranks, watch):
        yield ranks, fabric


@contextmanager
def _quiet_unless_first(ranks: Ranks) -> Iterator[None]:
    before = console.stderr.quiet
    console.stderr.quiet = before or not ranks.is_first
    try:
        yield
    finally:
        console.stderr.quiet = before


@contextmanager
def _ended(ranks: Ranks, watch: _Watch) -> Iterator[None]:
    """End all ranks with the run; the first one's files are whole before any process goes."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, DivergedError):
        _close(ranks, watch)  # all of them end so
        if not ranks.is_first:
            raise SystemExit(0) from None  # the first rank says how it ended
        raise
    except Skip2BenchError as error:
        watch.end_children()
        if ranks.is_first:
            raise
        if not isinstance(error, RankLostError):
            print(error_line(f"rank {ranks.rank}: {error}"), file=sys.stderr)  # noqa: T201
        raise SystemExit(1) from error
    except BaseException:
        watch.end_children()
        raise
    else:
        _close(ranks, watch)
    finally:
        if dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()


def _close(ranks: Ranks, watch: _Watch) -> None:
    with suppress(Skip2BenchError):
        ranks.wait_for_first(_END_SECONDS)
    watch.close()


def _check_device(config: TrainConfig, device: torch.device) -> None:
    if device.type == "mps":
        raise Skip2BenchError("there is one mps device; leave --devices out, or use --device cpu")
    if device.type == "cuda" and config.devices > torch.cuda.device_count():
        raise Skip2BenchError(
            f"devices is {config.devices}; torch sees {torch.cuda.device_count()} GPUs here: give "
            "at most as many"
        )


def _check_start(
    config: TrainConfig, arguments: Sequence[str], environment: ClusterEnvironment
) -> None:
    """Refuse what Fabric would start in vain, where nobody else starts the ranks."""
    if environment.creates_processes_externally:
        return
    if config.num_nodes > 1 and "MASTER_ADDR" not in os.environ:
        raise Skip2BenchError(
            f"num_nodes is {config.num_nodes}; start the run on every node with torchrun or srun "
            "(see docs/scaling.md)"
        )
    if list(arguments) != sys.argv[1:]:
        raise Skip2BenchError(
            f"devices is {config.devices}, and this is no command that could be repeated for each; "
            "start the script with torchrun"
        )
