import os
import sys

import pytest

from skip2bench.machine.hardware import own_seconds
from skip2bench.machine.processes import load_modules, process_context


@pytest.mark.parametrize("device_type", ["cuda", "mps"])
def test_what_works_on_an_accelerator_starts_anew(device_type):
    assert process_context(device_type, ()).get_start_method() == "spawn"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")
def test_on_a_cpu_they_are_forked_and_their_seconds_are_counted():
    context = process_context("cpu", ("skip2bench.train.run",))
    assert context.get_start_method() == "forkserver"
    load_modules(context)
    before = own_seconds()
    process = context.Process(target=_work, args=(before,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert own_seconds() - before > 0.15


def _work(_: float) -> None:
    while sum(os.times()[:2]) < 0.2:
        pass
