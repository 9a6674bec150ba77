"""What was timed while something else ran: marked in figures, left out of what is concluded."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from made_records import make_configuration, make_run, make_summary

from skip2bench.config.commands import ReportConfig
from skip2bench.machine.environment_record import Environment
from skip2bench.report.claims import check_claims
from skip2bench.report.run import render_report
from skip2bench.report.tables.cells import DISTURBED_SIGN
from skip2bench.report.verdicts import find_conclusion, pick_presets
from skip2bench.results.comparison_records import ComparisonResults
from skip2bench.results.disturbance import (
    describe_disturbed,
    find_disturbed,
    is_disturbed,
    list_disturbed_figures,
    repeat_benchmark,
    repeat_comparison,
    repeat_training,
)
from skip2bench.results.figures import CellResult, find_warnings, summarise_configuration
from skip2bench.results.run_records import ProcessorUse

RESULTS = Path(__file__).parents[1] / "data" / "results"


def use(others, wall=10.0):
    return ProcessorUse(wall_seconds=wall, cpu_seconds=5.0, others_cores=others)


@pytest.mark.parametrize(
    ("others", "cores", "expected"),
    [(0.3, 2, True), (0.2, 2, False), (0.3, 8, False), (None, 2, False), (0.2, None, True)],
)
def test_one_threshold_and_what_is_not_known_is_not_disturbed(others, cores, expected):
    assert is_disturbed(others, cores) is expected


def test_figures_are_those_of_the_part_that_was_disturbed():
    processor = {"training": use(0.1), "cache_build": use(1.8), "steps": use(0.0)}
    run = replace(make_run(processor=processor), environment=Environment(cpu_count=2))
    assert list(find_disturbed(processor, 2)) == ["cache_build"]
    assert list_disturbed_figures(run) == ("cache_build_seconds", "reused_cache_build_seconds")
    assert list_disturbed_figures(make_run(), 0.0) == ()
    # of a run from before parts were looked at, all that is known is that its process was disturbed
    assert list_disturbed_figures(make_run(), 1.0) == ()
    assert list_disturbed_figures(make_run(processor={}), 1.0) == ("wall_seconds",)


def test_a_part_too_short_to_tell_goes_by_the_whole_process():
    processor = {"training": use(0.0), "validation": use(None, 0.01)}
    run = replace(make_run(processor=processor), environment=Environment(cpu_count=2))
    assert list_disturbed_figures(run, 0.0) == ()
    assert list_disturbed_figures(run, 1.0) == ("validation_seconds", "wall_seconds")


def test_words_and_commands_to_repeat():
    lines = list(describe_disturbed({"cache_build": use(1.8, 46.7)}, "x"))
    assert lines == [
        "something else used the processor during building Skip-Cache (1.8 cores busy over "
        "46.7 s): these times say little",
        "repeat it with: x",
    ]
    assert not list(describe_disturbed({}, "x"))
    assert repeat_training("a b") == "skip2bench train --config 'a b/config.yaml'"
    assert repeat_comparison("c").endswith("--out-dir c --repeat-disturbed")
    assert repeat_benchmark("skip2bench bench") == "skip2bench bench"
    assert (
        repeat_benchmark("skip2bench bench --out-dir x") == "skip2bench bench --out-dir x --force"
    )


def cells(name, seconds, loss, disturbed=()):
    return [
        CellResult(
            name=f"{name}-{seed}",
            configuration=name,
            role="run",
            learning_rate=1e-3,
            seed=seed,
            status="ok",
            summary=make_summary(
                initial_val_loss=4.0,
                final_val_loss=loss + seed / 100,
                train_seconds=seconds + seed,
                steps=10,
            ),
            disturbed=("train_seconds",) if seed in disturbed else (),
        )
        for seed in range(3)
    ]


def compare(**disturbed):
    """LoRA and two of Skip2-LoRA, with the seeds of each that were disturbed."""
    found = {"lora": (100, 2.0), "four": (5, 2.0), "six": (6, 1.9)}
    own = {name: cells(name, *it, disturbed.get(name, ())) for name, it in found.items()}
    entries = [
        make_configuration(
            name=name,
            label=name,
            method="lora" if name == "lora" else "skip2",
            blocks=None if name == "lora" else tuple(range({"four": 4, "six": 6}[name])),
            is_baseline=name == "lora",
            trainable_parameters=100,
        ).joined(summarise_configuration(results, own["lora"], None))
        for name, results in own.items()
    ]
    results = [result for group in own.values() for result in group]
    return ComparisonResults(
        schema_version=1,
        config={"seeds": 3, "match_params": False, "target_loss": None},
        learning_rates="fixed",
        warnings=find_warnings(entries, results, 2),
        configurations=tuple(entries),
        cells={},
    )


def test_a_disturbed_run_marks_its_figure_and_ratio_alone():
    lora, four, six = compare(four=[1]).configurations
    assert four.figures["train_seconds"].is_disturbed
    assert four.against_baseline["train_seconds"].is_disturbed
    assert not four.figures["final_val_loss"].is_disturbed
    assert not lora.figures["train_seconds"].is_disturbed
    assert not six.against_baseline["train_seconds"].is_disturbed
    (warning,) = (it for it in compare(four=[1]).warnings if it.kind == "disturbed")
    assert warning.cells == ("four-1",)


def test_ratios_to_a_disturbed_baseline_are_disturbed():
    _, four, _ = compare(lora=[0]).configurations
    assert not four.figures["train_seconds"].is_disturbed
    assert four.against_baseline["train_seconds"].is_disturbed


def test_nothing_is_concluded_from_disturbed_times():
    assert find_conclusion(compare()).name == "four"
    assert find_conclusion(compare(four=[0])).name == "six"
    assert [pick.purpose for pick in pick_presets(compare())] == ["speed", "balance", "accuracy"]
    assert [pick.purpose for pick in pick_presets(compare(four=[0]))] == ["accuracy"]
    claims = [it for it in check_claims(compare(four=[0]), []) if it.name == "training_time"]
    assert [(it.label, it.holds, it.is_disturbed) for it in claims] == [
        ("four", None, True),
        ("six", True, False),
    ]


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_a_report_marks_what_was_disturbed_and_says_how_to_repeat_it(tmp_path, lang):
    root = tmp_path / "results"
    for path in RESULTS.rglob("*"):
        if path.is_file():
            copy = root / path.relative_to(RESULTS)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    config = ReportConfig(results=root, lang=lang, plots_dir=tmp_path / "plots")
    assert DISTURBED_SIGN not in render_report(config)
    parts = {"training": {"others_cores": 1.8}, "timing": {"others_cores": 1.8}}
    for folder in root.glob("*/*"):
        if folder.name.endswith(("skip2-0-1-2-3", "-lora", "bench")):
            summary = json.loads((folder / "summary.json").read_text())
            (folder / "summary.json").write_text(json.dumps(summary | {"processor": parts}))
    text = render_report(config)
    rows = [line for line in text.splitlines() if line.startswith("| Skip2-LoRA (4 blocks)")]
    speed = next(row for row in rows if "31.6" in row)
    assert speed.count(DISTURBED_SIGN) >= 3  # time, ratio, steps/s
    assert (
        f"train --config {root.as_posix()}/train/20261123T101300Z-pystd-skip2-0-1-2-3/conf" in text
    )
    backward = next(line for line in text.splitlines() if line.startswith("| Backward "))
    assert DISTURBED_SIGN in backward
    assert "✓" not in backward
    # of the conclusion, which speaks of a ratio to LoRA, no time is left
    conclusion = text.split("\n## ")[1]
    assert DISTURBED_SIGN in conclusion
