import os
from types import SimpleNamespace

import pytest

from skip2bench.machine import hardware
from skip2bench.machine.hardware import (
    GpuProcess,
    InstalledGpu,
    installed_version,
    list_gpu_processes,
    list_installed_gpus,
    measure_others_cores,
    read_disk,
    read_memory,
    run_command,
)

GIB = 2**30


@pytest.fixture
def _32_gib(monkeypatch):
    system = SimpleNamespace(total=32 * GIB, available=30 * GIB)
    monkeypatch.setattr(hardware.psutil, "virtual_memory", lambda: system)


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def read(tmp_path, groups_line):
    (tmp_path / "cgroup").write_text(groups_line)
    return read_memory(tmp_path / "cgroup", tmp_path / "groups")


@pytest.mark.usefixtures("_32_gib")
def test_the_lowest_limit_of_all_enclosing_groups_counts(tmp_path):
    root = tmp_path / "groups"
    write(root / "a", memory__max=f"{8 * GIB}\n", memory__current=f"{3 * GIB}\n")
    write(root / "a" / "b", memory__max="max\n", memory__current=f"{1 * GIB}\n")
    memory = read(tmp_path, "0::/a/b\n")
    assert (memory.limit_bytes, memory.available_bytes) == (8 * GIB, 5 * GIB)
    assert (memory.total_bytes, memory.usable_bytes) == (32 * GIB, 8 * GIB)


@pytest.mark.usefixtures("_32_gib")
def test_pages_of_files_in_a_group_give_way(tmp_path):
    stat = f"anon 5\ninactive_file {2 * GIB}\n"
    files = {"memory__max": str(8 * GIB), "memory__current": str(3 * GIB), "memory__stat": stat}
    write(tmp_path / "groups", **files)
    # inside a container the named path is not there: the root is its group
    assert read(tmp_path, "0::/host/path\n").available_bytes == 7 * GIB


@pytest.mark.usefixtures("_32_gib")
def test_control_groups_of_the_first_version(tmp_path):
    root = tmp_path / "groups" / "memory"
    write(root / "x", memory__limit_in_bytes=str(4 * GIB), memory__usage_in_bytes=str(GIB))
    write(root, memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes="0")
    memory = read(tmp_path, "3:cpuset:/\n4:memory:/x\n0::/\n")
    assert (memory.limit_bytes, memory.available_bytes) == (4 * GIB, 3 * GIB)


@pytest.mark.usefixtures("_32_gib")
@pytest.mark.parametrize("limit", ["max", "9223372036854771712", str(64 * GIB), "?"])
def test_no_limit_below_the_machines_memory_is_none(tmp_path, limit):
    write(tmp_path / "groups", memory__max=limit)
    memory = read(tmp_path, "0::/\n")
    assert memory.limit_bytes is None
    assert memory.available_bytes == 30 * GIB
    assert read_memory(tmp_path / "none", tmp_path).usable_bytes == 32 * GIB


def test_a_folder_that_is_not_there_yet_has_a_disk(tmp_path):
    disk = read_disk(tmp_path / "not" / "yet")
    assert disk.total_bytes == read_disk(tmp_path).total_bytes > 0
    assert disk.folder == str(tmp_path / "not" / "yet")


def test_a_disk_that_cannot_be_read_is_unknown(tmp_path, monkeypatch):
    def fail(_path):
        raise OSError

    monkeypatch.setattr(hardware.shutil, "disk_usage", fail)
    assert read_disk(tmp_path).free_bytes is None


def test_processes_on_the_gpu_without_this_one(monkeypatch):
    lines = (
        f"GPU-1, {os.getpid()}, 90, python\n"
        "GPU-1, 41, 1024, /opt/a, b/python\n"
        "GPU-1, 42, [N/A], Xorg\n"
        "GPU-2, 43, 10, other\n"
        "\n"
    )
    monkeypatch.setattr(hardware, "run_command", lambda _command: lines)
    assert list_gpu_processes("GPU-1") == [
        GpuProcess(pid=41, name="/opt/a, b/python", used_bytes=GIB),
        GpuProcess(pid=42, name="Xorg", used_bytes=None),
    ]
    assert [one.pid for one in list_gpu_processes(None) or ()] == [41, 42, 43]


def test_installed_gpus(monkeypatch):
    monkeypatch.setattr(hardware, "run_command", lambda _: "GPU-1, 570.86.15, NVIDIA T4\n")
    assert list_installed_gpus() == [
        InstalledGpu(uuid="GPU-1", driver="570.86.15", name="NVIDIA T4")
    ]


def test_without_nvidia_smi_nothing_is_known(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert list_installed_gpus() is None
    assert list_gpu_processes(None) is None
    assert run_command(["nvidia-smi"]) is None


def test_others_cores_are_busy_cores_less_ones_own(monkeypatch):
    clock, busy, own = iter([0.0, 2.0]), iter([10.0, 13.0]), iter([5.0, 5.5])
    monkeypatch.setattr(
        hardware, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None)
    )
    monkeypatch.setattr(hardware, "busy_seconds", lambda: next(busy))
    monkeypatch.setattr(hardware, "own_seconds", lambda: next(own))
    assert measure_others_cores() == 1.25


def test_versions_of_packages():
    assert installed_version("torch")
    assert installed_version("no-such-package") is None
