"""Rows of a cache between host memory and a GPU, on their way while the GPU computes.

Copies from and to ordinary memory hold up whoever asks for them. Pinned memory is copied by the GPU
itself, on a stream of its own; gathering rows into it is a thread's work. A few small buffers are
pinned, never the cache, which would be locked in memory whole.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from skip2bench.cache.arrays import Arrays, Layout, MemoryWriter

_IN_FLIGHT = 2
"""Portions that are made ready ahead, each of which takes memory on both sides."""


def is_afar(arrays: Arrays, device: torch.device) -> bool:
    """True where rows have to be brought to the device."""
    return arrays.tensors["targets"].device.type != device.type


def is_worth_staging(arrays: Arrays, device: torch.device) -> bool:
    """True where rows can be brought to the device while it computes."""
    return device.type == "cuda" and is_afar(arrays, device)


class PinnedBuffer:
    """Host memory for rows of several arrays, pinned where there is a GPU; it grows as needed."""

    def __init__(self, device: torch.device) -> None:
        """`device` is where the rows come from or go to."""
        self._is_pinned = device.type == "cuda"
        self._memory: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def rows(self, like: dict[str, Tensor], n: int) -> dict[str, Tensor]:
        """Uninitialised space for n rows of each array, once earlier copies have left it."""
        self.wait()
        for name, tensor in like.items():
            held = self._memory.get(name)
            if held is None or len(held) < n or held.dtype != tensor.dtype:
                self._memory[name] = torch.empty(
                    (n, *tensor.shape[1:]), dtype=tensor.dtype, pin_memory=self._is_pinned
                )
        return {name: self._memory[name][:n] for name in like}

    def mark(self) -> None:
        """Remember the copies that the current stream has been given so far."""
        if self._is_pinned:
            self._copied = torch.cuda.current_stream().record_event()

    def wait(self) -> None:
        """Return when those copies are done."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None


@dataclass(frozen=True, kw_only=True)
class _Staged:
    """Rows that are on the device, or on their way there."""

    tensors: dict[str, Tensor]
    arrived: torch.cuda.Event | None


@dataclass(eq=False, kw_only=True)
class Expected:
    """A portion that a `Stager` makes ready."""

    rows: Tensor
    """(n,)"""
    coming: Future[_Staged] | None = None
    """From when somebody works on it until it is taken."""


class Stager:
    """Serves rows of host arrays on a device; those that are expected, ahead of time."""

    def __init__(self, arrays: Arrays, device: torch.device) -> None:
        """Nothing is pinned or started before something is expected.

        Args:
            arrays: In memory or mapped files.
            device: Where rows are wanted.
        """
        self._arrays, self._device = arrays, device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers = [PinnedBuffer(device) for _ in range(_IN_FLIGHT)]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="skip-cache rows")
        self._queue: deque[Expected] = deque()
        self._n_started = 0

    def expect(self, rows: Tensor) -> Expected:
        """Make ready for `take` of these rows (n,), after those that are expected already."""
        expected = Expected(rows=rows)
        self._queue.append(expected)
        self._start_some()
        return expected

    def take(self, expected: Expected) -> dict[str, Tensor]:
        """Copies of the rows on the device, for the current stream.

        Those that were expected before and did not come are expected no more; should they come all
        the same, they are copied then.
        """
        if expected not in self._queue:
            return self._arrays.select(expected.rows, self._device)
        while self._queue[0] is not expected:
            self._queue.popleft().coming = None
        self._start_some()
        self._queue.popleft()
        assert expected.coming is not None
        staged, expected.coming = expected.coming.result(), None  # whoever expects holds no rows
        self._start_some()
        if staged.arrived is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(staged.arrived)
            for tensor in staged.tensors.values():
                tensor.record_stream(current)
        return staged.tensors

    def _start_some(self) -> None:
        for expected in islice(self._queue, _IN_FLIGHT):
            if expected.coming is None:
                # one thread takes them in order, so a buffer's last rows have been sent by then
                buffer = self._buffers[self._n_started % _IN_FLIGHT]
                self._n_started += 1
                expected.coming = self._thread.submit(self._stage, expected.rows, buffer)

    def _stage(self, rows: Tensor, buffer: PinnedBuffer) -> _Staged:
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            space = buffer.rows(self._arrays.tensors, len(rows))
            for name, tensor in self._arrays.tensors.items():
                torch.index_select(tensor, 0, rows, out=space[name])
            moved = {
                name: tensor.to(self._device, non_blocking=True, copy=True)
                for name, tensor in space.items()
            }
            buffer.mark()
            arrived = None if self._stream is None else self._stream.record_event()
        return _Staged(tensors=moved, arrived=arrived)


class PinnedWriter(MemoryWriter):
    """Arrays in host memory that a GPU fills: its rows arrive while it computes the next ones."""

    def __init__(self, layout: Layout, rows: int, device: torch.device) -> None:
        """`device` is where the rows come from."""
        super().__init__(layout, rows, torch.device("cpu"))
        self._buffers = [PinnedBuffer(device), PinnedBuffer(device)]
        self._pending: dict[str, Tensor] = {}
        self._space: dict[str, Tensor] = {}

    def reserve(self, rows: int) -> dict[str, Tensor]:
        """Pinned memory; what the last call gave is put in its place."""
        self._flush()
        self._space = super().reserve(rows)
        self._buffers.reverse()
        self._pending = self._buffers[0].rows(self._space, rows)
        return self._pending

    def commit(self) -> None:
        """The rows have been sent."""
        self._buffers[0].mark()

    def finish(self) -> Arrays:
        """The arrays, all rows in place."""
        self._flush()
        return super().finish()

    def _flush(self) -> None:
        if not self._pending:
            return
        self._buffers[0].wait()
        for name, tensor in self._pending.items():
            self._space[name].copy_(tensor)
        self._pending, self._space = {}, {}
