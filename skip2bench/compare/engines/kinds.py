"""What must be the same of two machines for figures of both to stand in one comparison."""

from collections.abc import Iterator
from typing import Any

from skip2bench.io.units import format_bytes
from skip2bench.machine.environment_record import Environment

_VERSIONS = ("skip2bench", "torch", "litgpt", "lightning", "python")
_HARDWARE = ("processor", "cpu_count", "threads")
_OF_GPU = ("name", "memory_bytes", "driver", "cuda", "cudnn")
_MACHINE = (*_VERSIONS, *_HARDWARE, "platform", "memory_bytes", "gpu", "commit", "dirty")
_SAME_MEMORY = 0.02
"""The share by which two machines with the same memory may differ: what firmware keeps."""


def of_machine(environment: Environment, machine: Environment) -> Environment:
    """An environment with what another one says of its machine and its versions."""
    return environment.model_copy(update={name: getattr(machine, name) for name in _MACHINE})


def list_differences(wanted: Environment, found: Environment) -> list[str]:
    """Each difference that makes figures incomparable, in words; empty where there is none."""
    computing = (
        text
        for name in (*_HARDWARE, *_VERSIONS)
        for text in _differ(name, getattr(wanted, name), getattr(found, name))
    )
    return [*computing, *list_memory_differences(wanted, found)]


def list_memory_differences(wanted: Environment, found: Environment) -> list[str]:
    """The differences in what a run has room in, the GPU as a whole among them."""
    return list(_differ_in_memory(wanted, found))


def _differ_in_memory(wanted: Environment, found: Environment) -> Iterator[str]:
    one, other = wanted.memory_bytes or 0, found.memory_bytes or 0
    if abs(one - other) > _SAME_MEMORY * max(one, other):
        yield f"memory {format_bytes(other)}, not {format_bytes(one)}"
    if (wanted.gpu is None) != (found.gpu is None):
        yield "no GPU" if found.gpu is None else f"GPU {found.gpu.name}, not the processor alone"
    elif wanted.gpu and found.gpu:
        for name in _OF_GPU:
            yield from _differ(f"GPU {name}", getattr(wanted.gpu, name), getattr(found.gpu, name))


def _differ(name: str, wanted: Any, found: Any) -> Iterator[str]:
    if wanted != found:
        yield f"{name} {found}, not {wanted}"
