"""What only a CUDA device can show: its clock, its allocator, and a batch that is too large."""

import time
from dataclasses import replace

import pandas as pd
import pytest
import torch

from skip2bench.bench import memory
from skip2bench.bench.run import run_bench
from skip2bench.bench.workload import Workload
from skip2bench.cli.screens import print_bench
from skip2bench.config.commands import BenchConfig, ReportConfig
from skip2bench.machine.clock import time_call
from skip2bench.machine.memory import read_peak_memory, read_reserved_memory, reset_peak_memory
from skip2bench.machine.out_of_memory import is_out_of_memory, read_requested_bytes
from skip2bench.models.base import load_base
from skip2bench.models.methods import build_model, resolve_method
from skip2bench.report.run import render_report
from skip2bench.results.reading import read_run

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)
PLAIN = {"forward", "train_forward", "backward", "optimizer"}
CACHED = {"cached_forward", "cached_backward"}


def bench_config(folder, **changes):
    values = {
        "model": "pythia-14m",
        "methods": ("lora", "skip2"),
        "blocks": ("0,1",),
        "batch_size": 2,
        "seq_length": 64,
        "rounds": 2,
        "iterations": 2,
        "precision": "bf16-true",
        "device": "cuda",
        "out_dir": folder,
    }
    return BenchConfig(**(values | changes))


def test_events_and_the_wall_clock_agree_on_a_synchronised_product():
    a = torch.randn(4096, 4096, device=CUDA)

    def multiply():
        for _ in range(20):
            torch.mm(a, a)

    multiply()
    torch.cuda.synchronize()
    events, walls = [], []
    for _ in range(5):
        events.append(time_call(multiply, CUDA))
        start = time.perf_counter()
        multiply()
        torch.cuda.synchronize()
        walls.append(time.perf_counter() - start)
    # no claim on speed: two clocks on the same work, of milliseconds
    assert min(events) == pytest.approx(min(walls), rel=0.3)


def test_time_is_not_only_that_of_launching():
    a = torch.randn(8192, 8192, device=CUDA)
    torch.mm(a, a)
    torch.cuda.synchronize()
    start = time.perf_counter()
    torch.mm(a, a)
    launch = time.perf_counter() - start
    assert time_call(lambda: torch.mm(a, a), CUDA) > launch


def test_peaks_count_what_was_freed_again():
    reset_peak_memory(CUDA)
    before = read_peak_memory(CUDA)
    block = torch.empty(256 << 20, dtype=torch.uint8, device=CUDA)
    del block
    assert read_peak_memory(CUDA) - before >= 256 << 20
    assert read_reserved_memory(CUDA) >= read_peak_memory(CUDA)
    reset_peak_memory(CUDA)
    assert read_peak_memory(CUDA) - before < 1 << 20


def test_random_weights_take_their_own_size_on_the_device():
    reset_peak_memory(CUDA)
    before = torch.cuda.memory_allocated(CUDA)
    base = load_base("pythia-160m", CUDA, torch.bfloat16, 0)
    needed = sum(weight.nbytes for weight in base.weights.values())
    assert {(weight.device, weight.dtype) for weight in base.weights.values()} == {
        (CUDA, torch.bfloat16)
    }
    assert needed <= read_peak_memory(CUDA) - before < 1.1 * needed
    models = [
        build_model(resolve_method(name, "all", BenchConfig(), base.config), base, CUDA, 0)
        for name in ("lora", "skip", "skip2")
    ]
    assert torch.cuda.memory_allocated(CUDA) - before < 1.2 * needed
    assert len(models) == 3


def test_a_small_benchmark(tmp_path, capsys):
    summary = run_bench(bench_config(tmp_path / "bench" / "run"), ["bench"])
    assert (summary["status"], summary["precision"]) == ("ok", "bf16-true")
    assert summary["clock"] == "cuda events"
    base = load_base("pythia-14m", torch.device("meta"), torch.bfloat16, 0)
    weights = sum(weight.nbytes for weight in base.weights.values())
    for entry in summary["configurations"]:
        figures = entry["memory"]
        expected = PLAIN | (CACHED if entry["method"] == "skip2" else set())
        assert entry["status"] == "ok"
        assert set(entry["phases"]) == set(figures["phases"]) == expected
        assert figures["reserved_memory_bytes"] >= figures["peak_memory_bytes"] > weights
        for peaks in figures["phases"].values():
            assert peaks["reserved_memory_bytes"] >= peaks["peak_memory_bytes"] > weights
    rows = pd.read_csv(tmp_path / "bench" / "run" / "measurements.csv")
    assert (rows["seconds"] > 0).all()
    gpu = read_run(tmp_path / "bench" / "run").environment["gpu"]
    assert gpu["compute_capability"] == "{}.{}".format(*torch.cuda.get_device_capability(CUDA))
    assert gpu["cudnn"] == torch.backends.cudnn.version()
    assert gpu["allow_tf32"] in (True, False)
    print_bench(summary)
    assert "Clock: cuda events" in capsys.readouterr().out
    report = render_report(ReportConfig(results=tmp_path, lang="en"))
    assert "Peak of each phase by itself" in report
    assert "timed by CUDA events" in report


def test_torch_says_what_was_asked_for():
    size = torch.cuda.get_device_properties(CUDA).total_memory
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(2 * size, dtype=torch.uint8, device=CUDA)
    assert is_out_of_memory(caught.value)
    assert read_requested_bytes(caught.value) == pytest.approx(2 * size, rel=0.01)


def test_an_oversized_batch_is_a_row_and_a_status_and_frees_the_device(tmp_path):
    """Logits of such a batch alone, 2 bytes each, are larger than the device."""
    vocabulary = 50304
    size = torch.cuda.get_device_properties(CUDA).total_memory
    config = bench_config(tmp_path / "run", seq_length=512, batch_size=size // (512 * vocabulary))
    request = memory.MemoryRequest(config=config, method="lora", blocks="", threads=1)
    before = torch.cuda.memory_allocated(CUDA)
    figures = memory.measure_memory(request)
    assert figures["status"] == "oom"
    assert figures["oom_phase"] == "train_forward"
    assert figures["requested_bytes"] > 2**20
    assert torch.cuda.memory_allocated(CUDA) == before


def test_the_others_are_measured_where_one_does_not_fit(tmp_path, monkeypatch):
    """LoRA asks for more than the device has; what it held until then is given back."""
    load = Workload.load_tokens
    size = torch.cuda.get_device_properties(CUDA).total_memory

    def load_tokens(self):
        portion = load(self)

        def loss():
            found = portion.loss()
            torch.empty(2 * size, dtype=torch.uint8, device=CUDA)
            return found

        fails = self.settings.method.name == "lora" and not self.input_ids.is_meta
        return replace(portion, loss=loss) if fails else portion

    # in this process alone: the one that measures memory knows nothing of it
    monkeypatch.setattr(Workload, "load_tokens", load_tokens)
    summary = run_bench(bench_config(tmp_path / "run"), ["bench"])
    lora, skip2 = summary["configurations"]
    assert (lora["status"], lora["oom_phase"]) == ("oom", "train_forward")
    assert lora["requested_bytes"] == pytest.approx(2 * size, rel=0.01)
    assert lora["memory"]["status"] == "ok"
    assert skip2["status"] == "ok"
    assert set(skip2["phases"]) == PLAIN | CACHED
    assert "ratios" not in skip2


def test_answers_are_measured_on_the_device(tmp_path):
    config = replace(bench_config(tmp_path / "run"), inference=True)
    entries = {it.form: it for it in run_bench(config, ["bench"]).inference}
    assert list(entries) == ["base", "merged", "adapters", "exported"]
    assert all(it.status == "ok" and it.decode_tokens_per_second for it in entries.values())
    assert entries["exported"].relative_difference < 5e-2
