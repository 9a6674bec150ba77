"""Where spreading a comparison stops scaling: by its groups, and by the process that drives it.

    python benchmarks/engines.py COMPARISON [--cells 1000] [--workers 1,8,64] [--drive]

The first table is arithmetic: groups of cells, as long as those of COMPARISON's folder took (drawn
with replacement, seed by seed), on so many workers. With --drive, the real driver gives out and
takes in as many cells of a matrix as asked for, on workers that do nothing but copy a finished run
into each cell's folder: what is left is the driver's own time, file system included.
"""

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import torch

from skip2bench.compare.engines import crew as crews
from skip2bench.compare.engines.engine import Ended, Slot
from skip2bench.compare.engines.job import Job, Workers, WorkerState
from skip2bench.compare.engines.schedule import expect_seconds
from skip2bench.compare.folder import CompareFolder
from skip2bench.compare.process import Outcome
from skip2bench.compare.run import run_comparison
from skip2bench.config.compare import load_compare_config
from skip2bench.config.train import make_train_config
from skip2bench.io.whole import utc_now, write_json
from skip2bench.machine.environment import describe_environment
from skip2bench.results.comparison_records import ComparisonResult, ComparisonResults
from skip2bench.results.plain import read_json
from skip2bench.train.run import run_training

START_SECONDS = 8.0
"""What a worker takes before its first cell: to start, load, and look at its machine."""
REPEATS = 20


def read_groups(folder: Path) -> list[list[float]]:
    """Wall seconds of a comparison's cells, seed by seed."""
    results = ComparisonResults.read(read_json(folder / "comparison_results.json"))
    groups: dict[int, list[float]] = defaultdict(list)
    for cell in results.cells.values():
        if cell.status == "ok" and not cell.is_left_out and cell.role != "cache":
            groups[cell.seed].append(cell.figures["wall_seconds"])
    longest = max(map(len, groups.values()))
    return [group for group in groups.values() if len(group) == longest]


def simulate(measured: list[list[float]], cells: int, workers: Sequence[int]) -> None:
    """Print how long that many cells take, and what share of the workers' time is used."""
    size = len(measured[0])
    print(
        f"{cells} cells in groups of {size}, of {statistics.fmean(map(sum, measured)):.0f} s each"
    )
    print("workers   hours   speedup   used   without groups")
    draw = random.Random(0)
    for count in workers:
        hours, speedups, free = [], [], []
        for _ in range(REPEATS):
            groups = [draw.choice(measured) for _ in range(-(-cells // size))]
            work = sum(map(sum, groups))
            taken = expect_seconds([[START_SECONDS, *group] for group in groups], count)
            loose = [[seconds] for group in groups for seconds in group]
            hours.append(taken / 3600)
            speedups.append(work / taken)
            free.append(work / expect_seconds(loose, count))
        speedup = statistics.median(speedups)
        print(
            f"{count:7d}{statistics.median(hours):8.2f}{speedup:9.1f}x{speedup / count:7.0%}"
            f"{statistics.median(free):11.1f}x"
        )


class CopyingEngine:
    """Workers that copy a finished run into each cell's folder, and have ended then."""

    cores = None

    def __init__(self, template: Path, workers: int) -> None:
        self.slots = [Slot(name=f"copy-{n}", host="here") for n in range(workers)]
        self._template = template
        self.copy_seconds = 0.0
        self._machine = describe_environment(torch.device("cpu"), ())

    def start(self, folder: Path, jobs: Sequence[tuple[Slot, str]]) -> None:
        """Do all of it at once."""
        began = time.perf_counter()
        for _, name in jobs:
            workers = Workers(folder)
            job = Job.read(read_json(workers.job_file(name)))
            cells = CompareFolder(folder)
            for task in job.tasks:
                shutil.copytree(self._template, cells.run_folder(task.name))
                cells.write_outcome(
                    task.name,
                    task.key,
                    Outcome(
                        status="ok",
                        error=None,
                        started_at=utc_now(),
                        wall_seconds=1.0,
                        other_cpu_cores=0.0,
                        exit_status=0,
                    ),
                )
            state = WorkerState(
                job=name,
                token=job.token,
                host="here",
                process=1,
                status="ended",
                beats=1,
                clock=time.time(),
                machine=self._machine,
            )
            write_json(workers.state_file(name), state)
        self.copy_seconds += time.perf_counter() - began

    def poll(self, _slot: Slot) -> Ended | None:
        """It has ended well."""
        return Ended(exit_status=0, line="")

    def end(self, _slot: Slot) -> None:
        """Nothing is left."""

    def is_alive(self, _slot: Slot) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Nothing is left."""


def drive(cells: int, workers: int) -> None:
    """Print what the driver takes for a cell."""
    with tempfile.TemporaryDirectory() as folder:
        shared = {"train_samples": 32, "val_samples": 8, "max_steps": 20, "eval_interval": 10}
        template = Path(folder) / "run"
        run_training(make_train_config(shared | {"method": "lora", "out_dir": template}), ())
        methods = ("lora", "lora-all", "last", "lora-last")
        seeds = cells // len(methods)
        config = load_compare_config(
            shared
            | {
                "methods": methods,
                "seeds": seeds,
                "bench": False,
                "engine": "slurm",
                "cell_cores": 1,
            }
            | {"out_dir": Path(folder) / "out"}
        )
        engine = CopyingEngine(template, workers)
        with mock.patch.object(crews, "_make_engine", return_value=engine):
            began = time.perf_counter()
            result = run_comparison(config, ["compare"])
        seconds = time.perf_counter() - began
        assert isinstance(result, ComparisonResult)
        count = len(result.cells)
        own = seconds - engine.copy_seconds
        print(f"{count} cells on {workers} workers: {seconds:.1f} s, {own:.1f} s the driver's")
        print(f"{own / count * 1000:.0f} ms a cell: {count / own:.0f} cells a second at most")
        print(json.dumps(result.statuses))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("comparison", type=Path, help="folder of a comparison")
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--workers", default="1,4,8,16,32,64,128")
    parser.add_argument("--drive", action="store_true")
    given = parser.parse_args()
    workers = [int(text) for text in given.workers.split(",")]
    simulate(read_groups(given.comparison), given.cells, workers)
    if given.drive:
        drive(given.cells, max(workers))


if __name__ == "__main__":
    main()
