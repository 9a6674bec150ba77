"""Where the runs of a comparison become processes: options of `compare`, and of `tune`'s finalists.

They say where and how many at a time, never what is run.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from skip2bench.config.options import (
    check_choice,
    check_pairs,
    check_positive,
    option,
    read_pairs,
)
from skip2bench.errors import Skip2BenchError

EngineName = Literal["local", "ray", "slurm"]
_MOST_WORKERS = 4096
_MOST_CORES = 2**16
_MOST_RETRIES = 100


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What runs the cells."""

    engine: EngineName = option(
        "local",
        "Where runs are made: local, on this machine; ray, on a Ray cluster (extra 'ray'); slurm, "
        "as jobs of SLURM (extra 'slurm').",
        role="call",
    )
    parallel: int | None = option(
        None,
        "Runs at once, each on a GPU or on cores of its own (default: one here, what the cluster "
        "has room for with ray, 8 jobs with slurm).",
        role="call",
    )
    cell_cores: int | None = option(
        None,
        "Cores of a run, to which it is pinned (default: an equal share of the machine; with slurm "
        "there is none).",
        role="call",
    )
    address: str | None = option(
        None, "Address of the Ray cluster (default: the one of this machine).", role="call"
    )
    engine_options: tuple[str, ...] = option(
        (),
        "What to ask of the cluster, as NAME=VALUE: a custom resource of Ray, or an option of "
        "sbatch such as partition=gpu or exclusive; repeat the flag.",
        repeatable=True,
        role="call",
    )
    stage: Path | None = option(
        None,
        "Folder on each worker's own disk, to which checkpoint, data and kept caches are copied "
        "once before runs read them.",
        role="call",
    )
    retries: int = option(2, "How often runs are started again whose worker was lost.", role="call")

    def _check_engine(self) -> None:
        check_choice("engine", self.engine, get_args(EngineName))
        if self.parallel is not None:
            check_positive("parallel", self.parallel, _MOST_WORKERS)
        if self.cell_cores is not None:
            check_positive("cell_cores", self.cell_cores, _MOST_CORES)
        if not 0 <= self.retries <= _MOST_RETRIES:
            raise Skip2BenchError(f"retries is {self.retries}; give 0 to {_MOST_RETRIES}")
        if self.address is not None and self.engine != "ray":
            raise Skip2BenchError(
                f"address {self.address!r} is of a Ray cluster; add --engine ray, or leave it out"
            )
        if self.engine_options and self.engine == "local":
            raise Skip2BenchError(
                "engine_options are for a cluster; add --engine ray or slurm, or leave them out"
            )
        is_slurm = self.engine == "slurm"
        check_pairs("engine_options", self.engine_options, may_be_bare=is_slurm)
        sized = {"cpus-per-task", "exclusive"} & self.asked_of_engine.keys()
        is_local = self.asked_of_engine.get("cluster") == "local"
        if is_slurm and self.cell_cores is None and not (sized or is_local):
            raise Skip2BenchError(
                "a job of SLURM gets one core unless it asks for more; give --cell-cores, or "
                "--engine-options exclusive for whole nodes"
            )

    @property
    def asked_of_engine(self) -> dict[str, str]:
        """What to ask of the cluster, by name; empty text for a switch of sbatch."""
        return read_pairs(self.engine_options)

    @property
    def is_spread(self) -> bool:
        """True where workers run the cells; else this process runs one after the other."""
        is_here = self.engine == "local" and self.parallel in (None, 1)
        return not is_here or self.cell_cores is not None or self.stage is not None

    def engine_values(self) -> dict[str, Any]:
        """These options alone, by name."""
        return {item.name: getattr(self, item.name) for item in fields(EngineConfig)}
