"""Which cells may start, in which groups, and how long it takes."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from skip2bench.compare.engines.engine import CellNeeds
from skip2bench.compare.engines.kinds import list_differences, of_machine
from skip2bench.compare.engines.on_ray import _count_room
from skip2bench.compare.engines.on_slurm import _minutes, _parameters
from skip2bench.compare.engines.schedule import expect_seconds, list_ready
from skip2bench.compare.engines.stage import stage_path
from skip2bench.errors import Skip2BenchError
from skip2bench.machine.environment_record import Environment, GpuRecord


def make_cell(name, role="run", seed=1, counts=True, decides=False):
    config = SimpleNamespace(seed=seed)
    return SimpleNamespace(name=name, role=role, config=config, counts=counts, decides_rate=decides)


def make_comparison(cells, done=(), further=()):
    by_name = {cell.name: cell for cell in cells}
    return SimpleNamespace(
        cells=by_name,
        outcomes=dict.fromkeys(done),
        has_search=bool(further),
        left=lambda: [cell for cell in cells if cell.name not in done],
        list_cells=lambda is_forecast=False: [*cells, *further],
    )


CELLS = [
    make_cell("cache-1", "cache"),
    make_cell("lora-1"),
    make_cell("skip2-1"),
    make_cell("skip2-1-reused", "reused"),
    make_cell("lora-2", seed=2),
    make_cell("last-2", seed=2),
]


def test_cells_of_a_seed_are_one_group_that_waits_for_its_caches():
    # a group whose order would change waits as a whole
    assert list_ready(make_comparison(CELLS), ()) == {
        "caches": ["cache-1"],
        "seed 2": ["lora-2", "last-2"],
    }
    assert list_ready(make_comparison(CELLS, done=["cache-1"]), ()) == {
        "seed 1": ["lora-1", "skip2-1", "skip2-1-reused"],
        "seed 2": ["lora-2", "last-2"],
    }
    left = list_ready(make_comparison(CELLS, done=["cache-1", "lora-2"]), ["seed 1"])
    assert left == {"seed 2": ["last-2"]}


def test_cells_of_a_search_are_spread_and_the_seeds_wait_for_it():
    search = [make_cell(f"lora-lr{n}", counts=False, decides=True) for n in range(3)]
    later = make_cell("lora-2", seed=2)
    open_search = make_comparison(search, done=["lora-lr0"], further=[later])
    assert list_ready(open_search, ()) == {
        "lora-lr1": ["lora-lr1"],
        "lora-lr2": ["lora-lr2"],
    }
    over = make_comparison([*search, later], done=[cell.name for cell in search], further=[later])
    assert list_ready(over, ()) == {"seed 2": ["lora-2"]}


def test_the_seed_that_searches_goes_on_where_it_counts():
    search = [make_cell("lora-lr0", decides=True), make_cell("skip2-lr0", decides=True)]
    known = make_cell("lora-2", seed=2)
    comparison = make_comparison([*search, known], further=[make_cell("skip2-2", seed=2)])
    assert list_ready(comparison, ()) == {"seed 1": ["lora-lr0", "skip2-lr0"]}


def test_the_time_left_is_that_of_groups_on_workers():
    groups = [[10.0, 5.0], [6.0], [6.0], [3.0]]
    assert expect_seconds(groups, 1) == 30.0
    assert expect_seconds(groups, 2) == 15.0
    assert expect_seconds(groups, 9) == 15.0
    assert expect_seconds([], 2) == 0.0


MACHINE = Environment(
    processor="A", cpu_count=4, threads=4, memory_bytes=64 * 2**30, torch="2.13.0", gpu=None
)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, []),
        ({"memory_bytes": 64 * 2**30 - 2**28}, []),
        ({"platform": "another kernel"}, []),
        ({"processor": "B"}, ["processor B, not A"]),
        ({"threads": 2, "torch": "2.12"}, ["threads 2, not 4", "torch 2.12, not 2.13.0"]),
        ({"memory_bytes": 32 * 2**30}, ["memory 32.00 GiB, not 64.00 GiB"]),
        ({"gpu": GpuRecord(name="H100")}, ["GPU H100, not the processor alone"]),
    ],
)
def test_what_makes_two_machines_incomparable(changes, says):
    assert list_differences(MACHINE, MACHINE.model_copy(update=changes)) == says


def test_gpus_are_compared_with_their_drivers():
    one = MACHINE.model_copy(update={"gpu": GpuRecord(name="H100", driver="1")})
    other = MACHINE.model_copy(update={"gpu": GpuRecord(name="H100", driver="2")})
    assert list_differences(one, other) == ["GPU driver 2, not 1"]
    assert list_differences(one, MACHINE) == ["no GPU"]
    assert of_machine(MACHINE, other).gpu.driver == "2"


@pytest.mark.parametrize(
    ("resources", "needs", "room"),
    [
        ({"CPU": 16.0}, {}, (1, 16)),
        ({"CPU": 16.0}, {"cores": 4}, (4, 4)),
        ({"CPU": 16.0, "GPU": 8.0}, {"gpus": 1}, (8, 2)),
        ({"CPU": 16.0, "GPU": 8.0}, {"gpus": 2, "cores": 8}, (2, 8)),
        ({"CPU": 16.0}, {"gpus": 1}, (0, 0)),
        ({"CPU": 16.0, "memory": 10.0}, {"cores": 1, "memory_bytes": 4}, (2, 1)),
        ({"CPU": 16.0, "H100": 1.0}, {"cores": 2, "resources": {"H100": 0.5}}, (2, 2)),
        ({"CPU": 16.0}, {"resources": {"H100": 1.0}}, (0, 16)),
    ],
)
def test_room_on_a_node_of_ray(resources, needs, room):
    usual = {"cores": None, "gpus": 0, "memory_bytes": None, "resources": {}}
    assert _count_room(resources, CellNeeds(**(usual | needs))) == room


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("2:00:00", 120), ("1-0", 1440), ("1-2:30", 1590), ("30:01", 31), (None, 1440)],
)
def test_times_as_sbatch_takes_them(text, minutes):
    assert _minutes(text) == minutes


def test_what_submitit_is_told():
    needs = CellNeeds(cores=4, gpus=1, memory_bytes=3 * 2**30 + 1, resources={})
    found = _parameters({"partition": "gpu", "time": "60", "account": "a"}, needs, is_local=False)
    assert found == {
        "name": "skip2bench",
        "timeout_min": 60,
        "cpus_per_task": 4,
        "slurm_srun_args": ["--cpus-per-task=4"],
        "gpus_per_node": 1,
        "slurm_mem": "3073M",
        "slurm_partition": "gpu",
        "slurm_additional_parameters": {"account": "a"},
    }
    bare = _parameters({"exclusive": "", "gres": "gpu:2"}, needs, is_local=False)
    assert bare["slurm_additional_parameters"] == {"exclusive": True, "gres": "gpu:2"}
    assert "gpus_per_node" not in bare
    with pytest.raises(Skip2BenchError, match="time='soon'"):
        _minutes("soon")


def test_a_copy_is_made_once_and_again_when_its_source_changes(tmp_path, monkeypatch):
    source, stage = tmp_path / "model", tmp_path / "stage"
    source.mkdir()
    (source / "weights").write_bytes(b"one")
    first = stage_path(source, stage)
    assert (first / "weights").read_bytes() == b"one"
    (first / "mark").touch()
    assert stage_path(source, stage) == first
    assert (first / "mark").exists()
    (source / "weights").write_bytes(b"another")
    second = stage_path(source, stage)
    assert second != first
    assert (second / "weights").read_bytes() == b"another"

    file = tmp_path / "data.json"
    file.write_text("[]")
    assert stage_path(file, stage).read_text() == "[]"
    (source / "weights").write_bytes(b"a third")
    monkeypatch.setattr("shutil.copyfile", lambda _from, to: Path(to).write_bytes(b"damaged"))
    with pytest.raises(Skip2BenchError, match=r"the copy of .*weights.* differs"):
        stage_path(source, stage)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(Skip2BenchError, match=r"takes 7 B, and .* has 1 B free; choose another"):
        stage_path(source, stage)
