"""`--lm-eval` with a stand-in for the harness that answers in its files' form."""

import json
import os
import sys

import pytest

from skip2bench.compare import harness
from skip2bench.compare.run import run_comparison
from skip2bench.config.commands import ReportConfig
from skip2bench.config.compare import load_compare_config
from skip2bench.errors import Skip2BenchError
from skip2bench.report.run import render_report

STAND_IN = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
for flag in ("model", "model_args", "tasks", "output_path", "device", "include_path", "limit"):
    parser.add_argument("--" + flag)
parser.add_argument("--apply_chat_template", action="store_true")
given = parser.parse_args()
model = pathlib.Path(given.model_args.split(",")[0].removeprefix("pretrained="))
assert (model / "config.json").exists() and (model / "model.safetensors").exists()
output = pathlib.Path(given.output_path) / "model"
output.mkdir(parents=True)
figures = {"alias": given.tasks, "exact_match,last": 0.25, "exact_match_stderr,last": 0.1}
content = {"results": {given.tasks: figures}, "n-samples": {given.tasks: {"effective": 8}}}
(output / "results_now.json").write_text(json.dumps(content))
print("asked", given.tasks, given.limit, given.apply_chat_template)
"""
TASKS = """
class TaskManager:
    def __init__(self, include_path=None):
        self.all_tasks = ["numbers", "breaks"]
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A module `lm_eval`; its main program."""
    root = tmp_path / "site"
    (root / "lm_eval" / "tasks").mkdir(parents=True)
    (root / "lm_eval" / "__init__.py").write_text("")
    (root / "lm_eval" / "tasks" / "__init__.py").write_text(TASKS)
    main = root / "lm_eval" / "__main__.py"
    main.write_text(STAND_IN)
    (root / "lm_eval-0.4.99.dist-info").mkdir()
    (root / "lm_eval-0.4.99.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: lm_eval\nVersion: 0.4.99\n"
    )
    monkeypatch.syspath_prepend(root)
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return main


@pytest.fixture
def config(tiny_checkpoint, tiny_data, tmp_path):
    def make(**changes):
        values = {
            **{"checkpoint_dir": str(tiny_checkpoint), "data": str(tiny_data), "seeds": 1},
            **{"global_batch_size": 8, "micro_batch_size": 4, "max_steps": 2, "device": "cpu"},
            **{"learning_rates": [1e-2], "methods": ["lora"], "bench": False},
            **{"lr_warmup_steps": 1, "lm_eval": ["numbers"], "out_dir": tmp_path / "out"},
        }
        return load_compare_config(values | changes)

    return make


def test_models_are_exported_asked_and_removed(stand_in, config, tmp_path, monkeypatch):
    run_comparison(config(lm_eval_limit=8), ["compare"])
    folder = tmp_path / "out"
    found = json.loads((folder / "lm_eval.json").read_text())
    (entry,) = found["configurations"].values()
    assert entry["run"] == "lora-lr0.01-seed1337"
    assert entry["metrics"] == [
        {
            **{"task": "numbers", "metric": "exact_match,last", "value": 0.25},
            **{"standard_error": 0.1, "samples": 8},
        }
    ]
    assert (found["version"], found["limit"]) == ("0.4.99", 8)
    assert [path.suffix for path in (folder / "lm_eval").iterdir()] == [".log"]
    assert next((folder / "lm_eval").iterdir()).read_text() == "asked numbers 8 True\n"

    # what was asked is not asked again, and what fails loses nothing
    stand_in.write_text("raise SystemExit('no such thing')")
    run_comparison(config(lm_eval_limit=8), ["compare"])
    with pytest.raises(Skip2BenchError, match="lm-eval failed: no such thing; see"):
        run_comparison(config(lm_eval_limit=4), ["compare"])
    assert json.loads((folder / "comparison_results.json").read_text())["statuses"] == {"ok": 1}

    text = render_report(ReportConfig(results=folder, lang="en", plots_dir=tmp_path / "plots"))
    assert "### Tasks of lm-evaluation-harness" in text
    assert "| exact_match,last | 8 | 0.250 ± 0.100 |" in text


def test_a_task_that_is_not_there_is_said_before_the_runs(stand_in, config, tmp_path):
    with pytest.raises(Skip2BenchError, match="knows no task gsm9k"):
        run_comparison(config(lm_eval=["gsm9k"]), ["compare"])
    assert not (tmp_path / "out").exists()


def test_without_the_harness_its_extra_is_named(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Skip2BenchError, match=r"skip2bench\[eval\]"):
        run_comparison(config(), ["compare"])


def test_what_belongs_to_no_task(config):
    with pytest.raises(Skip2BenchError, match="names no task"):
        config(lm_eval=[], lm_eval_limit=8)
