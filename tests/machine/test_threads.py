import pytest
import torch

from skip2bench.machine import threads
from skip2bench.machine.threads import give_way


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(threads, "count_cores", lambda: 4)
    monkeypatch.setattr(threads._Threads, "left", 0)
    torch.set_num_threads(4)


@pytest.mark.parametrize(
    ("others", "left"), [(0.0, 4), (0.4, 4), (0.7, 3), (1.6, 2), (3.9, 1), (9.0, 1), (None, 4)]
)
def test_they_take_the_cores_that_others_leave(four_cores, others, left):
    give_way(others)
    assert torch.get_num_threads() == left


def test_they_come_back(four_cores):
    give_way(2.0)
    give_way(0.1)
    assert torch.get_num_threads() == 4


def test_a_program_that_asked_for_fewer_gets_no_more(four_cores):
    torch.set_num_threads(2)
    give_way(0.0)
    assert torch.get_num_threads() == 2
    give_way(3.0)
    give_way(0.0)
    assert torch.get_num_threads() == 2


def test_what_the_user_has_set_stays(four_cores, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    give_way(3.0)
    assert torch.get_num_threads() == 4
