"""Cells on workers: the same losses as one after the other, whatever is killed in between."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest
from tiny import as_written

from skip2bench.compare.engines import crew as crews
from skip2bench.compare.engines import spread as spreading
from skip2bench.compare.engines.job import Workers, WorkerState
from skip2bench.compare.engines.local import LocalEngine
from skip2bench.compare.engines.stage import stage_path
from skip2bench.compare.engines.status import read_status
from skip2bench.compare.run import run_comparison
from skip2bench.config.compare import load_compare_config
from skip2bench.errors import Skip2BenchError
from skip2bench.machine.environment_record import GpuRecord
from skip2bench.results.reading import read_run

CELLS = 13
HERE = sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1
FULL = pytest.mark.skipif(
    "SKIP2BENCH_TEST_ENGINES" not in os.environ,
    reason="starts and kills whole clusters, for minutes: set SKIP2BENCH_TEST_ENGINES=1",
)
pytestmark = pytest.mark.skipif(not HERE, reason="pins two workers to cores of their own, on Linux")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """As many threads as a worker has cores, whoever starts it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def settings(tiny_checkpoint, tiny_data):
    """A matrix of 12 cells of a second, each of one core."""
    return {
        "checkpoint_dir": str(tiny_checkpoint),
        "data": str(tiny_data),
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "max_steps": 6,
        "eval_interval": 3,
        "lr_warmup_steps": 1,
        "lora_dropout": 0.0,
        "device": "cpu",
        "bench": False,
        "seeds": 2,
        "methods": ("lora", "last", "skip2"),
        "blocks": ("0,1", "2"),
        "baseline": "lora",
        "learning_rates": (1e-2,),
        "cell_cores": 1,
    }


def run(settings, folder, **more):
    config = load_compare_config(settings | {"out_dir": folder} | more)
    return as_written(run_comparison(config, ["compare"]))


def read_losses(folder: Path) -> dict[str, list[str]]:
    """Every loss of every cell, as it was written."""
    found = {}
    for path in sorted(folder.glob("cells/*/logs/version_0/metrics.csv")):
        table = pd.read_csv(path, dtype=str)
        found[path.parts[-4]] = [*table["train_loss"], *table["val_loss"]]
    return found


def count_starts(folder: Path) -> dict[str, int]:
    """How often a run was begun in each cell's folder."""
    return {
        path.name: len(list(path.glob("logs/version_*"))) for path in (folder / "cells").glob("*/")
    }


def list_left_over(folder: Path) -> list[str]:
    """Processes that still know the folder."""
    return [
        " ".join(it.info["cmdline"])
        for it in psutil.process_iter(["cmdline"])
        if it.info["cmdline"] and str(folder) in " ".join(it.info["cmdline"])
    ]


@pytest.fixture(scope="module")
def one_by_one(settings, tmp_path_factory):
    """The matrix without workers, with as many threads as one has cores."""
    folder = tmp_path_factory.mktemp("one") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        # a process of its own: what this one has loaded has other threads
        alone = begin({name: settings[name] for name in settings if name != "cell_cores"}, folder)
        _, said = alone.communicate(timeout=180)
    assert alone.returncode == 0, said
    assert len(stamps(folder)) == CELLS
    return folder


def check_same(results, folder: Path, one_by_one: Path) -> None:
    assert results["error"] is None
    assert results["statuses"] == {"ok": CELLS}
    losses = read_losses(folder)
    assert losses == read_losses(one_by_one)
    assert len(losses) == CELLS
    assert set(count_starts(folder).values()) == {1}
    assert not list_left_over(folder)
    assert not (folder / "cache").exists()


def begin(settings, folder: Path, *flags: str) -> subprocess.Popen:
    """The command line, as a process of its own."""
    words = [sys.executable, "-m", "skip2bench", "compare", "--out-dir", str(folder), *flags]
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if name == "bench":
            words.append("--no-bench")
        elif name == "blocks":
            words += [part for blocks in value for part in ("--blocks", blocks)]
        elif isinstance(value, tuple):
            words += [f"--{flag}", ",".join(map(str, value))]
        else:
            words += [f"--{flag}", str(value)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(is_so, seconds=120.0, what="it"):
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, f"{what} does not come"
        time.sleep(0.1)


def stamps(folder: Path) -> dict[str, int]:
    """When each cell's end was recorded, of those that ended well."""
    return {
        path.stem: path.stat().st_mtime_ns
        for path in (folder / "cells").glob("*.json")
        if not path.name.endswith(".spec.json")
        and json.loads(path.read_text())["outcome"]["status"] == "ok"
    }


def find_worker(folder: Path) -> int | None:
    """The process of a worker that is in the middle of a cell."""
    for path in Workers(folder).path.glob("*.job.json"):
        state = Workers(folder).read_state(path.name.removesuffix(".job.json"))
        if state and state.status == "running" and state.cell:
            return state.process
    return None


def kill_worker(folder: Path) -> bool:
    """Kill a worker that runs a cell; False where none does just now."""
    process = find_worker(folder)
    if process is not None:
        os.kill(process, signal.SIGKILL)
    return process is not None


@FULL
def test_two_workers_of_which_one_is_killed_come_to_the_losses_of_none(
    settings, tmp_path, one_by_one
):
    folder = tmp_path / "out"
    driver = begin(settings, folder, "--parallel", "2", "--json")
    wait_until(lambda: len(stamps(folder)) >= 2, what="the second cell")
    wait_until(lambda: find_worker(folder) is not None, what="a worker")
    (status,) = read_status(folder)
    assert status.is_driven
    assert status.running[0].host == socket.gethostname()
    before = stamps(folder)
    wait_until(lambda: kill_worker(folder), what="a worker to kill")
    printed, said = driver.communicate(timeout=180)
    assert driver.returncode == 0, said
    assert "2 workers with 1 of their own cores each" in said
    assert "was lost (exit status -9)" in said
    assert "given out again" in said
    results = json.loads(printed)
    check_same(results, folder, one_by_one)
    after = stamps(folder)
    assert {name: after[name] for name in before} == before, "what was done is left alone"

    ends = {
        path.stem: json.loads(path.read_text())["outcome"]
        for path in folder.glob("cells/*[0-9d].json")
    }
    cores = {tuple(end["cores"]) for end in ends.values()}
    assert cores == {(core,) for core in sorted(os.sched_getaffinity(0))[:2]}
    (beside,) = (it for it in results["warnings"] if it["kind"] == "beside")
    assert set(beside["cells"]) == {name for name, end in ends.items() if end["beside"]} - {
        "cache-1"
    }
    assert {cell["host"] for cell in results["cells"].values()} == {socket.gethostname()}
    (status,) = read_status(folder)
    assert (status.statuses, status.is_driven, status.running) == ({"ok": CELLS}, False, ())


@FULL
def test_ray_comes_to_the_same_though_a_node_is_lost(settings, tmp_path, one_by_one):
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        options = {"engine": "ray", "address": cluster.address}
        with pytest.raises(Skip2BenchError, match=r"no node of the Ray cluster has .*64 cores"):
            run(settings, tmp_path / "large", cell_cores=64, **options)
        with pytest.raises(Skip2BenchError, match=r"no node .*H999=1"):
            run(settings, tmp_path / "gpu", engine_options=("H999=1",), **options)
        folder = tmp_path / "lost"
        driver = begin(settings, folder, "--engine", "ray", "--address", cluster.address, "--json")
        wait_until(lambda: len(stamps(folder)) >= 3, what="the third cell")
        cluster.remove_node(second, allow_graceful=False)
        printed, said = driver.communicate(timeout=240)
        assert driver.returncode == 0, said
        check_same(json.loads(printed), folder, one_by_one)
    finally:
        cluster.shutdown()
    with pytest.raises(Skip2BenchError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        run(settings, tmp_path / "none", engine="ray", address="127.0.0.1:1")
    assert not (tmp_path / "none" / "workers").exists()


@FULL
def test_jobs_come_to_the_same_though_their_driver_is_killed(settings, tmp_path, one_by_one):
    """They go on with what they were given; the next call takes over."""
    pytest.importorskip("submitit", reason="the extra 'slurm' is not installed")
    folder = tmp_path / "out"
    flags = ("--engine", "slurm", "--engine-options", "cluster=local", "--parallel", "2")
    driver = begin(settings, folder, *flags)
    wait_until(lambda: len(stamps(folder)) >= 3, what="the third cell")
    driver.kill()
    driver.wait()  # its jobs hold its pipes, and go on
    before = stamps(folder)
    assert len(before) < CELLS
    (status,) = read_status(folder)
    assert status.engine == "slurm"
    driver = begin(settings, folder, *flags, "--json")
    printed, said = driver.communicate(timeout=180)
    assert driver.returncode == 0, said
    check_same(json.loads(printed), folder, one_by_one)
    after = stamps(folder)
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_an_interrupt_stops_all_workers_and_leaves_what_is_done(settings, tmp_path):
    folder = tmp_path / "out"
    long = settings | {"methods": ("lora",), "epochs": 800, "max_steps": 4000}
    long |= {"eval_interval": 2000}
    driver = begin(long, folder, "--parallel", "2")
    wait_until(lambda: find_worker(folder) is not None, what="a worker")
    wait_until(lambda: list(folder.glob("cells/*/logs/version_0/steps.csv")), what="a step")
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == 130, said
    assert "stopping the workers" in said
    assert not list_left_over(folder)
    (status,) = read_status(folder)
    assert not status.is_driven
    assert status.statuses["interrupted"] >= 1
    assert set(status.statuses) == {"interrupted"}


def test_what_this_machine_has_no_room_for_is_said(settings, tmp_path):
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(Skip2BenchError, match=f"{cores + 1} runs at once on 1 cores each"):
        run(settings, tmp_path / "out", parallel=cores + 1)
    assert not (tmp_path / "out" / "workers").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"engine": "k8s"}, "engine is 'k8s'; choose from local, ray, slurm"),
        ({"parallel": 0}, "parallel is 0; give 1 or more"),
        ({"cell_cores": -1}, "cell_cores is -1"),
        ({"retries": -1}, "retries is -1; give 0 to 100"),
        ({"address": "auto"}, "address 'auto' is of a Ray cluster; add --engine ray"),
        ({"engine_options": ("a=1",)}, "engine_options are for a cluster"),
        ({"engine": "ray", "engine_options": ("partition",)}, "write NAME=VALUE"),
        ({"engine": "slurm", "engine_options": ("partition=",)}, "write NAME=VALUE"),
        ({"engine": "slurm", "engine_options": ("partition=a",)}, "gets one core unless it asks"),
        ({"engine": "slurm", "engine_options": ("a=1", "a=2")}, "has a name twice"),
    ],
)
def test_options_of_engines_that_cannot_be_are_refused(given, says):
    with pytest.raises(Skip2BenchError, match=says):
        load_compare_config(given)


@pytest.mark.slow
def test_workers_of_two_kinds_are_refused(settings, tmp_path, monkeypatch):
    """The second worker says that its machine is another."""
    folder = tmp_path / "out"
    find = crews.Crew.find_machine

    def find_another(self):
        find(self)
        other = self.machine.gpu, self.machine.model_copy(update={"threads": 8, "torch": "1.0"})
        self.machine = other[1]

    monkeypatch.setattr(crews.Crew, "find_machine", find_another)
    with pytest.raises(Skip2BenchError) as refused:
        run(settings, folder, parallel=2)
    text = str(refused.value)
    assert "another kind of machine than the comparison's (threads 1, not 8; torch" in text
    assert text.startswith("worker ")
    assert not list_left_over(folder)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"micro_batch_size": "auto"}, "micro_batch_size auto would be measured on this machine"),
        ({"match": "memory"}, "match memory would be measured on this machine"),
    ],
)
def test_what_is_tried_here_is_refused_for_other_machines(
    settings, tmp_path, monkeypatch, given, says
):
    """As from a login node without a GPU."""
    find = crews.Crew.find_machine

    def find_a_gpu(self):
        find(self)
        self.machine = self.machine.model_copy(update={"gpu": GpuRecord(name="H100")})

    monkeypatch.setattr(crews.Crew, "find_machine", find_a_gpu)
    with pytest.raises(Skip2BenchError, match=rf"{says}, and the workers' is another \(GPU H100"):
        run(settings | given, tmp_path / "out", parallel=2)


def test_a_worker_that_does_not_see_the_folder_is_named(settings, tmp_path, monkeypatch):
    """As on a machine without the shared file system."""
    start = LocalEngine.start

    def start_elsewhere(self, _folder, jobs):
        elsewhere = tmp_path / "elsewhere"
        Workers(elsewhere).path.mkdir(parents=True)
        start(self, elsewhere, jobs)

    monkeypatch.setattr(LocalEngine, "start", start_elsewhere)
    with pytest.raises(Skip2BenchError, match=r"worker .* finds no job in .*all workers share"):
        run(settings, tmp_path / "out", parallel=2)


def test_a_worker_without_the_data_is_named(settings, tmp_path, monkeypatch):
    """The data goes away before the worker looks, as on a machine that does not have it."""
    data = tmp_path / "rows.json"
    shutil.copy(settings["data"], data)
    start = LocalEngine.start

    def start_without(self, folder, jobs):
        data.unlink(missing_ok=True)
        start(self, folder, jobs)

    monkeypatch.setattr(LocalEngine, "start", start_without)
    host = socket.gethostname()
    says = rf"worker {host}: does not see '.*rows.json', which the runs read; put it where all"
    with pytest.raises(Skip2BenchError, match=says):
        run(settings | {"data": str(data)}, tmp_path / "out", parallel=2)


def test_a_worker_whose_disk_is_full_is_named(settings, tmp_path, monkeypatch):
    """Its own disk, to which the data is to be copied."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(Skip2BenchError, match=r"takes .* KiB, and '.*stage' has 10 B free"):
        stage_path(Path(settings["data"]), tmp_path / "stage")
    assert not list((tmp_path / "stage").glob("*/whole"))


def test_clocks_that_differ_are_said_once(monkeypatch):
    said = []
    monkeypatch.setattr(spreading, "warn", said.append)
    it = spreading._Spread(None, None, None)
    for host, ahead in (("node1", 0.0), ("node2", -3600.0), ("node2", -3600.0), ("node3", 120.0)):
        clock = time.time() + ahead
        fields = {"job": "a", "token": "b", "process": 1, "status": "running", "beats": 1}
        it._compare_clock(WorkerState(host=host, clock=clock, **fields))
    assert len(said) == 2
    assert said[0].startswith("the clock of worker node2 is 1 h 0 min 0 s behind this machine's")
    assert said[1].startswith("the clock of worker node3 is 2 min 0 s ahead of")


@pytest.mark.slow
def test_staged_files_are_copied_once(settings, tmp_path):
    folder, stage = tmp_path / "out", tmp_path / "stage"
    few = {"methods": ("skip2",), "blocks": ("2",), "baseline": "skip2", "seeds": 2}
    results = run(settings | few, folder, parallel=1, stage=stage)
    assert results["statuses"] == {"ok": 5}
    names = sorted(path.name for path in stage.glob("*/*") if path.name not in ("lock", "whole"))
    assert names == sorted(["cache", Path(settings["data"]).name, "tiny"])
    reused = read_run(folder / "cells" / "skip2-2-lr0.01-seed1338-reused")
    assert reused.summary.cache_kept
    assert str(stage) in str(reused.config["checkpoint_dir"])


@pytest.mark.slow
def test_a_silent_worker_is_taken_for_lost(settings, tmp_path, monkeypatch):
    """Stopped as a machine that hangs: after a while its cell goes to another one."""
    monkeypatch.setattr(spreading, "LOST_SECONDS", 6.0)
    monkeypatch.setattr(spreading, "SILENT_SECONDS", 3.0)
    said = []
    monkeypatch.setattr(spreading, "warn", said.append)
    stopped = []
    take = spreading._Spread._look_after

    def stop_first(self, it):
        if not stopped and it.state is not None and it.state.cell:
            stopped.append(it.state.process)
            os.kill(it.state.process, signal.SIGSTOP)
        take(self, it)

    monkeypatch.setattr(spreading._Spread, "_look_after", stop_first)

    def end(_self, _slot):
        with suppress(ProcessLookupError):  # asked again when all is over
            os.kill(stopped[0], signal.SIGKILL)

    monkeypatch.setattr(LocalEngine, "end", end)
    # long enough that it is stopped in the middle of the run
    one = {"methods": ("lora",), "seeds": 1, "epochs": 200, "max_steps": 1000}
    results = run(settings | one | {"eval_interval": 500}, tmp_path / "out", parallel=1)
    assert results["statuses"] == {"ok": 1}
    assert any("has said nothing for" in text for text in said)
    assert any("given out again" in text for text in said)


def test_status_of_what_is_no_comparison(tmp_path):
    with pytest.raises(Skip2BenchError, match="holds no comparison"):
        read_status(tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(Skip2BenchError, match="holds no comparison"):
        read_status(tmp_path)
