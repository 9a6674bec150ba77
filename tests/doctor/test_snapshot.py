import builtins
from types import SimpleNamespace

import pytest
import torch

from skip2bench.config.commands import DoctorConfig
from skip2bench.doctor import snapshot as machine
from skip2bench.doctor.snapshot import (
    Gpu,
    Version,
    find_version_problem,
    inspect_machine,
    read_versions,
)
from skip2bench.machine import hardware
from skip2bench.machine.hardware import GpuProcess, InstalledGpu


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(machine, "measure_others_cores", lambda: 0.0)
    monkeypatch.setattr(machine, "list_installed_gpus", lambda: None)


@pytest.fixture
def cuda(monkeypatch):
    """A torch that has a GPU; returns how it is described."""
    properties = SimpleNamespace(
        name="NVIDIA T4", major=7, minor=5, uuid="1-2", total_memory=15_828_320_256
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (15 * 10**9, 15_828_320_256))
    monkeypatch.setattr(torch.version, "cuda", "12.8")


def test_this_machine():
    found = inspect_machine(DoctorConfig(device="cpu"))
    assert (found.device, found.precision, found.problem) == ("cpu", "32-true", None)
    assert found.processor
    assert found.cores
    assert found.threads == torch.get_num_threads()
    assert found.results_disk.folder == "results"
    assert found.cache_disk is None
    assert found.device_free_bytes == found.memory.available_bytes > 0
    assert found.device_total_bytes == found.memory.usable_bytes


def test_the_folder_of_kept_caches_has_a_disk_of_its_own(tmp_path):
    found = inspect_machine(DoctorConfig(device="cpu", cache_dir=tmp_path / "kept"))
    assert found.cache_disk is not None
    assert found.cache_disk.free_bytes


def test_versions_come_with_the_bounds_of_the_package():
    versions = {one.name: one for one in read_versions()}
    assert list(versions) == ["python", "torch", "litgpt", "lightning", "skip2bench"]
    assert versions["torch"].wanted == ">=2.7"
    assert versions["python"].wanted == ">=3.10"
    assert find_version_problem(tuple(versions.values())) is None


@pytest.mark.parametrize(
    ("found", "wanted", "is_met"),
    [
        ("2.13.0+cpu", ">=2.7", True),
        ("2.7.0", ">=2.7", True),
        ("2.6.1", ">=2.7", False),
        ("0.6.0", "<0.6,>=0.5.13", False),
        ("2.8.0.dev20250101", ">=2.7", True),
        (None, ">=2.7", False),
        ("2.13.0", None, None),
        ("of my own", ">=2.7", None),
    ],
)
def test_bounds(found, wanted, is_met):
    assert Version(name="torch", found=found, wanted=wanted).is_met is is_met


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (None, "torch is not installed; pip install 'torch>=2.7'"),
        ("2.6.0", "torch is 2.6.0, wanted >=2.7; pip install 'torch>=2.7'"),
    ],
)
def test_without_a_good_torch_the_rest_is_found_all_the_same(monkeypatch, found, problem):
    real = hardware.installed_version
    monkeypatch.setattr(
        machine, "installed_version", lambda name: found if name == "torch" else real(name)
    )
    looked_at = inspect_machine(DoctorConfig())
    assert looked_at.problem == problem
    assert (looked_at.device, looked_at.threads, looked_at.gpu) == (None, None, None)
    assert looked_at.memory.total_bytes > 0


def test_python_out_of_bounds_has_another_remedy():
    problem = find_version_problem((Version(name="python", found="3.9.1", wanted=">=3.10"),))
    assert problem == ("python is 3.9.1, wanted >=3.10; make an environment with another Python")


def test_a_torch_that_cannot_be_imported_is_a_problem(monkeypatch):
    real = builtins.__import__

    def fail(name, *arguments, **keywords):
        if name == "torch":
            raise OSError("libcudart.so.12: cannot open shared object file")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", fail)
    found = inspect_machine(DoctorConfig())
    assert found.problem == (
        "torch cannot be imported (libcudart.so.12: cannot open shared object file); "
        "install it anew"
    )


def test_a_device_that_is_not_there_is_a_problem(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = inspect_machine(DoctorConfig(device="cuda"))
    assert found.device is None
    assert str(found.problem).startswith("device 'cuda' is not available to torch ")


def test_a_gpu_that_torch_cannot_use_is_named(monkeypatch):
    installed = [InstalledGpu(uuid="GPU-1", driver="570.86", name="NVIDIA T4")]
    monkeypatch.setattr(machine, "list_installed_gpus", lambda: installed)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu = inspect_machine(DoctorConfig()).gpu
    assert gpu == Gpu(name="NVIDIA T4", is_usable=False, driver="570.86")


@pytest.mark.usefixtures("cuda")
def test_a_gpu_and_who_uses_it(monkeypatch):
    installed = [
        InstalledGpu(uuid="GPU-9", driver="570.86", name="NVIDIA T4"),
        InstalledGpu(uuid="GPU-1-2", driver="570.86", name="NVIDIA T4"),
    ]
    monkeypatch.setattr(machine, "list_installed_gpus", lambda: installed)
    process = GpuProcess(pid=7, name="python", used_bytes=1)
    asked = []
    monkeypatch.setattr(machine, "list_gpu_processes", lambda uuid: asked.append(uuid) or [process])
    found = inspect_machine(DoctorConfig())
    assert asked == ["GPU-1-2"]
    assert found.gpu_processes == (process,)
    assert (found.device, found.precision) == ("cuda", "32-true")
    assert found.gpu == Gpu(
        name="NVIDIA T4",
        is_usable=True,
        capability=(7, 5),
        driver="570.86",
        cuda="12.8",
        total_bytes=15_828_320_256,
        free_bytes=15 * 10**9,
    )
    assert found.device_free_bytes == 15 * 10**9
    assert found.device_total_bytes == 15_828_320_256


@pytest.mark.usefixtures("cuda")
def test_a_gpu_that_others_hold_and_no_nvidia_smi(monkeypatch):
    def fail(_device):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    monkeypatch.setenv("PATH", "")
    found = inspect_machine(DoctorConfig())
    assert found.gpu is not None
    assert (found.gpu.free_bytes, found.gpu.driver, found.gpu_processes) == (None, None, None)
