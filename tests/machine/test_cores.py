"""Cores of a process's own: disjoint shares, each taken once."""

import multiprocessing
import os
import sys

import pytest

from skip2bench.errors import Skip2BenchError
from skip2bench.machine import cores
from skip2bench.machine.cores import list_shares, own_cores


def test_shares_are_whole_and_disjoint():
    assert list_shares([0, 1, 2, 3, 4], 2) == [(0, 1), (2, 3)]
    assert list_shares([3, 5], None) == [(3, 5)]
    with pytest.raises(Skip2BenchError, match="4 cores are asked for, and 2 are there"):
        list_shares([0, 1], 4)


def test_threads_of_one_physical_core_are_in_one_share(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "_CPUS", tmp_path)
    for number, physical in {0: 0, 1: 1, 2: 0, 3: 1}.items():
        topology = tmp_path / f"cpu{number}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text("0\n")
        (topology / "core_id").write_text(f"{physical}\n")
    assert list_shares(cores._in_order({0, 1, 2, 3}), 2) == [(0, 2), (1, 3)]


def hold(folder, ready, end):
    with own_cores(1, folder) as own:
        ready.send(own.cores)
        end.recv()


@pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="pins, on two cores"
)
def test_a_share_is_one_process_s_own(tmp_path, monkeypatch):
    before = os.sched_getaffinity(0)
    context = multiprocessing.get_context("spawn")
    ready, said = context.Pipe()
    end, ended = context.Pipe()
    other = context.Process(target=hold, args=(tmp_path, said, ended))
    other.start()
    taken = ready.recv()
    with own_cores(1, tmp_path) as own:
        assert not set(own.cores) & set(taken)
        assert os.sched_getaffinity(0) == set(own.cores)
        assert own.count_beside() == 1
        if len(before) == 2:  # a third one finds none
            monkeypatch.setattr(cores, "_WAIT_SECONDS", 0.3)
            monkeypatch.setattr(os, "sched_getaffinity", lambda _: before)
            with (
                pytest.raises(Skip2BenchError, match=r"all 2 shares of 1 cores .* are taken"),
                own_cores(1, tmp_path),
            ):
                pass
            monkeypatch.undo()
        end.send(None)
        other.join()
        assert own.count_beside() == 0
    assert os.sched_getaffinity(0) == before
