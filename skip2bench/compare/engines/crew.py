"""The workers of a call: an engine, what its machines are, and the jobs they are given."""

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from skip2bench.compare.engines.engine import CellNeeds, Ended, Engine, Slot
from skip2bench.compare.engines.job import Call, Job, JobTask, Workers, WorkerState
from skip2bench.compare.engines.kinds import list_differences
from skip2bench.compare.engines.local import LocalEngine
from skip2bench.compare.engines.on_ray import RayEngine
from skip2bench.compare.engines.on_slurm import SlurmEngine
from skip2bench.compare.engines.stage import list_read
from skip2bench.compare.engines.worker import LIBRARY_VARIABLES
from skip2bench.compare.plan import ComparisonPlan
from skip2bench.config.compare import CompareConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import Waiting, note
from skip2bench.io.units import format_amount, parse_bytes
from skip2bench.io.whole import write_json
from skip2bench.machine.environment_record import Environment
from skip2bench.machine.signals import interrupted_by_sigterm

_POLL_SECONDS = 0.5
_LOOK_SECONDS = 600.0
"""What a worker gets to say what machine it is, once it has begun."""
_GPU = "GPU"
"""Among the options of an engine: how many each run has, where there is none here."""
_OWN_FLAGS = {"CPU": "--cell-cores", "memory": "--max-memory"}
"""Resources of Ray's that have an option of their own."""


@dataclass(kw_only=True)
class Crew:
    """Who runs the cells of a comparison."""

    engine: Engine
    workers: Workers
    call: Call
    plan: ComparisonPlan
    machine: Environment | None = None
    """What all of them are like."""
    _made: int = field(default=0)

    def make_job(self, slot: Slot, tasks: Sequence[JobTask]) -> Job:
        """Write down what the worker in a slot is to do."""
        self._made += 1
        config, training = self.plan.config, self.plan.training.config
        job = Job(
            name=f"{slot.name}-{self.call.token[:4]}-{self._made}",
            token=self.call.token,
            tasks=tuple(tasks),
            directory=str(Path.cwd()),
            device=training.device,
            data=training.data,
            reads=list_read(config.cell_config(it.values) for it in self.plan.configurations),
            machine=self.machine,
            cores=self.engine.cores,
            environment={k: v for k, v in os.environ.items() if k.startswith(LIBRARY_VARIABLES)},
            stage=None if config.stage is None else str(config.stage),
        )
        write_json(self.workers.job_file(job.name), job)
        return job

    def start(self, jobs: Sequence[tuple[Slot, Job]]) -> None:
        """Start workers for jobs."""
        if jobs:
            folder = self.workers.path.parent.resolve()
            self.engine.start(folder, [(slot, job.name) for slot, job in jobs])

    def find_machine(self) -> None:
        """Let a worker of every machine that is known say what it is.

        Raises:
            Skip2BenchError: none can, or they are of different kinds.
        """
        by_host = {slot.host: slot for slot in reversed(self.engine.slots)}
        jobs = [(slot, self.make_job(slot, ())) for slot in by_host.values()]
        self.start(jobs)
        with Waiting("waiting for a worker"):
            found = [self._wait_for(slot, job) for slot, job in jobs]
        first = found[0]
        for other in found[1:]:
            assert first.machine is not None
            assert other.machine is not None
            if different := list_differences(first.machine, other.machine):
                raise Skip2BenchError(
                    f"{first.host} and {other.host} are different kinds of machines "
                    f"({'; '.join(different)} on {other.host}); figures of both do not compare: "
                    "choose one kind with --engine-options"
                )
        self.machine = first.machine

    def _wait_for(self, slot: Slot, job: Job) -> WorkerState:
        began = None
        while (end := self.engine.poll(slot)) is None:
            time.sleep(_POLL_SECONDS)
            if began is None and self.workers.read_state(job.name):
                began = time.monotonic()
            if began is not None and time.monotonic() - began > _LOOK_SECONDS:
                raise Skip2BenchError(
                    f"worker {slot.host or slot.name} does not say what machine it is; see "
                    f"{self.workers.log_file(job.name)}"
                )
        state = self.workers.read_state(job.name)
        if state is None or state.status != "ended" or state.machine is None:
            raise Skip2BenchError(self.explain(slot, job, end, state))
        return state

    def explain(self, slot: Slot, job: Job, end: Ended, state: WorkerState | None) -> str:
        """Why a worker did not do what it was told, in a line."""
        if state is not None and state.status == "refused" and state.error:
            return state.error
        if end.line.startswith("worker "):
            return end.line
        where = (state.host if state else None) or slot.host or slot.name
        said = f": {end.line}" if end.line else ""
        return f"worker {where} was lost (exit status {end.exit_status}){said}"

    def dismiss(self, running: Sequence[Slot], patience_seconds: float) -> None:
        """Tell all workers to stop, and wait until they have; those that do not are ended."""
        self.call = self.call.model_copy(update={"token": f"{self.call.token}-over"})
        self.tell()
        until = time.monotonic() + patience_seconds
        left = list(running)
        while left and time.monotonic() < until:
            left = [slot for slot in left if self.engine.poll(slot) is None]
            time.sleep(0.1)

    def tell(self, cells: int | None = None, left_seconds: float | None = None) -> None:
        """Say in the folder who drives the comparison, and how far it is."""
        changes: dict[str, object] = {"workers": tuple(slot.name for slot in self.engine.slots)}
        if cells is not None:
            changes |= {"cells": cells, "left_seconds": left_seconds}
        self.call = self.call.model_copy(update=changes)
        write_json(self.workers.call_file, self.call)


@contextmanager
def gather(plan: ComparisonPlan, folder: Path) -> Iterator[Crew]:
    """Workers for a comparison in `folder`, which exists; they are gone afterwards.

    Raises:
        Skip2BenchError: the engine is not there, or what it has does not do.
    """
    workers = Workers(folder)
    config = plan.config
    is_new = not workers.path.exists()
    with interrupted_by_sigterm():
        call = workers.begin(config.engine)
        engine: Engine | None = None
        crew: Crew | None = None
        try:
            engine = _make_engine(plan, workers)
            crew = Crew(engine=engine, workers=workers, call=call, plan=plan)
            crew.find_machine()
            assert crew.machine is not None
            count = format_amount(len(engine.slots), "worker")
            cores = engine.cores or crew.machine.cpu_count
            note(f"{count} with {cores} of their own cores each: {_describe(crew.machine)}")
            yield crew
        finally:
            # whoever still works for this call stops by it
            last = crew.call if crew else call
            over = {"token": f"{call.token}-over", "is_over": True}
            write_json(workers.call_file, last.model_copy(update=over))
            if engine is not None:
                engine.close()
            elif is_new:
                _remove(workers)


def _remove(workers: Workers) -> None:
    workers.call_file.unlink()
    workers.path.rmdir()


def _make_engine(plan: ComparisonPlan, workers: Workers) -> Engine:
    config = plan.config
    needs = _find_needs(config, plan.training.device.type)
    if config.engine == "local":
        return LocalEngine(config, needs.gpus)
    if config.engine == "ray":
        return RayEngine(config, needs)
    return SlurmEngine(config, needs, workers.path / "slurm")


def _find_needs(config: CompareConfig, device_type: str) -> CellNeeds:
    devices = config.cell_config({}).devices
    gpus = (devices if isinstance(devices, int) else 1) if device_type == "cuda" else 0
    limit = config.max_memory
    resources = _read_resources(config.asked_of_engine) if config.engine == "ray" else {}
    gpus = int(resources.pop(_GPU, gpus))
    return CellNeeds(
        cores=config.cell_cores,
        gpus=gpus,
        memory_bytes=None if limit is None else parse_bytes("max_memory", limit),
        resources=resources,
    )


def _read_resources(asked: Mapping[str, str]) -> dict[str, float]:
    """Amounts of Ray's resources, by name.

    Raises:
        Skip2BenchError: one is none, or has an option of its own.
    """
    for name, flag in _OWN_FLAGS.items():
        if name in asked:
            raise Skip2BenchError(f"engine_options has {name}; give it as {flag}")
    found = {}
    for name, value in asked.items():
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = math.nan
        if not 0 < found[name] < math.inf:
            raise Skip2BenchError(
                f"engine_options of Ray are amounts of resources, and {name} is {value!r}; write "
                "NAME=1"
            )
    if not found.get(_GPU, 1.0).is_integer():
        raise Skip2BenchError(
            f"engine_options has {_GPU}={asked[_GPU]}; runs that share a GPU do not compare: give "
            "a whole number"
        )
    return found


def _describe(machine: Environment) -> str:
    if machine.gpu is not None:
        return str(machine.gpu.name)
    return str(machine.processor)
