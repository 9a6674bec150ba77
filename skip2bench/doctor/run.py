"""`skip2bench doctor`: this machine beside the guide's section 8.1, and what a run would take here.

Works without torch, as far as that goes: a torch that is missing is one of its findings.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from skip2bench.config.commands import DoctorConfig
from skip2bench.doctor.rows import examine_machine, examine_run, examine_versions
from skip2bench.doctor.snapshot import Machine, inspect_machine
from skip2bench.io.console import Waiting
from skip2bench.io.resources import EMBEDDED_MODEL
from skip2bench.io.units import format_bytes
from skip2bench.machine.guide import choose_micro_batch_size

if TYPE_CHECKING:
    from skip2bench.cache.arrays import Tier
    from skip2bench.projection.sizes import Projection


def run_doctor(config: DoctorConfig) -> dict[str, Any]:
    """Look at this machine and at what a run would take; nothing is written.

    Returns:
        `rows`, the `machine` and the `projection` that they are made from, and `error`: why nothing
        can run here, or None.

    Raises:
        Skip2BenchError: a model, data, method or blocks that do not exist.
    """
    with Waiting("looking at this machine"):
        machine = inspect_machine(config)
        projection = None if machine.device is None else _project(config, machine)
    rows = [*examine_machine(machine), *examine_versions(machine)]
    if projection:
        rows += examine_run(machine, projection)
    return {
        "device": machine.device,
        "precision": machine.precision,
        "rows": [asdict(row) for row in rows],
        "machine": asdict(machine),
        "projection": asdict(projection) if projection else None,
        "error": find_error(machine, projection),
    }


def find_error(machine: Machine, projection: "Projection | None") -> str | None:
    """Why nothing can run here, with the remedy; None where something can."""
    if machine.problem or projection is None:
        return machine.problem
    total = machine.device_total_bytes
    largest = max(machine.memory.usable_bytes, 0 if total is None else total)
    if projection.weights_bytes <= largest:
        return None
    is_wide = projection.weights_bytes == 4 * projection.total_parameters
    return (
        f"the weights of {projection.model!r} take {format_bytes(projection.weights_bytes)} in "
        f"{projection.precision}, more than any memory here ({format_bytes(largest)}); use a "
        f"smaller model{', or --precision bf16-true' * is_wide}"
    )


def _project(config: DoctorConfig, machine: Machine) -> "Projection":
    import torch

    from skip2bench.doctor.subject import load_subject
    from skip2bench.projection.methods import project

    assert machine.device is not None
    assert machine.precision is not None
    disk = machine.cache_disk or machine.results_disk
    free: dict[Tier, int | None] = {}
    if machine.device != "cpu":
        free["device"] = machine.device_free_bytes
    free |= {"ram": machine.memory.available_bytes, "disk": disk.free_bytes}
    return project(
        config,
        load_subject(config),
        torch.device("cuda", 0) if machine.device == "cuda" else torch.device(machine.device),
        machine.precision,
        choose_micro_batch_size(
            machine.device,
            machine.device_total_bytes,
            is_embedded=config.model == EMBEDDED_MODEL,
        ),
        free,
    )
