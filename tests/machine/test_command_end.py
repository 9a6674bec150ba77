import sys

import pytest

from skip2bench.compare import cell
from skip2bench.errors import Skip2BenchError
from skip2bench.machine.command_end import run_to_end

ENDS = [
    (Skip2BenchError("'\x1b[1m' is no path;\nmend it"), 1, "error: '\\x1b[1m' is no path; mend it"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (
        MemoryError(),
        1,
        "error: out of memory (no more to allocate); use a smaller model, fewer or shorter "
        "samples, or a machine with more of it",
    ),
    (
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        1,
        "error: out of memory (DefaultCPUAllocator: can't allocate memory); use a smaller model, "
        "fewer or shorter samples, or a machine with more of it",
    ),
]


def raising(error):
    def command(*_):
        raise error

    return command


@pytest.mark.parametrize(("error", "status", "line"), ENDS)
def test_the_process_ends_with_one_line_and_a_status(error, status, line, capsys):
    with pytest.raises(SystemExit) as caught:
        run_to_end(raising(error))
    assert caught.value.code == status
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize(("error", "status", "line"), ENDS)
def test_a_cell_ends_as_the_command_line_does(error, status, line, capsys, monkeypatch):
    monkeypatch.setattr(cell, "_watch_parent", lambda: None)
    monkeypatch.setattr(cell, "_run", raising(error))
    with pytest.raises(SystemExit) as caught:
        cell.main({"max_memory_bytes": None})
    assert caught.value.code == status
    assert capsys.readouterr().err == f"{line}\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_to_end(lambda: 1 / 0)


def test_what_ends_well_says_nothing(capsys):
    run_to_end(lambda: None)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_nobody_needs_to_read_it(name, monkeypatch):
    class Gone:
        def write(self, _):
            raise BrokenPipeError

    monkeypatch.setattr(sys, name, Gone())
    with pytest.raises(SystemExit) as caught:
        run_to_end(raising(Skip2BenchError("x")))
    assert caught.value.code == 1
