"""A worker: the process that runs cells of one job, wherever an engine has started it.

    python -m skip2bench.compare.engines.worker FOLDER NAME

It takes cores of its own, looks whether its machine is what the comparison measures on, and runs
one cell after the other as `compare` itself does. It stops when the comparison is driven by another
call, or when the process that started it is gone.
"""

import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from skip2bench.compare.engines.job import BEAT_SECONDS, Job, JobTask, Workers, WorkerState
from skip2bench.compare.engines.kinds import list_differences
from skip2bench.compare.engines.stage import stage_spec
from skip2bench.compare.folder import CompareFolder
from skip2bench.compare.process import CellInterruptedError, cell_context
from skip2bench.compare.task import Place, Task, run_task
from skip2bench.errors import Skip2BenchError, printable
from skip2bench.io.whole import write_json
from skip2bench.machine.command_end import run_to_end
from skip2bench.machine.cores import OwnCores, own_cores
from skip2bench.machine.environment_record import Environment
from skip2bench.machine.processes import ProcessContext
from skip2bench.results.plain import DamagedFileError, read_json

LIBRARY_VARIABLES = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "CUBLAS_", "NCCL_", "TORCH", "PYTORCH_"),
    *("HF_", "TOKENIZERS_", "SKIP2BENCH_"),
)
"""How names of variables begin that decide how libraries work: they are the call's."""
_OF_ENGINES = ("SLURM_", "SUBMITIT_", "RAY_")
"""Variables that say how a worker was started: cells are no ranks of such a job."""


def main(arguments: list[str]) -> None:
    """Run the job that is named; the process ends as the command line's does."""
    folder, name = arguments
    run_to_end(lambda: _work(Path(folder), name))


def _work(folder: Path, name: str) -> None:
    workers = Workers(folder)
    try:
        job = Job.read(read_json(workers.job_file(name)))
    except (OSError, DamagedFileError, ValidationError) as error:
        raise Skip2BenchError(
            f"worker {socket.gethostname()} finds no job in {str(folder)!r}; the comparison's "
            "folder must be on a file system that all workers share: choose such an --out-dir"
        ) from error
    _set_variables(job.environment)
    state = _State(workers, job)
    try:
        _enter(job.directory)
        _look_for(job.reads)
        with own_cores(job.cores) as cores, state.beating(cores):
            _run_tasks(folder, job, state, cores)
    except (Skip2BenchError, OSError) as error:
        text = f"worker {state.host}: {_explain(error)}"
        state.end("refused", text)
        raise Skip2BenchError(text) from error
    except KeyboardInterrupt:
        state.end("ended", "interrupted")
        raise
    state.end("ended")


def _explain(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no room is left on the disk of {str(error.filename)!r}; make some and call again"
    return printable(str(error))


def _enter(directory: str) -> None:
    try:
        os.chdir(directory)
    except OSError as error:
        raise Skip2BenchError(
            f"cannot enter {directory!r} ({error.strerror}), where the comparison was called; call "
            "it in a folder that all workers share"
        ) from error


def _look_for(paths: Sequence[str]) -> None:
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        raise Skip2BenchError(
            f"does not see {', '.join(map(repr, missing))}, which the runs read; put it where all "
            "workers see it under one path"
        )


def _set_variables(wanted: dict[str, str]) -> None:
    for name in list(os.environ):
        if name.startswith((*LIBRARY_VARIABLES, *_OF_ENGINES)):
            del os.environ[name]
    os.environ.update(wanted)


class _State:
    """What this worker says it does, and whether it is to stop."""

    def __init__(self, workers: Workers, job: Job) -> None:
        self.host = socket.gethostname()
        self._workers, self._job = workers, job
        self._fields: dict[str, Any] = {"status": "starting"}
        self._cell_since = 0.0
        self._beats = 0
        self._starter = psutil.Process(os.getppid())
        self._over, self._lock = threading.Event(), threading.Lock()
        self.is_stopped = False

    def set(self, **values: Any) -> None:
        """Say something new."""
        self._fields.update(values)
        if "cell" in values:
            self._cell_since = time.monotonic()
        self._write()

    def end(self, status: str, error: str | None = None) -> None:
        """Say that this was all."""
        self._over.set()
        self.set(status=status, error=error, cell=None)

    @contextmanager
    def beating(self, cores: OwnCores) -> Iterator[None]:
        """Within, say every moment that this process lives, and look whether it is to stop."""
        self.set(cores=cores.cores)
        thread = threading.Thread(target=self._beat, args=(cores,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _beat(self, cores: OwnCores) -> None:
        while not self._over.wait(BEAT_SECONDS):
            token = self._workers.read_token()
            if token not in (None, self._job.token) or not self._has_starter():
                self.is_stopped = True
            self._fields["beside"] = cores.count_beside()
            self._write()

    def _has_starter(self) -> bool:
        with suppress(psutil.Error):
            return self._starter.is_running() and self._starter.status() != psutil.STATUS_ZOMBIE
        return False

    def _write(self) -> None:
        with self._lock, suppress(OSError):  # a disk that is full or away for a moment
            self._beats += 1
            running = time.monotonic() - self._cell_since if self._fields.get("cell") else None
            write_json(
                self._workers.state_file(self._job.name),
                WorkerState(
                    job=self._job.name,
                    token=self._job.token,
                    host=self.host,
                    process=os.getpid(),
                    beats=self._beats,
                    clock=time.time(),
                    cell_seconds=running,
                    **self._fields,
                ),
            )


def _run_tasks(folder: Path, job: Job, state: _State, cores: OwnCores) -> None:
    # who only looks at its machine need not load what cells do
    context = cell_context(_device_type(job), job.data) if job.tasks else get_context("spawn")
    machine = _look_at_machine(folder, job, context)
    state.set(status="running", machine=machine)
    if job.machine is not None and (different := list_differences(job.machine, machine)):
        raise Skip2BenchError(
            f"another kind of machine than the comparison's ({'; '.join(different)}); figures of "
            "both do not compare: keep to machines of one kind, or compare in two --out-dir"
        )
    cells = CompareFolder(folder)
    place = Place(host=state.host, cores=cores.cores, count_beside=cores.count_beside)
    for one in job.tasks:
        if state.is_stopped:
            raise KeyboardInterrupt
        state.set(cell=one.name)
        spec = _stage(one, job.stage)
        task = Task(name=one.name, key=one.key, spec=spec)
        with cells.cell_released(task.name):
            if not one.is_repeated and cells.has_ended_well(task.name, task.key):
                continue  # by a worker that was lost right after it, or of an earlier call
        try:
            run_task(cells, task, context, place, should_stop=lambda: state.is_stopped)
        except CellInterruptedError as interruption:
            raise KeyboardInterrupt from interruption


def _stage(one: JobTask, stage: str | None) -> dict[str, Any]:
    if stage is None:
        return one.spec
    return stage_spec(one.spec, Path(stage), reads_cache=one.reads_cache)


def _device_type(job: Job) -> str:
    if job.device in ("cpu", "mps"):
        return job.device
    if job.device == "cuda" or (job.machine and job.machine.gpu):
        return "cuda"
    from skip2bench.machine.environment import choose_device

    return choose_device(job.device).type


def _look_at_machine(folder: Path, job: Job, context: ProcessContext) -> Environment:
    """What this machine is, as a cell finds it: another process looks, so that none of it stays."""
    found = Workers(folder).machine_file(job.name)
    process = context.Process(target=_describe_machine, args=(found, job.device, dict(os.environ)))
    process.start()
    process.join()
    try:
        return Environment.read(read_json(found))
    except (OSError, DamagedFileError, ValidationError) as error:
        raise Skip2BenchError(
            f"cannot say what machine this is (exit status {process.exitcode}); see "
            f"{Workers(folder).log_file(job.name)}"
        ) from error
    finally:
        found.unlink(missing_ok=True)


def _describe_machine(file: Path, device: str, variables: dict[str, str]) -> None:
    """In a process as cells are."""
    os.environ.update(variables)
    from skip2bench.machine.environment import choose_device, describe_environment

    write_json(file, describe_environment(choose_device(device), ()))


if __name__ == "__main__":
    main(sys.argv[1:])
