"""Runs a training on several ranks of this machine, over gloo, as torchrun would start them.

A server process imports torch once and forks a process for each rank, which takes milliseconds.
"""

import contextlib
import io
import multiprocessing
import os
import signal
import socket
from dataclasses import dataclass
from typing import Any

from skip2bench.config.train import TrainConfig

LIMIT_SECONDS = 90
"""A rank that takes longer hangs."""
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["skip2bench.train.run", "rank_processes"])


@dataclass(frozen=True, kw_only=True)
class Disturbance:
    """A signal that a rank gives itself in a step."""

    rank: int
    step: int
    number: int


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a rank ended."""

    exit_code: int | None
    """None for one that had to be killed, since it hung."""
    error: str
    steps: int
    """Steps that it took part in."""


def run_ranks(
    size: int, values: dict[str, Any], disturbance: Disturbance | None = None
) -> list[Ended]:
    """Train on `size` ranks; `values` are those of the configuration."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes, ends = [], []
    for rank in range(size):
        mine, theirs = _context.Pipe(duplex=False)
        arguments = (rank, size, port, values, disturbance, theirs)
        process = _context.Process(target=_work, args=arguments)
        process.start()
        theirs.close()
        processes.append((process, mine))
    for process, pipe in processes:
        process.join(LIMIT_SECONDS)
        error, steps = "", 0
        with contextlib.suppress(EOFError):
            error, steps = pipe.recv()
        exit_code = process.exitcode
        if exit_code is None:
            process.kill()
        ends.append(Ended(exit_code=exit_code, error=error, steps=steps))
    return ends


def _work(
    rank: int,
    size: int,
    port: int,
    values: dict[str, Any],
    disturbance: Disturbance | None,
    pipe: Any,
) -> None:
    os.environ |= {
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    from skip2bench.train.ranks.ranks import Ranks
    from skip2bench.train.run import run_training

    steps = 0
    reduce_step = Ranks.reduce_step

    def disturbed(ranks: Ranks, *arguments: Any) -> tuple[float, bool]:
        nonlocal steps
        steps += 1
        if disturbance and (disturbance.rank, disturbance.step) == (rank, steps):
            os.kill(os.getpid(), disturbance.number)
        return reduce_step(ranks, *arguments)

    Ranks.reduce_step = disturbed
    signal.signal(signal.SIGINT, signal.default_int_handler)
    text, printed = "", io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            run_training(TrainConfig(**values, devices=size), ["train"])
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001
        text = f"{type(error).__name__}: {error}"
        raise SystemExit(1) from None
    finally:
        pipe.send((text or printed.getvalue(), steps))
        pipe.close()
