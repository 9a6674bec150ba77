"""The report on committed runs: whole texts, what is left out, and what is missing.

To renew the expected reports after a wanted change: in tests/data, run `skip2bench report --lang
en > report.en.md` (and ja), delete the results/figures it made, and read the difference.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from skip2bench.config.commands import ReportConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.units import Language
from skip2bench.report import run as report
from skip2bench.report.run import render_report

DATA = Path(__file__).parents[1] / "data"
BENCH = Path("results/bench/20261123T100000Z-pystd-bench")
LORA = Path("results/train/20261123T101000Z-pystd-lora")
LORA_SEED_1 = Path("results/train/20261123T095000Z-pystd-lora-seed1")
SKIP2_4 = Path("results/train/20261123T101300Z-pystd-skip2-0-1-2-3")
SKIP2_6 = Path("results/train/20261123T101500Z-pystd-skip2-0-1-2-3-4-5")


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the committed runs in the current folder."""
    shutil.copytree(DATA / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


def edit(
    folder: Path, change: Callable[[dict[str, Any]], object], file: str = "summary.json"
) -> None:
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    change(content)
    (folder / file).write_text(json.dumps(content), encoding="utf-8")


def section(text: str, heading: str) -> str:
    """The text below `heading`, up to the next heading of its level or above."""
    level = heading.split(" ")[0]
    lines = text.split(f"{heading}\n", 1)[1].splitlines()
    stops = tuple(f"{'#' * depth} " for depth in range(1, len(level) + 1))
    ends = [number for number, line in enumerate(lines) if line.startswith(stops)]
    return "\n".join(lines[: ends[0] if ends else None])


@pytest.mark.parametrize("lang", ["ja", "en"])
def test_whole_report(lang: Language) -> None:
    expected = (DATA / f"report.{lang}.md").read_text(encoding="utf-8")
    assert render_report(ReportConfig(lang=lang)) == expected


def test_both_languages_hold_the_same_figures() -> None:
    def figures(lang: Language) -> list[list[str]]:
        rows = [
            row
            for row in render_report(ReportConfig(lang=lang)).splitlines()
            if row.startswith(("| Skip2-LoRA (", "| Traditional LoRA |"))
        ]
        units = {"時間": "h", "分": "min", "秒": "s", "1 回のみ、検定なし": "one run: not tested"}
        for word, english in units.items():
            rows = [row.replace(word, english) for row in rows]
        return [[cell.strip() for cell in row.split("|")] for row in rows]

    assert len(figures("en")) > 15
    assert figures("ja") == figures("en")


@pytest.mark.parametrize(
    ("output", "plots_dir", "link"),
    [
        (None, None, "results/figures/losses.ja.svg"),
        ("report.md", None, "figures/losses.ja.svg"),
        ("docs/my/report.md", None, "figures/losses.ja.svg"),
        ("docs/my/report.md", "docs/pictures", "../pictures/losses.ja.svg"),
        (None, "my pictures", "my%20pictures/losses.ja.svg"),
    ],
)
def test_charts_are_linked_from_where_the_report_goes(
    output: str | None, plots_dir: str | None, link: str
) -> None:
    config = ReportConfig(
        output=Path(output) if output else None, plots_dir=Path(plots_dir) if plots_dir else None
    )
    text = render_report(config)
    assert f"]({link})" in text
    start = Path(output).parent if output else Path()
    assert (start / link.replace("%20", " ")).resolve().is_file()


def test_charts_that_cannot_be_written_say_so() -> None:
    Path("taken").write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(Skip2BenchError, match=r"cannot write the plot .*; choose another --plots-"):
        render_report(ReportConfig(plots_dir=Path("taken")))


def test_runs_that_were_stopped_in_between_are_named() -> None:
    edit(SKIP2_6, lambda summary: summary.update(resumed_at_steps=[40]))
    found = section(render_report(ReportConfig(lang="en")), "## Diagnosis")
    assert f"- Stopped and resumed: {SKIP2_6.name}. Their results are those of a run that" in found
    found = section(render_report(ReportConfig(lang="ja")), "## 診断")
    assert f"- 中断後に再開した実行: {SKIP2_6.name}。" in found


def test_only_bench(results: Path) -> None:
    shutil.rmtree(results / "train")
    text = render_report(ReportConfig())
    assert "学習: 未計測（`skip2bench train` または `skip2bench compare` で計測できます）。" in text
    assert "losses.ja.svg" not in text
    assert "| 学習の実行 | - | `skip2bench train --method lora && " in section(text, "## 再現方法")
    assert "88.8 %" in section(text, "### 速度")
    assert "完了した学習がないため" in text
    assert "| Skip2-LoRA (6 blocks) | 0-5 | 36,864 | 0.84 % | -50.0 % |" in text


def test_only_train(results: Path) -> None:
    shutil.rmtree(results / "bench")
    text = render_report(ReportConfig(lang="en"))
    assert "Benchmark: not measured; `skip2bench bench` measures it." in text
    assert "| Skip2-LoRA (6 blocks) | 0-5 | 36,864 | 0.84 % | -50.0 % |" in text
    assert "| A benchmark | - | `skip2bench bench` |" in text
    assert "| Backward is faster | - | - | not measured |" in text


def test_only_lora() -> None:
    shutil.rmtree(SKIP2_4)
    shutil.rmtree(SKIP2_6)
    edit(BENCH, lambda summary: summary["configurations"].__delitem__(slice(1, None)))
    text = render_report(ReportConfig(lang="en"))
    missing = section(text, "## How to repeat it")
    assert (
        "| Skip2-LoRA in the benchmark | - | `skip2bench bench --methods lora,skip2` |" in missing
    )
    assert "| Training of Skip2-LoRA | - | `skip2bench train --blocks 0,1,2,3` |" in missing


def test_without_a_baseline_nothing_is_called_better() -> None:
    shutil.rmtree(LORA)
    shutil.rmtree(LORA_SEED_1)
    edit(BENCH, lambda summary: summary["configurations"].pop(0))
    text = render_report(ReportConfig(lang="en"))
    assert "so nothing is said on which is better" in text
    assert "| Skip2-LoRA (4 blocks) | 1 | 31.6 s | - | 17.9 s |" in text
    assert "88.8 %" not in text  # a ratio to a configuration that is not LoRA
    assert "`skip2bench train --method lora`" in section(text, "## How to repeat it")


def test_ratios_to_another_first_configuration_are_not_read() -> None:
    edit(BENCH, lambda summary: summary["configurations"].reverse())
    text = render_report(ReportConfig())
    assert "88.8 %" not in text
    rows = [line for line in section(text, "### 速度").splitlines() if line.startswith("| ")]
    assert rows[1].startswith("| Traditional LoRA | 61.2 [58.1, 73.4] |")


@pytest.mark.parametrize(
    ("ratio", "cell"),
    [
        (
            {"low": 0.98, "high": 1.06},
            "ノイズを超える差なし [-6.0 %, 2.0 %]（5.3 % 以上の差なら検出）",
        ),
        ({"low": None, "high": None, "n": 1}, "88.8 %（1 ラウンドのみ、区間なし）"),
        ({"ratio": 1.2, "low": 1.1, "high": 1.3}, "-20.0 % [-30.0 %, -10.0 %]"),
    ],
)
def test_backward_reduction(ratio: dict[str, float], cell: str) -> None:
    edit(BENCH, lambda summary: summary["configurations"][1]["ratios"]["backward"].update(ratio))
    text = render_report(ReportConfig())
    assert f"| 13.6 [12.9, 16.3] | {cell} | 90.6 % |" in text


def test_noise_is_not_called_faster() -> None:
    def add_noise(summary: dict[str, Any]) -> None:
        for configuration in summary["configurations"][1:]:
            configuration["ratios"]["backward"] = {"ratio": 1.02, "low": 0.98, "high": 1.06, "n": 3}

    edit(BENCH, add_noise)
    text = render_report(ReportConfig(lang="en"))
    none = "| no difference beyond the noise [-6.0 %, 2.0 %]; from 5.3 % it would have shown |"
    assert text.count(none) == 2
    assert text.count("| +2.0 % [-2.0 %, +6.0 %] | ✗ |") == 2
    diagnosis = section(text, "## Diagnosis")
    assert "**Less speed than the arithmetic allows**" in diagnosis
    assert "another process was running. (Skip2-LoRA (4 blocks), Skip2-LoRA (6 bl" in diagnosis


def test_no_results() -> None:
    with pytest.raises(
        Skip2BenchError, match=r"^results folder 'none' does not exist; run 'skip2bench"
    ):
        render_report(ReportConfig(results=Path("none")))
    Path("empty").mkdir()
    with pytest.raises(
        Skip2BenchError,
        match=r"^no finished run below 'empty'; make one with 'skip2bench bench' or",
    ):
        render_report(ReportConfig(results=Path("empty")))


def test_figures_that_are_null_are_dashes_with_a_remedy() -> None:
    def forget(summary: dict[str, Any]) -> None:
        one = summary["configurations"][1]
        one |= {"flops": None, "memory": None, "phases": {}}

    edit(BENCH, forget)
    edit(LORA, lambda summary: summary.update(tokens=None, best_step=None, peak_memory_bytes=None))
    edit(SKIP2_4, lambda summary: summary.update(final_val_loss=None))
    shutil.rmtree(SKIP2_6 / "logs")
    text = render_report(ReportConfig(lang="en"))
    missing = section(text, "## How to repeat it")
    for what, label, command in (
        ("Times", "Skip2-LoRA (4 blocks)", "bench"),
        ("FLOPs", "Skip2-LoRA (4 blocks)", "bench"),
        ("Memory saved for backward", "Skip2-LoRA (4 blocks)", "bench"),
        ("Some figures of training", "Skip2-LoRA (4 blocks)", "train"),
    ):
        assert f"| {what} | {label} | `skip2bench {command}` |" in missing
    assert "| Skip2-LoRA (4 blocks) | - | - | - | 88.8 % [88.6 %, 89.0 %] | - | - | - |" in text
    assert "| 20261123T101300Z-pystd-skip2-0-1-2-3 | incomplete | - |" in text


def test_no_environment_and_a_sparse_summary_still_render() -> None:
    for folder in (BENCH, LORA, LORA_SEED_1, SKIP2_4, SKIP2_6):
        (folder / "environment.json").unlink()
    keep = ("kind", "status", "label", "method", "blocks", "started_at")
    edit(SKIP2_6, lambda summary: [summary.pop(key) for key in [*summary] if key not in keep])
    assert "- PyTorch: -\n- LitGPT: -\n" in render_report(ReportConfig())


def test_a_gpu_is_described() -> None:
    gpu = {"name": "NVIDIA H100", "memory_bytes": 85_520_809_984, "driver": "550.54"}
    for folder in (BENCH, LORA, LORA_SEED_1, SKIP2_4, SKIP2_6):
        edit(
            folder, lambda environment: environment.update(gpu=gpu, dirty=True), "environment.json"
        )
    edit(
        BENCH,
        lambda summary: summary["configurations"][0]["memory"].update(reserved_memory_bytes=2**30),
    )
    text = render_report(ReportConfig())
    assert "- GPU: NVIDIA H100（79.65 GiB、ドライバー 550.54）\n" in text
    assert "（コミット 4f0c2a9be1d3 + 未コミットの変更）" in text
    assert "| 設定 | ピーク | 予約済み | step 中の増加 |" in text
    assert "| Traditional LoRA | 592.0 MiB | 1.00 GiB | 208.0 MiB |" in text


def test_out_of_memory_is_named() -> None:
    edit(BENCH, lambda summary: summary["configurations"][0].update(memory={"status": "oom"}))
    assert "| Traditional LoRA | メモリ不足 (oom) | - |" in render_report(ReportConfig())


@pytest.mark.parametrize(
    ("misfit", "ja", "en"),
    [
        (
            {"requested_bytes": 2**31, "oom_phase": "backward"},
            "（段階: backward、要求サイズ: 2.00 GiB）。ほかの設定は計測しています。",
            "it ran out in backward, where 2.00 GiB more were asked for. It was not timed",
        ),
        ({}, "のため時間を計測していません。ほかの", "(oom)**. It was not timed"),
        ({"oom_phase": "*x*"}, "（段階: \\*x\\*）", "it ran out in \\*x\\*. It was not"),
    ],
)
def test_a_configuration_that_does_not_fit(misfit: dict[str, Any], ja: str, en: str) -> None:
    def run_out(summary: dict[str, Any]) -> None:
        configuration = summary["configurations"][1]
        memory = {"status": "oom", "requested_bytes": misfit.get("requested_bytes")}
        configuration.update(status="oom", memory=memory, **misfit)
        for name in ("phases", "ratios"):
            configuration.pop(name, None)

    edit(BENCH, run_out)
    assert ja in render_report(ReportConfig(lang="ja"))
    text = render_report(ReportConfig(lang="en"))
    assert en in text
    label = "Skip2-LoRA (4 blocks)"
    assert f"| {label} | oom | - | - | - |" in text
    size = ": 2.00 GiB asked for" if "requested_bytes" in misfit else ""
    assert f"| {label} | out of memory (oom){size} | - |" in text
    assert not re.search(rf"\| (Times|Memory saved for backward) \| {re.escape(label)}", text)


def test_peaks_of_phases_and_cuda_settings_are_shown_where_there_are_some() -> None:
    assert "Peak of each phase" not in render_report(ReportConfig(lang="en"))
    peaks = {"peak_memory_bytes": 2**30, "reserved_memory_bytes": 3 * 2**29}
    edit(
        BENCH,
        lambda summary: (
            summary.update(clock="cuda events"),
            summary["configurations"][0]["memory"].update(
                phases={"forward": peaks, "backward": None, "of a stranger": peaks}
            ),
        ),
    )
    gpu = {"name": "NVIDIA H100", "compute_capability": "9.0", "cuda": "12.8", "cudnn": 91002}
    gpu |= {"power_limit_watts": 700.0, "allow_tf32": False, "cudnn_allow_tf32": True}
    edit(BENCH, lambda environment: environment.update(gpu=gpu), "environment.json")
    text = render_report(ReportConfig(lang="en"))
    assert "| Traditional LoRA | 1.00 GiB (1.50 GiB) | - | - | - | - | - |\n" in text
    assert "of a stranger" not in text
    assert "iterations, timed by CUDA events\n" in text
    assert "cuDNN 91002, compute capability 9.0, power limit 700 W; TF32 in matrix" in text
    assert "products off, in cuDNN on, float32 precision -; cuDNN benchmark -, determin" in text
    ja = render_report(ReportConfig(lang="ja"))
    assert "TF32: 行列積 off、cuDNN on（float32 の精度 -）" in ja
    assert "回、CUDA events で計時\n" in ja


def test_a_benchmark_of_another_model_is_pointed_out() -> None:
    edit(BENCH, lambda summary: summary.update(model="pythia-14m", device="cuda"))
    text = render_report(ReportConfig(lang="en"))
    assert "- Model: pythia-14m, pystd (" in text
    assert "- Benchmark and training differ in model, device: do not compare" in text


def test_the_newest_of_a_configuration_is_taken(results: Path) -> None:
    newer = results / "train" / "20261124T000000Z-pystd-lora"
    shutil.copytree(LORA, newer)
    edit(
        newer,
        lambda summary: summary.update(started_at="2026-11-24T00:00:00+00:00", final_val_loss=2.0),
    )
    shutil.copytree(BENCH, results / "bench" / "older")
    edit(
        results / "bench" / "older",
        lambda summary: summary.update(started_at="2026-11-01T00:00:00+00:00"),
    )
    text = render_report(ReportConfig(lang="en"))
    left_out = section(text, "## Runs left out")
    assert "| Traditional LoRA | 2 | 0.01 | 3.1402 | 2.1285 ± 0.1817 |" in text
    assert (
        f"{LORA.name} | Traditional LoRA | there is a newer run of the same configuration and seed"
        in left_out
    )
    assert "| bench/older | bench | there is a newer run" in left_out


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("summary.json", {"global_batch_size": 8}, "global batch 8 (compared: 16)"),
        (
            "summary.json",
            {"precision": "bf16-true"},
            "precision bf16-true (compared: 32-true)",
        ),
        ("summary.json", {"steps": 10}, "number of steps 10 (compared: 250)"),
        ("environment.json", {"threads": 1}, "threads 1 (compared: 2)"),
        (
            "environment.json",
            {"processor": "M4"},
            "hardware M4 (compared: AMD EPYC 7763 64-Core Processor)",
        ),
        (
            "environment.json",
            {"data": None},
            "data set (sha256) - (compared: 51d2ee0b7c94)",
        ),
    ],
)
def test_runs_that_do_not_compare_are_left_out(
    file: str, change: dict[str, Any], reason: str
) -> None:
    edit(SKIP2_4, lambda content: content.update(change), file)
    text = render_report(ReportConfig(lang="en"))
    assert f"| other conditions: {reason} |" in section(text, "## Runs left out")
    assert "| Skip2-LoRA (4 blocks) |" not in section(text, "### Accuracy")


def test_equal_labels_are_told_apart() -> None:
    edit(
        SKIP2_6, lambda summary: summary.update(label="Skip2-LoRA (4 blocks)", blocks=[4, 5, 6, 7])
    )
    text = render_report(ReportConfig())
    for blocks in ("0,1,2,3", "4,5,6,7"):
        label = f"Skip2-LoRA (4 blocks) \\[blocks {blocks}; target hidden; r 16\\]"
        assert f"| {label} | 1 | 0.01 | 3.1402 |" in text


def test_values_from_files_cannot_break_the_markdown() -> None:
    label = "A | B <script>alert(1)</script>\n# [x](y) `z`"
    edit(SKIP2_4, lambda summary: summary.update(label=label))
    edit(
        SKIP2_4,
        lambda environment: environment.update(command="run\n```\n# Title"),
        "environment.json",
    )
    text = render_report(ReportConfig())
    escaped = r"A \| B &lt;script>alert(1)&lt;/script> # \[x\](y) \`z\`"
    assert f"| {escaped} | 1 | 0.01 | 3.1402 |" in text
    assert "<script" not in text
    assert "\nrun ''' # Title\n" in text


def test_the_report_imports_no_torch() -> None:
    code = (
        "import sys; from skip2bench.config.commands import ReportConfig;"
        "from skip2bench.report import run as report;"
        "report.render_report(ReportConfig());"
        "print(sorted({'torch', 'litgpt', 'lightning', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    root = Path(report.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("bounds", "is_claimed"), [((0.98, 1.06), True), ((0.002, 30.0), False), ((0.3, 0.5), True)]
)
def test_a_shortfall_is_claimed_only_where_the_interval_leaves_none(bounds, is_claimed) -> None:
    def spread(summary: dict[str, Any]) -> None:
        for configuration in summary["configurations"][1:]:
            low, high = bounds
            ratio = {"ratio": (low * high) ** 0.5, "low": low, "high": high, "n": 3}
            configuration["ratios"]["backward"] = ratio

    edit(BENCH, spread)
    text = render_report(ReportConfig(lang="en"))
    assert ("Less speed than the arithmetic allows" in text) is is_claimed


def test_runs_with_another_schedule_are_not_compared() -> None:
    config = yaml.safe_load((SKIP2_4 / "config.yaml").read_text())
    (SKIP2_4 / "config.yaml").write_text(yaml.safe_dump(config | {"weight_decay": 0.5}))
    text = render_report(ReportConfig(lang="en"))
    assert "other conditions: weight decay 0.5 (compared: " in text
    assert "there is a newer run" not in text


def change_config(folder: Path, **values: Any) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | values))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"quantize": "bnb.nf4"}, "quantisation bnb.nf4 (compared: off)"),
        ({"gradient_checkpointing": True}, "gradient checkpointing on (compared: off)"),
        ({"compile": True}, "torch.compile on (compared: off)"),
    ],
)
def test_runs_with_other_switches_are_not_compared(values: dict[str, Any], reason: str) -> None:
    change_config(SKIP2_4, **values)
    text = render_report(ReportConfig(lang="en"))
    assert f"other conditions: {reason}" in section(text, "## Runs left out")
    assert "Switches:" not in text


def test_a_run_from_before_there_were_switches_had_them_off() -> None:
    before = render_report(ReportConfig(lang="en"))
    change_config(SKIP2_4, quantize=None, gradient_checkpointing=False, compile=False)
    assert render_report(ReportConfig(lang="en")) == before


def test_runs_with_another_micro_batch_are_no_repetitions() -> None:
    """Equal losses, other times and memory: a configuration of its own, which is named."""
    other = LORA.with_name("20261123T101001Z-pystd-lora-large")
    shutil.copytree(LORA, other)
    edit(LORA, lambda summary: summary.update(micro_batch_size=4))
    edit(other, lambda summary: summary.update(micro_batch_size=16, train_seconds=5.0))
    rows = section(render_report(ReportConfig(lang="en")), "### Speed")
    assert "Traditional LoRA \\[" in rows
    assert "micro-batch 4" in rows
    assert "micro-batch 16" in rows
    cached = SKIP2_4.with_name("20261123T101301Z-pystd-skip2-large")
    shutil.copytree(SKIP2_4, cached)
    edit(cached, lambda summary: summary.update(micro_batch_size=16))
    rows = section(render_report(ReportConfig(lang="en")), "### Speed")
    cached_rows = [row for row in rows.splitlines() if row.startswith("| Skip2-LoRA")]
    assert cached_rows
    assert not any("micro-batch" in row for row in cached_rows)  # steps from Skip-Cache know none


@pytest.mark.parametrize(
    ("lang", "line", "mismatch"),
    [
        ("en", "- Switches: gradient checkpointing, weights quantised by bnb.nf4", "quantisation"),
        ("ja", "- 切り替え: 勾配チェックポイント、重みの量子化 bnb.nf4", "量子化"),
    ],
)
def test_switches_that_all_have_are_named_once(lang: Language, line: str, mismatch: str) -> None:
    for run in (LORA, LORA_SEED_1, SKIP2_4, SKIP2_6):
        change_config(run, quantize="bnb.nf4", gradient_checkpointing=True)
    text = render_report(ReportConfig(lang=lang))
    assert f"{line}\n" in text
    assert f"{mismatch}: do not compare" in text or f"{mismatch}が異なります" in text


def test_a_streamed_run_is_no_repetition_of_one_that_was_not() -> None:
    other = SKIP2_4.with_name("20261123T101400Z-pystd-skip2-streamed")
    shutil.copytree(SKIP2_4, other)
    edit(other, lambda summary: summary.update(seed=summary["seed"] + 1))
    change_config(other, stream_blocks=True)
    text = render_report(ReportConfig(lang="en"))
    streamed = "Skip2-LoRA (4 blocks) \\[blocks 0,1,2,3; target hidden; r 16"
    rows = [row for row in text.splitlines() if row.startswith(f"| {streamed}")]
    assert any("stream\\_blocks on" in row or "stream_blocks on" in row for row in rows)
    assert "- Switches: blocks streamed (" in text


def test_runs_at_several_learning_rates_are_a_grid() -> None:
    other = LORA.with_name("20261123T100500Z-pystd-lora-lr")
    shutil.copytree(LORA, other)
    change = {"learning_rate": 0.03, "final_val_loss": 2.9}
    edit(other, lambda summary: summary.update(change))
    text = render_report(ReportConfig(lang="en"))
    assert "Each is shown at its own best learning rate" in text
    assert "| Traditional LoRA | 0.03 | 2.9000 | 1 / 1 |" in text
    assert "| Traditional LoRA | 0.01 (best) | 2.2550 ± 0.0028 | 2 / 2 |" in text


def test_chosen_runs_alone_are_compared() -> None:
    config = ReportConfig(lang="en", run=(LORA, Path(SKIP2_6.relative_to("results"))))
    text = render_report(config)
    assert "| Skip2-LoRA (6 blocks) | 1 |" in text
    assert "Skip2-LoRA (4 blocks)" not in text
    assert "Benchmark: not measured" in text
    with pytest.raises(Skip2BenchError, match="'nothing' holds no run below 'results'; give the"):
        render_report(ReportConfig(run=(Path("nothing"),)))


def test_json_has_the_same_figures_as_data() -> None:
    data = json.loads(render_report(ReportConfig(json=True)))
    labels = [entry["label"] for entry in data["entries"]]
    assert labels == ["Traditional LoRA", "Skip2-LoRA (4 blocks)", "Skip2-LoRA (6 blocks)"]
    assert data["conclusion"] == "Skip2-LoRA (6 blocks)"
    assert data["entries"][1]["figures"]["final_val_loss"]["mean"] == 2.5152
    assert data["bench"][1]["backward_reduction"]["value"] == pytest.approx(0.888, abs=5e-4)
    assert {claim["name"] for claim in data["claims"]} >= {"training_time", "forward", "memory"}
    assert data["left_out"][0]["reason"] == "status"


def test_json_of_a_benchmark_alone(results: Path) -> None:
    shutil.rmtree(results / "train")
    data = json.loads(render_report(ReportConfig(json=True)))
    assert data["parameters"][2]["trainable_reduction"] == -0.5
    assert data["entries"] == []


def test_an_unreadable_run_does_not_stop_the_report(results: Path) -> None:
    (SKIP2_4 / "summary.json").write_text("{")
    text = render_report(ReportConfig(lang="en"))
    assert "| Skip2-LoRA (6 blocks) | 1 |" in text
    assert f"| train/{SKIP2_4.name} | - | cannot be read: summary.json is no JSON: " in text


def test_no_file_of_a_run_is_read_twice() -> None:
    reads = []
    original = Path.open

    def count(self: Path, *args: Any, **options: Any) -> Any:
        reads.append(str(self))
        return original(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", count)
        render_report(ReportConfig())
    of_runs = [path for path in reads if path.startswith("results") and "figures" not in path]
    assert len(of_runs) > 15
    assert len(of_runs) == len(set(of_runs))


def test_of_very_many_configurations_the_charts_show_the_first(results: Path) -> None:
    for rank in range(101, 131):
        folder = results / "train" / f"rank{rank}"
        shutil.copytree(SKIP2_4, folder)
        edit(folder, lambda summary, rank=rank: summary.update(rank=rank, label=f"rank {rank}"))
    text = render_report(ReportConfig(lang="en"))
    assert "\nThe charts show the first 16 of 33 configurations, the tables all.\n" in text
    assert text.count("\n| rank ") == 30 * 4
    chart = (results / "figures" / "losses.en.svg").read_text(encoding="utf-8")
    assert len(re.findall(">rank [0-9]+<", chart)) == 15
    text = render_report(ReportConfig())
    assert "\nグラフは 33 設定のうち最初の 16 設定を示し、表はすべてを示します。\n" in text


def test_runs_in_folders_of_one_name_are_both_counted(results: Path) -> None:
    other = results / "mine" / LORA.name
    shutil.copytree(LORA, other)
    edit(other, lambda summary: summary.update(seed=7))
    text = render_report(ReportConfig(lang="en"))
    assert "| Traditional LoRA | 3 | 0.01 |" in text


def test_runs_that_do_not_say_when_they_began_are_reported() -> None:
    for folder in (BENCH, LORA, LORA_SEED_1, SKIP2_4, SKIP2_6):
        edit(folder, lambda summary: summary.pop("started_at"))
    assert "\n- Date: -; load at the start" in render_report(ReportConfig(lang="en"))


def test_parameters_that_are_not_known_decide_no_claim() -> None:
    for folder in (LORA, LORA_SEED_1):
        edit(folder, lambda summary: summary.update(trainable_parameters=None))
    text = render_report(ReportConfig(lang="en"))
    assert "| 4 blocks train 75 % fewer parameters | - | - | not measured |" in text


def test_a_run_whose_metrics_are_damaged_is_named_and_an_older_one_taken(results: Path) -> None:
    older = results / "train" / "older"
    shutil.copytree(SKIP2_4, older)
    edit(older, lambda summary: summary.update(started_at="2026-01-01T00:00:00+00:00"))
    path = SKIP2_4 / "logs/version_0/metrics.csv"
    path.write_text(path.read_text(encoding="utf-8")[:-5], encoding="utf-8")
    text = render_report(ReportConfig(lang="en"))
    reason = "cannot be read: metrics.csv: its last row is cut off"
    assert f"| train/{SKIP2_4.name} | - | {reason} |" in text
    assert "| Skip2-LoRA (4 blocks) | 1 |" in text
    assert "| train/older |" not in text


def test_words_that_a_terminal_obeys_are_shown_not_sent(results: Path) -> None:
    edit(LORA, lambda summary: summary.update(label="\x1b]0;x\x07 \u202e\x9b"))
    folder = os.fsencode(results / "train") + b"/\xff"
    os.mkdir(folder)
    Path(os.fsdecode(folder), "summary.json").write_text("{")
    for config in (ReportConfig(), ReportConfig(json=True), ReportConfig(format="html")):
        text = render_report(config)
        assert not re.search("[\x07\x1b\x9b\u202e]", text)
        assert text.encode()
    assert json.loads(render_report(ReportConfig(json=True)))["left_out"][-1]["folder"] == (
        "train/\udcff"
    )


@pytest.mark.parametrize("has_results", [True, False])
def test_runs_outside_the_results_folder_can_be_asked_for(has_results) -> None:
    elsewhere = LORA.rename("elsewhere")
    if not has_results:
        shutil.rmtree("results")
    text = render_report(ReportConfig(lang="en", run=(elsewhere,)))
    assert "Traditional LoRA" in text
    assert "Skip2-LoRA (4 blocks)" not in text
    if has_results:
        both = (Path("elsewhere"), SKIP2_6)
        assert "| Skip2-LoRA (6 blocks) | 1 |" in render_report(ReportConfig(lang="en", run=both))
