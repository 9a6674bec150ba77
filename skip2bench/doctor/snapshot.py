"""This machine at one moment, as `doctor` judges it: a snapshot that tests can make up.

Works where torch is missing, too old or broken; that is one of the things to find out.
"""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path
from platform import python_version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion
from packaging.version import Version as ParsedVersion

from skip2bench import __version__
from skip2bench.config.commands import DoctorConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.machine.hardware import (
    Disk,
    GpuProcess,
    Memory,
    count_cores,
    installed_version,
    list_gpu_processes,
    list_installed_gpus,
    measure_others_cores,
    read_disk,
    read_memory,
    read_processor_name,
)

RESULTS_FOLDER = Path("results")
_PACKAGES = ("torch", "litgpt", "lightning")
"""Without one of these, within its bounds, nothing runs."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """A piece of software."""

    name: str
    found: str | None
    wanted: str | None
    """Bounds by this package's own requirements; None where it states none."""

    @property
    def is_met(self) -> bool | None:
        """True within the bounds; None where there is nothing to compare."""
        if self.found is None:
            return False
        if self.wanted is None:
            return None
        try:
            found = ParsedVersion(self.found)
        except InvalidVersion:  # a build of one's own
            return None
        return SpecifierSet(self.wanted).contains(found, prereleases=True)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU."""

    name: str
    is_usable: bool
    """False for one that is installed and that this torch cannot use."""
    capability: tuple[int, int] | None = None
    """CUDA compute capability."""
    driver: str | None = None
    cuda: str | None = None
    """CUDA version that torch was built for."""
    total_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was found. None is what could not be found out."""

    processor: str
    cores: int | None
    threads: int | None
    """That torch computes with."""
    others_cores: float | None
    """Cores that other processes kept busy."""
    memory: Memory
    results_disk: Disk
    cache_disk: Disk | None
    """Of the folder that would keep caches; None where they live in the run folder."""
    gpu: Gpu | None
    gpu_processes: tuple[GpuProcess, ...] | None
    versions: tuple[Version, ...]
    device: str | None
    """Type of the device that a run would take; None where there is none."""
    precision: str | None
    problem: str | None = None
    """Why nothing can run here, with the remedy."""

    @property
    def device_free_bytes(self) -> int | None:
        """Memory that a model could take now on the device."""
        if self.device == "cuda":
            return self.gpu.free_bytes if self.gpu else None
        return self.memory.available_bytes

    @property
    def device_total_bytes(self) -> int | None:
        """Memory that a model could ever take on the device."""
        if self.device == "cuda":
            return self.gpu.total_bytes if self.gpu else None
        return self.memory.usable_bytes


@dataclass(frozen=True, kw_only=True)
class _Compute:
    """What torch says."""

    threads: int | None = None
    gpu: Gpu | None = None
    gpu_processes: tuple[GpuProcess, ...] | None = None
    device: str | None = None
    precision: str | None = None
    problem: str | None = None


def inspect_machine(config: DoctorConfig) -> Machine:
    """Look at this machine, for runs with the device and precision of `config`."""
    others_cores = measure_others_cores()  # first, while this process itself is idle
    versions = read_versions()
    problem = find_version_problem(versions)
    found = _Compute(problem=problem) if problem else _ask_torch(config)
    return Machine(
        processor=read_processor_name(),
        cores=count_cores(),
        threads=found.threads,
        others_cores=others_cores,
        memory=read_memory(),
        results_disk=read_disk(RESULTS_FOLDER),
        cache_disk=read_disk(config.cache_dir) if config.cache_dir else None,
        gpu=found.gpu or _find_unusable_gpu(),
        gpu_processes=found.gpu_processes,
        versions=versions,
        device=found.device,
        precision=found.precision,
        problem=found.problem,
    )


def read_versions() -> tuple[Version, ...]:
    """Python, the packages that every run needs, and this one, with the bounds it states."""
    try:
        stated = {
            one.name: str(one.specifier)
            for one in map(Requirement, requires("skip2bench") or ())
            if one.marker is None
        }
        python = metadata("skip2bench")["Requires-Python"]
    except PackageNotFoundError:  # run from a folder of sources
        stated, python = {}, None
    return (
        Version(name="python", found=python_version(), wanted=python),
        *(
            Version(name=name, found=installed_version(name), wanted=stated.get(name))
            for name in _PACKAGES
        ),
        Version(name="skip2bench", found=__version__, wanted=None),
    )


def find_version_problem(versions: tuple[Version, ...]) -> str | None:
    """The first of the needed packages that is missing or out of bounds, with the remedy."""
    for one in versions:
        if one.is_met is not False:
            continue
        state = "not installed" if one.found is None else f"{one.found}, wanted {one.wanted}"
        if one.name == "python":
            return f"python is {state}; make an environment with another Python"
        return f"{one.name} is {state}; pip install '{one.name}{one.wanted or ''}'"
    return None


def _ask_torch(config: DoctorConfig) -> _Compute:
    """Device, precision, threads and GPU; a torch that cannot be imported is a problem."""
    try:
        import torch

        from skip2bench.machine.environment import choose_device, choose_precision
    except (ImportError, OSError) as error:
        return _Compute(problem=f"torch cannot be imported ({error}); install it anew")
    threads = torch.get_num_threads()
    gpu, processes = _find_gpu()
    try:
        device = choose_device(config.device)
        precision = choose_precision(config.precision, device)
    except Skip2BenchError as error:
        return _Compute(threads=threads, gpu=gpu, gpu_processes=processes, problem=str(error))
    return _Compute(
        threads=threads,
        gpu=gpu,
        gpu_processes=processes,
        device=device.type,
        precision=precision,
    )


def _find_gpu() -> tuple[Gpu | None, tuple[GpuProcess, ...] | None]:
    """The GPU that torch would use, and others' processes on it."""
    import torch

    if torch.backends.mps.is_available():
        name = f"{read_processor_name()}, by MPS"
        return Gpu(name=name, is_usable=True), None
    if not torch.cuda.is_available():
        return None, None
    properties = torch.cuda.get_device_properties(0)
    uuid = f"GPU-{properties.uuid}"
    installed = {gpu.uuid: gpu for gpu in list_installed_gpus() or ()}
    # before this process, too, takes memory of the GPU
    processes = list_gpu_processes(uuid if uuid in installed else None)
    try:
        free: int | None = torch.cuda.mem_get_info(0)[0]
    except RuntimeError:  # others have taken all of it, or hold it for themselves
        free = None
    gpu = Gpu(
        name=properties.name,
        is_usable=True,
        capability=(properties.major, properties.minor),
        driver=next((one.driver for one in installed.values()), None),
        cuda=torch.version.cuda,
        total_bytes=properties.total_memory,
        free_bytes=free,
    )
    return gpu, None if processes is None else tuple(processes)


def _find_unusable_gpu() -> Gpu | None:
    """One that NVIDIA's tool names and torch cannot use."""
    installed = list_installed_gpus()
    if not installed:
        return None
    return Gpu(name=installed[0].name, is_usable=False, driver=installed[0].driver)
