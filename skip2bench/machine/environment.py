"""What a run ran on: hardware, versions, commit, load. Enough to judge whether two runs compare."""

import os
import platform
import shlex
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from skip2bench import __version__
from skip2bench.errors import Skip2BenchError
from skip2bench.io.whole import utc_now
from skip2bench.machine.environment_record import Environment, GpuRecord
from skip2bench.machine.hardware import (
    count_cores,
    installed_version,
    read_gpu_driver,
    read_processor_name,
    run_command,
)

# Lightning's hint, wherever SLURM is installed, to call it by srun: ranks are started so, and
# everything else here is one process
warnings.filterwarnings("ignore", message="The `srun` command is available")


def describe_environment(device: torch.device, arguments: Sequence[str]) -> Environment:
    """Describe this machine and process as the content of `environment.json`.

    Args:
        device: The device of the run.
        arguments: The command line after `skip2bench`, to repeat the run.
    """
    commit, dirty = _read_commit()
    return Environment(
        started_at=utc_now(),
        command=shlex.join(["skip2bench", *arguments]),
        platform=platform.platform(),
        processor=read_processor_name(),
        cpu_count=count_cores(),
        memory_bytes=psutil.virtual_memory().total,
        gpu=_describe_gpu(device),
        python=platform.python_version(),
        torch=torch.__version__,
        litgpt=installed_version("litgpt"),
        lightning=installed_version("lightning"),
        skip2bench=__version__,
        threads=torch.get_num_threads(),
        commit=commit,
        dirty=dirty,
        load_average=os.getloadavg() if hasattr(os, "getloadavg") else None,
    )


def choose_device(name: str) -> torch.device:
    """The device that `--device` names; auto takes CUDA, then MPS, then the CPU.

    Raises:
        Skip2BenchError: the device is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if name not in available:
        raise Skip2BenchError(f"device is {name!r}; choose from auto, {', '.join(available)}")
    if not available[name]:
        raise Skip2BenchError(
            f"device {name!r} is not available to torch {torch.__version__}; use --device auto"
        )
    return torch.device("cuda", 0) if name == "cuda" else torch.device(name)


def choose_precision(name: str, device: torch.device) -> str:
    """The Fabric precision that `--precision` names.

    `auto` is bf16-true on a GPU that has it, else 32-true.

    Raises:
        Skip2BenchError: float16 on a CPU, which Fabric would silently replace.
    """
    if name.startswith("16-") and device.type == "cpu":
        raise Skip2BenchError(f"precision {name!r} needs a GPU; use {name.replace('16', 'bf16')!r}")
    if name != "auto":
        return name
    return "bf16-true" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "32-true"


def weights_dtype(precision: str) -> torch.dtype:
    """Dtype in which a Fabric precision holds the weights."""
    return {"bf16-true": torch.bfloat16, "16-true": torch.float16}.get(precision, torch.float32)


def _describe_gpu(device: torch.device) -> GpuRecord | None:
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    driver, power_limit = read_gpu_driver(f"GPU-{getattr(properties, 'uuid', '')}")
    return GpuRecord(
        name=properties.name,
        memory_bytes=properties.total_memory,
        compute_capability=f"{properties.major}.{properties.minor}",
        driver=driver,
        power_limit_watts=power_limit,
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        **_read_tf32(),
        cudnn_benchmark=torch.backends.cudnn.benchmark,
        cudnn_deterministic=torch.backends.cudnn.deterministic,
    )


def _read_tf32() -> dict[str, Any]:
    """Whether float32 products run as TF32; None where settings were mixed so that none says."""
    settings: dict[str, Callable[[], Any]] = {
        "allow_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
        "cudnn_allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
        "float32_matmul_precision": torch.get_float32_matmul_precision,
    }
    found: dict[str, Any] = dict.fromkeys(settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch asks for names that older torch lacks
        for name, read in settings.items():
            # torch refuses to answer where its old and its new names were both used
            with suppress(RuntimeError):
                found[name] = read()
    return found


def _read_commit() -> tuple[str | None, bool | None]:
    """Commit of the checkout this package runs from, and whether it has changes.

    None where it is no checkout.
    """
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None, None
    commit = run_command(["git", "-C", str(folder), "rev-parse", "HEAD"])
    changes = run_command(
        ["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"]
    )
    return commit, None if changes is None else bool(changes)
