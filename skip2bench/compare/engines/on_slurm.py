"""Workers as jobs of SLURM, through submitit: those that begin together are one array.

submitit's own local executor stands in where there is no SLURM: --engine-options cluster=local.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from skip2bench.compare.engines.engine import LOST, CellNeeds, Ended, Slot, launch_and_wait
from skip2bench.config.engine import EngineConfig
from skip2bench.errors import Skip2BenchError, printable
from skip2bench.io.console import note
from skip2bench.machine.hardware import run_command

_PARALLEL = 8
"""Jobs at once where nobody says how many."""
_MINUTES = 24 * 60
"""What a job may take where no time is given."""
_NEVER = ("BadConstraints", "PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit")
"""Reasons to wait that nothing but another request ends."""
_QUEUE_SECONDS = 5.0
"""Between two looks at the queue."""
_GONE_SECONDS = 15.0
"""How long a result may take to be seen after its job has left the queue."""
_MIB = 2**20
_NAME = "skip2bench"


class SlurmEngine:
    """Jobs, in an array where several begin together."""

    def __init__(self, config: EngineConfig, needs: CellNeeds, folder: Path) -> None:
        """Nothing is submitted yet; `folder` takes submitit's files.

        Raises:
            Skip2BenchError: submitit or SLURM is not there, or an option is none of sbatch's.
        """
        submitit = _import_submitit()
        asked = dict(config.asked_of_engine)
        cluster = asked.pop("cluster", "slurm")
        self.is_local = cluster == "local"
        self.cores: int | None = config.cell_cores
        self.slots: Sequence[Slot] = [
            Slot(name=f"job-{n}") for n in range(config.parallel or _PARALLEL)
        ]
        self._jobs: dict[str, Any] = {}
        self._asked = -_QUEUE_SECONDS
        self._queued: dict[str, str] | None = None
        self._told = {"None"}
        self._gone: dict[str, float] = {}
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            self._executor.update_parameters(**_parameters(asked, needs, is_local=self.is_local))
        except (RuntimeError, NameError, ValueError, TypeError, FileNotFoundError) as error:
            reason = printable(str(error).strip().splitlines()[0])
            raise Skip2BenchError(
                f"--engine slurm cannot be used here ({reason}); call it where sbatch is found, "
                "with --engine-options that sbatch has"
            ) from error

    def start(self, folder: Path, jobs: Sequence[tuple[Slot, str]]) -> None:
        """Submit a job for each, as one array.

        Raises:
            Skip2BenchError: SLURM takes none such.
        """
        submitted = []
        try:
            with self._executor.batch():
                submitted = [
                    (slot, self._executor.submit(launch_and_wait, str(folder.resolve()), name))
                    for slot, name in jobs
                ]
        except Exception as error:
            reason = printable(" ".join(str(error).split()))
            raise Skip2BenchError(
                f"SLURM refuses the jobs ({reason}); give what it wants with --engine-options"
            ) from error
        self._jobs |= {slot.name: job for slot, job in submitted}

    def poll(self, slot: Slot) -> Ended | None:
        """How the job in a slot ended; None while it runs or waits in its queue."""
        job = self._jobs[slot.name]
        if not self._has_ended(slot):
            return None
        if not job.paths.result_pickle.exists():
            said = self._says(job)
            return Ended(exit_status=LOST, line=f"job {job.job_id} left SLURM's queue{said}")
        try:
            status, line = job.result()
        except Exception as error:  # noqa: BLE001 - whatever the job raised, or why it never ran
            reason = printable(str(error).strip().splitlines()[-1])
            return Ended(exit_status=LOST, line=f"job {job.job_id}: {reason}")
        return Ended(exit_status=status, line=line)

    def _has_ended(self, slot: Slot) -> bool:
        """True where a job has left its result, or has been gone from the queue for a while.

        Not by sacct, as submitit would ask: many clusters keep no accounts.
        """
        job = self._jobs[slot.name]
        if self.is_local:
            return bool(job.done())
        if job.paths.result_pickle.exists():
            self._gone.pop(slot.name, None)
            return True
        now = time.monotonic()
        if now - self._asked > _QUEUE_SECONDS:
            self._asked, self._queued = now, _list_queued()
        if self._queued is None or str(job.job_id) in self._queued:
            self._gone.pop(slot.name, None)
            self._explain_wait(str(job.job_id))
            return False
        return now - self._gone.setdefault(slot.name, now) > _GONE_SECONDS

    def _explain_wait(self, job_id: str) -> None:
        """Say once why jobs wait.

        Raises:
            Skip2BenchError: they would wait for ever.
        """
        reason = (self._queued or {}).get(job_id, "None")
        if reason in _NEVER:
            raise Skip2BenchError(
                f"SLURM will never start job {job_id} ({reason}): no node it may use has what a "
                "run asks for; ask for less with --cell-cores, --max-memory or --engine-options"
            )
        if reason not in self._told:
            self._told.add(reason)
            note(f"job {job_id} waits in SLURM's queue: {reason}")

    def _says(self, job: Any) -> str:
        """The last line of a job's own log, behind a colon."""
        with suppress(OSError):
            lines = job.paths.stderr.read_text(encoding="utf-8", errors="replace").split("\n")
            if said := [line.strip() for line in lines if line.strip()]:
                return f": {printable(said[-1])}"
        return ""

    def end(self, slot: Slot) -> None:
        """Cancel the job in a slot."""
        job = self._jobs.pop(slot.name, None)
        self._gone.pop(slot.name, None)
        if job is not None and not job.paths.result_pickle.exists():
            with suppress(Exception):  # it has ended meanwhile
                job.cancel()

    def is_alive(self, slot: Slot) -> bool:
        """True: SLURM looks for another node itself."""
        return True

    def close(self) -> None:
        """Cancel all that is left, and wait a moment for it."""
        jobs = list(self._jobs.values())
        for slot in self.slots:
            self.end(slot)
        until = time.monotonic() + 5.0
        while time.monotonic() < until and self.is_local and not all(job.done() for job in jobs):
            time.sleep(0.2)


def _list_queued() -> dict[str, str] | None:
    """Of one's own jobs that wait or run, those of arrays one by one, why; None for no answer."""
    text = run_command(["squeue", "--me", "--noheader", "--array", "--format=%i|%r"])
    if text is None:
        return None
    return dict(line.split("|", 1) for line in text.splitlines() if "|" in line)


def _import_submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise Skip2BenchError(
            "--engine slurm needs submitit: pip install 'skip2bench[slurm]'"
        ) from error
    return submitit


def _parameters(asked: dict[str, str], needs: CellNeeds, *, is_local: bool) -> dict[str, Any]:
    """What submitit is told; what it has no name for goes to sbatch as it is."""
    minutes = asked.pop("time", None)
    found: dict[str, Any] = {"name": _NAME, "timeout_min": _minutes(minutes)}
    if is_local:
        return found
    if needs.cores is not None:
        found["cpus_per_task"] = needs.cores
        # srun takes nothing of that from sbatch since SLURM 22.05
        found["slurm_srun_args"] = [f"--cpus-per-task={needs.cores}"]
    if needs.gpus and not asked.keys() & {"gres", "gpus", "gpus-per-node"}:
        found["gpus_per_node"] = needs.gpus
    if needs.memory_bytes:
        found["slurm_mem"] = f"{-(-needs.memory_bytes // _MIB)}M"
    if "partition" in asked:
        found["slurm_partition"] = asked.pop("partition")
    if asked:
        found["slurm_additional_parameters"] = {
            name.replace("-", "_"): value or True for name, value in asked.items()
        }
    return found


def _minutes(text: str | None) -> int:
    """Of sbatch's spellings: minutes, H:M:S, D-H, D-H:M, D-H:M:S, M:S.

    Raises:
        Skip2BenchError: it is none of them.
    """
    if text is None:
        return _MINUTES
    try:
        days, _, rest = text.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        if days:
            hours, minutes, seconds = (*parts, 0, 0)[:3]
        elif len(parts) == 3:
            hours, minutes, seconds = parts
        else:
            hours, (minutes, seconds) = 0, (*parts, 0)[:2]
        return int(days or 0) * 24 * 60 + hours * 60 + minutes + bool(seconds)
    except ValueError as error:
        raise Skip2BenchError(
            f"engine_options has time={text!r}; write minutes, or hours:minutes:seconds"
        ) from error
