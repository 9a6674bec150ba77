"""What this machine has, found without torch: processor, memory, disks, GPUs, and who uses them.

Whatever cannot be found out is None; nothing here fails because of it. What torch alone knows is
`environment`'s business.
"""

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

_NO_LIMIT_BYTES = 1 << 60
"""Control groups of the first version write a number near 2**63 where there is no limit."""
_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")
_OWN = ("user", "system", "children_user", "children_system")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Main memory as a process here can have it."""

    total_bytes: int
    available_bytes: int
    """What can be taken now, the limit of the control group respected."""
    limit_bytes: int | None
    """Limit of the control group (a container's), where it is below the machine's memory."""

    @property
    def usable_bytes(self) -> int:
        """What a process here could ever have."""
        return self.total_bytes if self.limit_bytes is None else self.limit_bytes


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The file system below a folder, which need not exist yet."""

    folder: str
    total_bytes: int | None
    free_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class GpuProcess:
    """Another process on the GPU."""

    pid: int
    name: str
    used_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class InstalledGpu:
    """A GPU by NVIDIA's own tool, whether or not torch can use it."""

    uuid: str
    name: str
    driver: str


def read_memory(
    groups_file: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")
) -> Memory:
    """Main memory: what the system says, within the limit of this process's control group."""
    system = psutil.virtual_memory()
    limits = [
        (limit, used)
        for limit, used in _group_limits(groups_file, groups)
        if limit < min(system.total, _NO_LIMIT_BYTES)
    ]
    left = [max(0, limit - used) for limit, used in limits]
    return Memory(
        total_bytes=system.total,
        available_bytes=min([system.available, *left]),
        limit_bytes=min((limit for limit, _ in limits), default=None),
    )


def read_disk(folder: Path) -> Disk:
    """The file system that `folder` is on, or will be."""
    try:
        resolved = folder.expanduser().resolve()
        there = next(path for path in (resolved, *resolved.parents) if path.exists())
        usage = shutil.disk_usage(there)
    except (OSError, StopIteration):
        return Disk(folder=str(folder), total_bytes=None, free_bytes=None)
    return Disk(folder=str(folder), total_bytes=usage.total, free_bytes=usage.free)


def read_processor_name() -> str:
    """The processor's name; its architecture where the system gives none."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def count_cores() -> int | None:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def busy_seconds() -> float:
    """Seconds that the cores that this process may run on have been busy, stolen time included."""
    cores = psutil.cpu_times(percpu=True)
    if hasattr(os, "sched_getaffinity") and max(own := os.sched_getaffinity(0)) < len(cores):
        cores = [cores[number] for number in own]
    return sum(getattr(times, name, 0.0) for times in cores for name in _BUSY)


def has_quota(
    groups_file: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")
) -> bool:
    """True where a control group gives this process less time than its cores have."""
    try:
        lines = groups_file.read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds == "":  # version 2: one tree for everything
            root, name = groups, "cpu.max"
        elif "cpu" in kinds.split(","):
            root, name = groups / "cpu", "cpu.cfs_quota_us"
        else:
            continue
        # inside a container the path may be the host's: then only the root is there
        folder = root / path.lstrip("/")
        for group in (it for it in (folder, *folder.parents) if it.is_relative_to(root)):
            with suppress(OSError, IndexError):
                if (group / name).read_text().split()[0] not in ("max", "-1"):
                    return True
    return False


def own_seconds() -> float:
    """Seconds that this process, those it has waited for, and its children were on a core.

    A child that starts others in its place counts with those that it has waited for.
    """
    process = psutil.Process()
    seconds = 0.0
    for one in (process, *process.children()):
        with suppress(psutil.Error):
            times = one.cpu_times()
            seconds += sum(getattr(times, name, 0.0) for name in _OWN)
    return seconds


def measure_others_cores(seconds: float = 0.5) -> float:
    """Cores that others keep busy now: busy seconds less one's own, over the seconds waited."""
    started, busy, own = time.monotonic(), busy_seconds(), own_seconds()
    time.sleep(seconds)
    others = (busy_seconds() - busy) - (own_seconds() - own)
    return max(0.0, others / (time.monotonic() - started))


def list_installed_gpus() -> list[InstalledGpu] | None:
    """GPUs that nvidia-smi names; None where there is no nvidia-smi."""
    rows = _query_nvidia("--query-gpu=uuid,driver_version,name")
    if rows is None:
        return None
    return [
        InstalledGpu(uuid=uuid, driver=driver, name=", ".join(name)) for uuid, driver, *name in rows
    ]


def read_gpu_driver(uuid: str) -> tuple[str | None, float | None]:
    """Driver and power limit in watts of a GPU; None is what nvidia-smi does not say.

    Args:
        uuid: Of the GPU, as nvidia-smi writes it. Where it lists no such GPU (a part of one has a
            name of its own), the first one stands for it.
    """
    rows = _query_nvidia("--query-gpu=uuid,driver_version,power.limit")
    if not rows:
        return None, None
    _, driver, limit, *_ = next((row for row in rows if row[0] == uuid), rows[0])
    # "[N/A]" where the card has no limit that can be read
    return driver, float(limit) if limit.replace(".", "", 1).isdecimal() else None


def list_gpu_processes(uuid: str | None) -> list[GpuProcess] | None:
    """Other processes that compute on a GPU; None where there is no nvidia-smi.

    Args:
        uuid: Of the GPU, as nvidia-smi writes it; None for all of them.
    """
    rows = _query_nvidia("--query-compute-apps=gpu_uuid,pid,used_memory,process_name")
    if rows is None:
        return None
    return [
        GpuProcess(
            pid=int(pid),
            name=", ".join(name),
            # in MiB; "[N/A]" where the driver does not say
            used_bytes=int(used) << 20 if used.isdecimal() else None,
        )
        for gpu, pid, used, *name in rows
        if pid.isdecimal() and int(pid) != os.getpid() and uuid in (None, gpu)
    ]


def installed_version(package: str) -> str | None:
    """Version of a Python package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run_command(command: Sequence[str]) -> str | None:
    """What a command prints; None where it is not there, fails, or takes long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _query_nvidia(query: str) -> list[list[str]] | None:
    """Rows of an nvidia-smi query; a name, which may have commas in it, is asked for last."""
    text = run_command(["nvidia-smi", query, "--format=csv,noheader,nounits"])
    if text is None:
        return None
    rows = [line.split(", ") for line in text.splitlines()]
    return [row for row in rows if len(row) >= query.count(",") + 1]


def _group_limits(groups_file: Path, groups: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of every control group of memory that this process is in."""
    try:
        lines = groups_file.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds == "":  # version 2: one tree for everything
            root, limit, use, cache = groups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in kinds.split(","):
            root = groups / "memory"
            limit, use = "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        # inside a container the path may be the host's: then only the root is there
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            limit_bytes = _read_number(group / limit)
            if limit_bytes is not None:
                used = _read_number(group / use) or 0
                yield limit_bytes, used - _read_stat(group / "memory.stat", cache)
            if group == root:
                break


def _read_number(file: Path) -> int | None:
    """The number in a file; None where there is no file, or the word max in it."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _read_stat(file: Path, name: str) -> int:
    """A line of `memory.stat`, in bytes: pages of files that give way when memory is needed."""
    try:
        pairs = dict(line.split(maxsplit=1) for line in file.read_text().splitlines())
        return int(pairs.get(name, 0))
    except (OSError, ValueError):
        return 0
