import csv
import json

import pandas as pd
import pytest

from skip2bench.bench import list_configurations, run_bench
from skip2bench.config import BenchConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.models import config_by_name, load_config
from skip2bench.results import MEASUREMENT_COLUMNS
from skip2bench.screens import print_bench


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
    return run_bench(config, ["bench"]), folder


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
    print_bench(result[0])
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
