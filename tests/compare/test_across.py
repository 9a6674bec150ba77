"""A comparison on two data sets: run, gone on with, read back, reported and verified."""

import json

import pytest
from tiny import as_written

from skip2bench.compare.across import name_folders, run_across
from skip2bench.compare.run import run_comparison
from skip2bench.compare.verify import run_verify
from skip2bench.config.commands import ReportConfig
from skip2bench.config.compare import load_compare_config
from skip2bench.errors import Skip2BenchError
from skip2bench.report.run import render_report
from skip2bench.results.reading import find_run, read_runs


def test_folders_are_named_by_their_data():
    names = ["gsm8k.json", "a b/ü.jsonl", "gsm8k.jsonl", "...", "alpaca2k"]
    assert name_folders(names) == ["gsm8k", "ü", "gsm8k-2", "data", "alpaca2k"]
    assert name_folders(["x", "x-3", "x", "x"]) == ["x", "x-3", "x-2", "x-4"]


def test_a_comparison_is_of_one_data_set(tiny_checkpoint):
    config = load_compare_config({"data_sets": ["pydoc", "x.json"], "bench": False})
    with pytest.raises(Skip2BenchError, match="give the configuration with data_sets to run_acros"):
        run_comparison(config)


def test_two_data_sets(tiny_checkpoint, tiny_data, tmp_path, capsys):
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(tiny_data.read_text())[:24]))
    folder = tmp_path / "results" / "compare" / "both"
    matrix = {
        **{"checkpoint_dir": str(tiny_checkpoint), "data_sets": [str(tiny_data), str(other)]},
        **{"global_batch_size": 8, "micro_batch_size": 4, "max_steps": 4, "eval_interval": 2},
        **{"lr_warmup_steps": 1, "device": "cpu", "bench": False, "seeds": 1},
        **{"learning_rates": [1e-2], "methods": ["lora", "lora-all"], "out_dir": folder},
    }
    tried = run_across(load_compare_config(matrix | {"dry_run": True}), ["compare"])
    assert len(tried.cells) == 4
    assert {cell.split("/")[0] for cell in tried.cells} == {"tiny", "other"}
    assert not folder.exists()

    config = load_compare_config(matrix)
    content = as_written(run_across(config, ["compare"]))
    assert content["error"] is None
    assert [it["folder"] for it in content["data_sets"]] == ["tiny", "other"]
    lora, lora_all = content["configurations"]
    assert lora["is_baseline"]
    assert set(lora_all["by_data"]) == {"tiny.json", "other.json"}
    assert lora_all["time_ratio"]["value"] > 0
    for name in ("tiny", "other"):  # each is a comparison like any other
        assert find_run(folder / name).summary.kind == "compare"

    capsys.readouterr()
    run_across(config, ["compare"])
    assert capsys.readouterr().err.count("2 of 2 are done already") == 2

    # the report is of one data set, has the table of both, and says where the other is
    results = tmp_path / "results"
    assert {run.folder.name for run in read_runs(results)[0]} == {"tiny", "other"}
    text = render_report(ReportConfig(results=results, lang="en", plots_dir=tmp_path / "plots"))
    assert "### Over several data sets" in text
    assert "on another data set, in the table over data sets" in text
    text = render_report(
        ReportConfig(results=results, run=(folder / "tiny",), plots_dir=tmp_path / "plots")
    )
    assert "### 複数のデータセットのまとめ" in text

    assert run_verify(folder).differences == ()
    path = folder / "across.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"configurations": []}))
    (difference, *_) = run_verify(folder).differences
    assert difference.file == "across.json"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": "pydoc"}, "beside data_sets"),
        ({"data_sets": ["pydoc"]}, "alone"),
        ({"data_sets": ["pydoc", "pydoc"]}, "twice"),
        ({"target_loss": 1.0}, "is of one data set"),
    ],
)
def test_what_cannot_be_meant(changes, says):
    with pytest.raises(Skip2BenchError, match=says):
        load_compare_config({"data_sets": ["pydoc", "x.json"]} | changes)


def test_nothing_is_written_where_one_of_them_is_missing(tiny_checkpoint, tiny_data, tmp_path):
    values = {"checkpoint_dir": str(tiny_checkpoint), "out_dir": tmp_path / "out"}
    config = load_compare_config(values | {"data_sets": [str(tiny_data), "missing.json"]})
    with pytest.raises(Skip2BenchError, match=r"missing\.json"):
        run_across(config)
    assert not (tmp_path / "out").exists()
