"""What answers cost: every form, the base first, in rounds, with memory of its own."""

import json

import pandas as pd
import pytest
import torch
from tiny import as_written

from skip2bench.bench import inference, memory
from skip2bench.bench.inference import list_candidates
from skip2bench.bench.run import list_configurations, run_bench
from skip2bench.cli.screens import print_bench
from skip2bench.config.commands import BenchConfig, ReportConfig
from skip2bench.machine.processor_use import ProcessorMeter
from skip2bench.models.base import load_base, load_config
from skip2bench.report.run import render_report
from skip2bench.results.bench_records import BenchResult
from skip2bench.results.reading import read_run
from skip2bench.results.run_folder import INFERENCE_COLUMNS


def _config(tiny_checkpoint, **changes):
    values = {
        "model": str(tiny_checkpoint),
        "methods": ("skip2", "lora"),
        "blocks": ("0,1",),
        "batch_size": 2,
        "seq_length": 16,
        "rounds": 3,
        "iterations": 2,
        "device": "cpu",
        "inference": True,
    }
    return BenchConfig(**(values | changes))


@pytest.fixture(scope="module")
def in_this_process():
    """Memory is measured here; a process of its own for each form takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (inference, memory):
            patch.setattr(module, "measure_in_own_process", lambda call, request, _: call(request))
        yield


@pytest.fixture(scope="module")
def result(tiny_checkpoint, tmp_path_factory, in_this_process):
    folder = tmp_path_factory.mktemp("bench") / "run"
    return as_written(run_bench(_config(tiny_checkpoint, out_dir=folder), ["bench"])), folder


def test_a_form_is_measured_in_a_process_of_its_own(tiny_checkpoint):
    config = _config(tiny_checkpoint)
    base = inference.Candidate(form="base", settings=None)
    entry = inference._measure_memory(config, base, torch.device("cpu"), "32-true")
    assert entry.status == "ok"
    assert entry.peak_memory_bytes > 1e6


def test_every_form_is_measured_the_base_first(result):
    summary, folder = result
    assert [it["form"] for it in summary["inference"]] == [
        "base",
        "merged",
        "adapters",
        "exported",
    ]
    for entry in summary["inference"]:
        assert entry["status"] == "ok"
        assert entry["prompt_tokens"] == 16
        assert entry["prefill"]["n"] == entry["decode"]["n"] == 6
        assert entry["peak_memory_bytes"] > 1e6
        times = entry["prefill"]["median_seconds"] * entry["prefill_tokens_per_second"]
        assert times == pytest.approx(16)
    rows = pd.read_csv(folder / "inference.csv")
    assert tuple(rows.columns) == INFERENCE_COLUMNS
    assert set(rows.groupby(["form", "phase", "round"]).size()) == {2}
    assert json.loads((folder / "summary.json").read_text())["inference"] == summary["inference"]


def test_ratios_are_to_the_base_by_round(result):
    base, *others = result[0]["inference"]
    assert "prefill_ratio" not in base
    for entry in others:
        assert entry["decode_ratio"]["n"] == 3
        assert entry["decode_ratio"]["low"] <= entry["decode_ratio"]["ratio"]


def test_the_exported_model_is_wider_and_says_the_same(result):
    base, merged, adapters, exported = result[0]["inference"]
    assert merged["parameters"] == base["parameters"] < adapters["parameters"]
    assert exported["width"] > base["width"] == adapters["width"]
    assert exported["relative_difference"] < 1e-4
    assert adapters["relative_difference"] is None


@pytest.mark.usefixtures("in_this_process")
def test_without_the_flag_no_answer_is_measured(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "_prepare", None)
    config = _config(tiny_checkpoint, out_dir=tmp_path / "run", inference=False, rounds=1)
    assert run_bench(config, ["bench"]).inference == ()
    assert not (tmp_path / "run" / "inference.csv").exists()


def test_one_adapter_is_asked_once_and_other_methods_are_the_base(tiny_checkpoint):
    config = _config(tiny_checkpoint, methods=("lora", "skip", "skip2", "last", "full"))
    model = load_config(tiny_checkpoint)
    settings = [it for _, _, it in list_configurations(config, model)]
    assert [it.form for it in list_candidates(settings, model)] == [
        "base",
        "merged",
        "adapters",
        "exported",
    ]


def test_what_cannot_be_exported_is_noted(tiny_checkpoint, capsys):
    config = _config(tiny_checkpoint, methods=("skip2",), features="raw")
    model = load_config(tiny_checkpoint)
    settings = [it for _, _, it in list_configurations(config, model)]
    assert [it.form for it in list_candidates(settings, model)] == ["base", "adapters"]
    assert "its exported model is left out: the adapter reads raw" in capsys.readouterr().err


def test_a_form_that_does_not_fit_is_named_and_the_others_are_measured(
    tiny_checkpoint, monkeypatch
):
    def measure_all_but_one(call, request, _device_type):
        if request.candidate.form == "adapters":
            return {"status": "oom", "requested_bytes": 7, "oom_phase": "inference"}
        return call(request)

    monkeypatch.setattr(inference, "measure_in_own_process", measure_all_but_one)
    config, model = _config(tiny_checkpoint, rounds=1, iterations=1), load_config(tiny_checkpoint)
    settings = [it for _, _, it in list_configurations(config, model)]
    cpu = torch.device("cpu")
    measured, rows = inference.measure_inference(
        config, settings, model, cpu, "32-true", ProcessorMeter()
    )
    entries = {it.form: it for it in measured}
    assert entries["adapters"].status == "oom"
    assert entries["adapters"].decode is None
    assert entries["exported"].decode is not None
    assert "adapters" not in {row["form"] for row in rows}


def test_a_prompt_leaves_room_for_the_answer(tiny_checkpoint, tmp_path):
    config = _config(tiny_checkpoint, methods=("lora",), seq_length=96, rounds=1, iterations=1)
    base = load_base(config.model, torch.device("cpu"), torch.float32, config.seed)
    plain = inference.Candidate(form="base", settings=None)
    asked = inference._prepare(config, plain, base, "32-true")
    assert len(asked.prompt) == 96 - inference.NEW_TOKENS
    assert set(asked.answer()) == {"prefill", "decode"}


@pytest.mark.parametrize(
    ("lang", "words", "verdict"),
    [
        ("en", "What answers cost", "| Cannot be merged, so not compatible"),
        ("ja", "推論の速度", "| 推論時には通常の LoRA と互換でない"),
    ],
)
def test_the_report_says_what_answers_cost_and_tests_the_claim(result, lang, words, verdict):
    text = render_report(ReportConfig(results=result[1].parent, lang=lang))
    assert words in text
    (line,) = [line for line in text.splitlines() if line.startswith(verdict)]
    assert line.endswith("| ✗ |")


def test_the_terminal_shows_answers(result, capsys):
    print_bench(BenchResult.of(read_run(result[1]).summary, folder="x"))
    out = capsys.readouterr().out
    assert "Answers (tokens/s)" in out
    assert "exported model" in out
