"""What the processes of one run, its ranks, tell each other; all of it by collectives of torch.

Weights and optimizer are the same on every rank: each sums its samples' part of the loss, and only
the gradients of what trains are added up over the ranks, in one tensor a step, the loss and the
wish to stop behind them. What one rank alone would decide (to stop, that the loss has diverged) is
decided on such sums, so no rank waits for one that has gone. Starting ranks is `launch`'s.

Work of unknown length (`together`) ends at a meeting that looks at a counter, not at torch's
barrier: a process in that one has its signals wait as long as itself, so a second Ctrl-C would not
end it at once. The barrier serves at the end, where the wait has a limit.
"""

import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.utils.store import barrier

from skip2bench.errors import Skip2BenchError
from skip2bench.machine.signals import StopRequest

_Result = TypeVar("_Result")

UNKNOWN_LOST = "another rank ended or does not answer"
_POLL_SECONDS = 0.05
_STEP_EXTRAS = 2
"""Behind the gradients of a step: its loss, and how many ranks wish to stop."""


class RankLostError(Skip2BenchError):
    """Another rank has ended or does not answer; the run cannot go on without it."""


@dataclass(kw_only=True)
class Ranks:
    """This process among those of its run; alone by default, and then nothing is sent."""

    rank: int = 0
    size: int = 1
    local_size: int = 1
    """Ranks on this machine, which share its memory, its disk and its cores."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    find_lost: Callable[[], str] = lambda: UNKNOWN_LOST
    """Says, after a collective has failed, who is missing."""
    folder: Path | None = field(default=None, init=False)
    """The run folder, once `begin_run` has named it."""
    step: int = field(default=0, init=False)
    """Steps that the run has taken."""
    _meetings: int = field(default=0, init=False)

    @property
    def is_first(self) -> bool:
        """True for the one rank that prints and writes."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """True where the run is one process."""
        return self.size == 1

    def begin_run(self, folder: Path, step: int) -> None:
        """Note which run this is, and its step, for the error line of one that loses a rank."""
        self.folder, self.step = folder, step

    def sum(self, *values: float) -> list[float]:
        """Each value added up over the ranks, in float64."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, *values: float) -> list[float]:
        """The largest of each value over the ranks."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def gather(self, value: _Result) -> list[_Result]:
        """What every rank gives, by rank; plain values and tensors on the CPU."""
        if self.is_alone:
            return [value]
        values: list[Any] = [None] * self.size
        self._call(lambda: dist.all_gather_object(values, value))
        return values

    def broadcast(self, value: _Result) -> _Result:
        """What the first rank gives."""
        if self.is_alone:
            return value
        values = [value]
        self._call(lambda: dist.broadcast_object_list(values, src=0, device=self.device))
        return values[0]

    def together(self, work: Callable[[], _Result]) -> _Result:
        """Do work that may fail or be stopped on one rank; then it ends on every rank.

        Ranks wait for each other as long as it takes: no collective is open meanwhile.

        Raises:
            Skip2BenchError: on the first rank, what went wrong on any.
            SystemExit: on the others, which say nothing.
            KeyboardInterrupt: a rank was asked to stop.
        """
        if self.is_alone:
            return work()
        result, error = None, None
        try:
            result = work()
        except RankLostError:
            raise
        except (Skip2BenchError, KeyboardInterrupt) as caught:
            error = caught
        self._call(self._meet)
        self._end_together(error)
        return result  # type: ignore[return-value]

    def reduce_step(
        self, parameters: Sequence[Tensor], loss: Tensor, wish: bool
    ) -> Callable[[], tuple[float, bool]]:
        """Add up the gradients of a global batch over the ranks: the one collective of a step.

        They travel in float32, whatever they are held in; a rank that had no sample adds zeros.

        Args:
            parameters: What trains, in an order that all ranks share; their `grad` is replaced.
            loss: This rank's part of the step's loss.
            wish: Whether this rank has been asked to stop.

        Returns:
            Reads the step's loss, and whether any rank has been asked; it waits for the device.
        """
        self.step += 1
        if self.is_alone:
            return lambda: (float(loss), wish)
        flat = torch.zeros(step_numbers(parameters), dtype=torch.float32, device=self.device)
        places = torch.split(flat[:-_STEP_EXTRAS], [p.numel() for p in parameters])
        for parameter, place in zip(parameters, places, strict=True):
            if parameter.grad is not None:
                place.copy_(parameter.grad.flatten())
        flat[-2], flat[-1] = loss, float(wish)
        self._call(lambda: dist.all_reduce(flat))
        for parameter, place in zip(parameters, places, strict=True):
            parameter.grad = place.view_as(parameter).to(parameter.dtype)

        def read_sums() -> tuple[float, bool]:
            total, wishes = flat[-_STEP_EXTRAS:].tolist()
            return total, wishes > 0

        return read_sums

    def wait_for_first(self, most_seconds: float) -> None:
        """Let the first rank finish its files before any other process ends.

        Signals wait as well, so this is for the end of a run.
        """
        if not self.is_alone:
            self._call(lambda: self._leave(most_seconds))

    def _reduce(self, values: Sequence[float], operation: Any) -> list[float]:
        if self.is_alone:
            return list(values)
        both = torch.tensor(values, dtype=torch.float64, device=self.device)
        self._call(lambda: dist.all_reduce(both, operation))
        result: list[float] = both.tolist()
        return result

    def _meet(self) -> None:
        """Wait, outside any collective, until all ranks have come here."""
        self._meetings += 1
        key = f"meeting-{self._meetings}"
        store = dist.distributed_c10d._get_default_store()
        store.add(key, 1)
        while store.add(key, 0) < self.size:
            time.sleep(_POLL_SECONDS)

    def _leave(self, most_seconds: float) -> None:
        store = dist.distributed_c10d._get_default_store()
        barrier(store, self.size, "end", most_seconds)
        # the first rank holds the store: it leaves last
        if self.is_first:
            others = [f"left-{rank}" for rank in range(1, self.size)]
            store.wait(others, timedelta(seconds=most_seconds))
        else:
            store.set(f"left-{self.rank}", "")

    def _end_together(self, error: BaseException | None) -> None:
        """Raise where any rank has an error."""
        own = None if error is None else (isinstance(error, KeyboardInterrupt), str(error))
        outcomes = self.gather(own)
        found = [(rank, *outcome) for rank, outcome in enumerate(outcomes) if outcome is not None]
        if not found:
            return
        errors = [(rank, text) for rank, is_interrupt, text in found if not is_interrupt]
        if not errors:
            raise KeyboardInterrupt
        if not self.is_first:
            raise SystemExit(1)
        if isinstance(error, Skip2BenchError):
            raise error
        rank, text = errors[0]
        raise Skip2BenchError(f"rank {rank}: {text}")

    def _call(self, collective: Callable[[], object]) -> None:
        try:
            collective()
        except (RuntimeError, ValueError) as error:
            # what torch raises where a peer has gone or the time is over
            self._say_lost(error)

    def _say_lost(self, error: Exception) -> NoReturn:
        raise RankLostError(self.describe_loss(self.find_lost())) from error

    def describe_loss(self, who: str) -> str:
        """The error line of a run whose rank has gone."""
        remedy = ""
        if self.folder is not None:
            words = ["skip2bench", "train", "--resume", "--out-dir", str(self.folder)]
            remedy = f"; go on with: {shlex.join(words)}"
        return f"{who}; the run was stopped at step {self.step}{remedy}"


class RankStop(StopRequest):
    """A wish to stop that is granted to all ranks after the same step."""

    def __init__(self, wish: StopRequest) -> None:
        """`wish` is what the signals of this process have asked for."""
        super().__init__()
        self._wish = wish

    @property
    def is_wished(self) -> bool:
        """Whether this process has been asked."""
        return self._wish.is_made

    def check_apart(self) -> None:
        """Raise KeyboardInterrupt where any rank has been asked, while each works for itself."""
        store = dist.distributed_c10d._get_default_store()
        if self._wish.is_made:
            store.set("stop", "1")
        if self._wish.is_made or store.check(["stop"]):
            raise KeyboardInterrupt


def step_numbers(parameters: Sequence[Tensor]) -> int:
    """Numbers in the one tensor of a step."""
    return sum(p.numel() for p in parameters) + _STEP_EXTRAS


def step_bytes(parameters: Sequence[Tensor], size: int) -> int:
    """Bytes that each rank gives to the collective of a step; 0 for a run of one process.

    Of these a ring sends 2 (size - 1) / size times as many over each rank's link.
    """
    return 4 * step_numbers(parameters) if size > 1 else 0


def share(ids: Sequence[int], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Samples of each rank: about as many tokens for each, always the same for the same samples.

    The longest first, each to the rank that has the fewest tokens so far.

    Args:
        ids: Samples to share out.
        lengths: Tokens of every sample.
        size: Number of ranks.
    """
    shares: list[list[int]] = [[] for _ in range(size)]
    tokens = [0] * size
    for i in sorted(ids, key=lambda i: (-lengths[i], i)):
        rank = tokens.index(min(tokens))
        shares[rank].append(i)
        tokens[rank] += lengths[i]
    return [sorted(own) for own in shares]


def started_as_rank() -> bool:
    """True in a process that torchrun, SLURM or the first rank started as one of several."""
    return any(name in os.environ for name in ("LOCAL_RANK", "RANK"))
