"""Memory of a callable: its peak, and the bytes that autograd keeps for backward.

Bytes saved for backward are exact and free of noise; peak memory is what the machine gave.
"""

import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor


def release_memory(device: torch.device) -> None:
    """Give what nothing refers to any more back, on CUDA to the device as well."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak_memory(device: torch.device) -> None:
    """Give freed memory back and forget the peak so far, for `read_peak_memory` of what follows."""
    release_memory(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        _trim_heap()
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)


def _trim_heap() -> None:
    """Return what malloc holds of freed memory to the system, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def hold_freed_memory() -> None:
    """Let malloc keep what is freed for the next allocation, where the C library can (glibc).

    By default it gives large blocks back to the system, and every batch faults them in anew: a
    tenth of the time of a forward pass on two cores.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # from malloc.h
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_threshold, 1 << 26)


def return_freed_memory() -> None:
    """Let malloc give every large block back as soon as it is freed, where it can (glibc).

    The opposite of `hold_freed_memory`, for a run whose memory counts more than its time: blocks of
    changing sizes leave holes between them otherwise.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mmap_threshold = -3  # from malloc.h
        mallopt(mmap_threshold, 1 << 20)


def read_peak_memory(device: torch.device) -> int:
    """Peak bytes since `reset_peak_memory`: allocated on CUDA, else resident in this process.

    Windows and macOS know the peak since the process began alone.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        # not getrusage: its maximum is inherited from the process that started this one
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    elif sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes there
    else:
        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))


def read_reserved_memory(device: torch.device) -> int | None:
    """Peak bytes that the CUDA allocator took from the device; None elsewhere."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def read_memory(device: torch.device) -> int:
    """Bytes in use now: allocated on CUDA, else resident in this process."""
    return (
        torch.cuda.memory_allocated(device)
        if device.type == "cuda"
        else int(psutil.Process().memory_info().rss)
    )


def read_anonymous_memory() -> int | None:
    """Bytes of this process in memory that no file stands behind; None where not on Linux.

    Unlike the resident size, it leaves out pages of mapped files, which the system may drop and
    read again whenever it needs the room.
    """
    if sys.platform != "linux":
        return None
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


@contextmanager
def watch_anonymous_memory(every_seconds: float = 0.05) -> Iterator[Callable[[], int | None]]:
    """Within, a thread reads `read_anonymous_memory`; gives a function that returns the peak.

    A reading takes a tenth of a millisecond, of another thread than the one that is timed.
    """
    peak = read_anonymous_memory()
    if peak is None:
        yield lambda: None
        return
    is_over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_over.wait(every_seconds):
            peak = max(peak or 0, read_anonymous_memory() or 0)

    thread = threading.Thread(target=watch, name="anonymous memory", daemon=True)
    thread.start()
    try:
        yield lambda: peak
    finally:
        is_over.set()
        thread.join()


def count_saved_bytes(call: Callable[[], object], excluded: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps for backward while `call` runs.

    Counts each storage once, so views share theirs, and leaves out the storages of `excluded`
    (parameters and cached inputs, which exist with or without autograd).
    """
    known = {_storage_key(tensor.untyped_storage()) for tensor in excluded}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        if (key := _storage_key(storage)) not in known:
            # The storage is held, so that no other can take its address while we count. Not the
            # tensor: it holds the graph, which holds this function, and nothing would be freed.
            saved[key] = storage

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing):
        result = call()
    del result
    return sum(storage.nbytes() for storage in saved.values())


def _storage_key(storage: torch.UntypedStorage) -> int:
    """What tells a storage from others: its memory, or itself where it has none."""
    # tensors without bytes (meta's, FakeTensorMode's) all have the address 0
    return int(storage._cdata if storage.device.type == "meta" else storage.data_ptr())
