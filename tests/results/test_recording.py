import json
import time

import pytest
import torch

from skip2bench.config.commands import BenchConfig
from skip2bench.config.options import to_plain
from skip2bench.errors import Skip2BenchError
from skip2bench.machine.environment_record import Environment
from skip2bench.machine.out_of_memory import is_out_of_memory
from skip2bench.results.bench_records import BenchFigures, BenchSummary
from skip2bench.results.run_folder import record_run


def run(folder, error: BaseException | None = None):
    known, config = BenchSummary.begin(BenchFigures(kind="bench")), to_plain(BenchConfig())
    started = time.monotonic() - 9
    with record_run(folder, config, Environment(torch="x"), known, started) as recording:
        assert json.loads((folder / "summary.json").read_text())["status"] == "running"
        recording.add(BenchFigures(kind="bench", figure_seconds=1.5))
        if error is not None:
            raise error
    return recording.summary.to_plain()


def read(folder):
    return json.loads((folder / "summary.json").read_text())


def test_a_run_that_ends_well(tmp_path):
    summary = run(tmp_path)
    assert read(tmp_path) == summary
    assert (summary["status"], summary["figure_seconds"], summary["kind"]) == ("ok", 1.5, "bench")
    assert 9 <= summary["preparation_seconds"] <= summary["wall_seconds"] < 19
    assert summary["finished_at"] >= summary["started_at"]
    assert json.loads((tmp_path / "environment.json").read_text()) == {"torch": "x"}
    assert "batch_size: 4" in (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("error", "raised", "status", "text"),
    [
        (ValueError("one\ntwo"), ValueError, "failed", "two"),
        (ValueError(), ValueError, "failed", "ValueError"),
        (Skip2BenchError("mend it"), Skip2BenchError, "failed", "mend it"),
        (MemoryError("too big"), Skip2BenchError, "oom", "too big"),
        (torch.OutOfMemoryError("CUDA"), Skip2BenchError, "oom", "CUDA"),
        (KeyboardInterrupt(), KeyboardInterrupt, "interrupted", None),
    ],
)
def test_how_a_run_ended_is_recorded_with_what_it_had(tmp_path, error, raised, status, text):
    with pytest.raises(raised):
        run(tmp_path, error)
    summary = read(tmp_path)
    assert (summary["status"], summary.get("error")) == (status, text)
    assert summary["figure_seconds"] == 1.5


def test_an_interrupted_run_says_where_its_results_are(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, KeyboardInterrupt())
    assert f"interrupted; what was done is in {tmp_path}" in capsys.readouterr().err


def test_what_counts_as_out_of_memory():
    cpu = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    assert is_out_of_memory(cpu)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
