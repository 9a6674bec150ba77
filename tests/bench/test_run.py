import csv
import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from tiny import as_written

from skip2bench.bench import run as bench
from skip2bench.bench.run import list_configurations, run_bench
from skip2bench.bench.workload import Workload
from skip2bench.cli.screens import print_bench
from skip2bench.config.commands import BenchConfig, ReportConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.machine.out_of_memory import describe_misfit
from skip2bench.models.base import config_by_name, load_config
from skip2bench.report.run import render_report
from skip2bench.results.bench_records import BenchResult
from skip2bench.results.run_folder import MEASUREMENT_COLUMNS


@pytest.fixture(scope="module")
def result(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "run"
    config = BenchConfig(
        model=str(tiny_checkpoint),
        methods=("skip2", "lora", "skip"),
        blocks=("0,1", "all"),
        batch_size=2,
        seq_length=16,
        rounds=3,
        iterations=2,
        out_dir=folder,
        device="cpu",
    )
    return as_written(run_bench(config, ["bench"])), folder


def test_configurations_start_with_the_baseline_and_repeat_none():
    config = BenchConfig(methods=("skip2", "lora"), blocks=("fast", "0,1,2,3", "accurate", "all"))
    slugs = [s.slug for _, _, s in list_configurations(config, config_by_name("pythia-14m"))]
    assert slugs == [
        "lora",
        "skip2-0-3",
        "skip2-0-5",
    ]  # 6 blocks: accurate and all are the same there


def test_every_phase_of_every_configuration_is_measured_in_every_round(result):
    _, folder = result
    rows = pd.read_csv(folder / "measurements.csv")
    assert tuple(rows.columns) == MEASUREMENT_COLUMNS
    counts = rows.fillna({"blocks": ""}).groupby(["method", "blocks", "phase", "round"]).size()
    assert set(counts) == {2}
    phases = rows.groupby("method")["phase"].unique().map(set)
    plain = {"forward", "train_forward", "backward", "optimizer"}
    assert phases["lora"] == phases["skip"] == plain
    assert phases["skip2"] == plain | {"cached_forward", "cached_backward"}
    assert (rows["seconds"] > 0).all()


def test_rounds_are_interleaved(result):
    _, folder = result
    rows = pd.read_csv(folder / "measurements.csv")
    order = rows.fillna({"blocks": ""}).drop_duplicates(["round", "method", "blocks"])
    assert order["round"].tolist() == [1] * 5 + [2] * 5 + [3] * 5
    assert order["method"].tolist() == ["lora", "skip", "skip", "skip2", "skip2"] * 3


def test_the_summary_holds_exact_and_measured_figures(result):
    summary, folder = result
    assert summary["status"] == "ok"
    lora, skip, _, skip2, _ = summary["configurations"]
    assert "ratios" not in lora
    assert skip2["ratios"]["cached_backward"]["n"] == 3
    assert skip["flops"]["cached_forward_flops"] is None
    assert skip2["flops"]["backward_flops"] == skip["flops"]["backward_flops"]
    assert skip2["flops"]["backward_flops"] < lora["flops"]["backward_flops"] / 2
    assert skip2["memory"]["saved_for_backward_bytes"] < lora["memory"]["saved_for_backward_bytes"]
    assert "cached_saved_for_backward_bytes" not in lora["memory"]
    assert lora["memory"]["status"] == "ok"
    assert lora["memory"]["peak_memory_bytes"] > lora["memory"]["step_memory_bytes"] > 0
    written = json.loads((folder / "summary.json").read_text())
    assert written["configurations"] == summary["configurations"]


def test_the_csv_has_a_row_a_configuration(result):
    summary, folder = result
    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["blocks"]) for row in rows] == [
        ("lora", ""),
        ("skip", "0 1"),
        ("skip", "0 1 2 3"),
        ("skip2", "0 1"),
        ("skip2", "0 1 2 3"),
    ]
    assert rows[0]["cached_forward_median_seconds"] == ""
    median = summary["configurations"][3]["phases"]["backward"]["median_seconds"]
    assert float(rows[3]["backward_median_seconds"]) == median


def test_the_screen_shows_the_tables_in_the_guides_order(result, capsys):
    print_bench(BenchResult(**result[0]))
    text = capsys.readouterr().out
    places = [text.index(sign) for sign in ("COMPARISON SUMMARY", "📊", "📈", "⚡", "⚙️", "💾")]
    assert places == sorted(places)
    assert text.count("Evaluating: ") == 5


def test_a_sequence_longer_than_the_context_is_refused(tiny_checkpoint, tmp_path):
    config = BenchConfig(model=str(tiny_checkpoint), seq_length=97, out_dir=tmp_path / "run")
    with pytest.raises(Skip2BenchError, match="seq_length is 97; give 2 to 96, the context"):
        run_bench(config, [])
    assert not (tmp_path / "run").exists()
    assert load_config(tiny_checkpoint).block_size == 96


NO_ROOM = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB."


@pytest.fixture
def bench_that_runs_out(monkeypatch, tiny_checkpoint, tmp_path):
    """Run a benchmark in which the named methods find no memory to train."""

    def run(in_memory_process=(), in_timing=()):
        load = Workload.load_tokens

        def fail():
            raise torch.OutOfMemoryError(NO_ROOM)

        def load_tokens(self):
            is_counted = self.input_ids.is_meta  # for its FLOPs
            fails = self.settings.method.name in in_timing and not is_counted
            return replace(load(self), loss=fail) if fails else load(self)

        def measure_memory(request):
            if request.method in in_memory_process:
                return {"status": "ok"} | {
                    f"cached_{key}" if request.method == "skip2" else key: value
                    for key, value in describe_misfit("backward", 3 * 2**30).items()
                }
            return {"status": "ok", "peak_memory_bytes": 2**30}

        monkeypatch.setattr(Workload, "load_tokens", load_tokens)
        monkeypatch.setattr(bench, "measure_memory", measure_memory)
        config = BenchConfig(
            model=str(tiny_checkpoint),
            methods=("lora", "skip", "skip2"),
            blocks=("0,1",),
            batch_size=2,
            seq_length=16,
            rounds=2,
            iterations=1,
            out_dir=tmp_path / "bench" / "run",
            device="cpu",
        )
        return run_bench(config, ["bench"])

    return run


def test_what_does_not_fit_is_a_row_and_the_others_are_measured(
    bench_that_runs_out, tmp_path, capsys
):
    summary = bench_that_runs_out(in_memory_process=("skip",), in_timing=("skip", "skip2"))
    written = as_written(summary)
    lora, skip, skip2 = written["configurations"]
    assert written["status"] == "ok"
    figures = ("status", "requested_bytes", "oom_phase")
    assert [lora[key] for key in figures] == ["ok", None, None]
    # found in the memory process, it was never timed: there it would have been another phase
    assert [skip[key] for key in figures] == ["oom", 3 * 2**30, "backward"]
    assert [skip2[key] for key in figures] == ["oom", 2 * 2**30, "train_forward"]
    assert lora["phases"]["backward"]["n"] == 2
    assert skip["phases"] == skip2["phases"] == {}
    assert "ratios" not in skip2
    table = pd.read_csv(tmp_path / "bench" / "run" / "summary.csv")
    assert table["status"].tolist() == ["ok", "oom", "oom"]
    assert table["requested_bytes"].tolist()[1:] == [3 * 2**30, 2 * 2**30]
    assert table["requested_bytes"].isna().tolist() == [True, False, False]
    assert table["oom_phase"].tolist()[1:] == ["backward", "train_forward"]
    rows = pd.read_csv(tmp_path / "bench" / "run" / "measurements.csv")
    assert set(rows["method"]) == {"lora"}
    print_bench(summary)
    text = capsys.readouterr().out
    assert "  oom: out of memory in backward: 3.00 GiB asked for in vain\n" in text
    assert "  oom: out of memory in train forward: 2.00 GiB asked for in vain\n" in text
    assert "'oom': the configuration does not fit into memory" in text
    assert "No ratios" not in text
    report = render_report(ReportConfig(results=tmp_path, lang="en"))
    assert "does not fit into memory (oom)**: it ran out in backward, where 3.00 GiB more" in report
    assert "| Skip-LoRA (2 blocks) | oom | - | - |" in report


def test_a_cached_step_that_does_not_fit_is_enough(bench_that_runs_out):
    summary = as_written(bench_that_runs_out(in_memory_process=("skip2",)))
    skip2 = summary["configurations"][2]
    assert (skip2["status"], skip2["requested_bytes"], skip2["phases"]) == ("oom", 3 * 2**30, {})
    assert "ratios" in summary["configurations"][1]


@pytest.mark.parametrize("where", ["in_memory_process", "in_timing"])
def test_without_a_baseline_that_fits_there_are_no_ratios(
    bench_that_runs_out, where, tmp_path, capsys
):
    summary = bench_that_runs_out(**{where: ("lora",)})
    entries = as_written(summary)["configurations"]
    lora, skip, skip2 = entries
    assert lora["status"] == "oom"
    assert skip["phases"]
    assert skip2["phases"]
    assert not any("ratios" in entry for entry in entries)
    print_bench(summary)
    assert "No ratios: the baseline, Traditional LoRA, does not fit." in capsys.readouterr().out
    for lang, words in (
        ("en", "- Traditional LoRA is the baseline: without its times nothing is compared"),
        ("ja", "- 基準の Traditional LoRA の時間がないため、時間の削減率は示していません。"),
    ):
        assert words in render_report(ReportConfig(results=tmp_path, lang=lang))


def test_where_nothing_fits_the_run_is_oom(bench_that_runs_out, tmp_path):
    with pytest.raises(Skip2BenchError, match=r"no configuration fits .*; use a smaller batch"):
        bench_that_runs_out(in_memory_process=("lora", "skip"), in_timing=("skip2",))
    written = json.loads((tmp_path / "bench" / "run" / "summary.json").read_text())
    assert written["status"] == "oom"
    assert [entry["status"] for entry in written["configurations"]] == ["oom"] * 3
    assert "out of memory in backward" in written["error"]


def test_the_clock_is_named(result):
    assert result[0]["clock"] == "perf_counter"
