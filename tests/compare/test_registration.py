"""A comparison of one run: registered, run, refused where it is another, and run again."""

import json

import pytest

from skip2bench.compare.run import run_comparison
from skip2bench.compare.verify import run_verify
from skip2bench.config.commands import ReportConfig
from skip2bench.config.compare import load_compare_config
from skip2bench.errors import Skip2BenchError
from skip2bench.io.record import parse_time
from skip2bench.report.run import render_report


@pytest.fixture
def compare(tiny_checkpoint, tiny_data, tmp_path):
    def run(**changes):
        settings = {
            **{"checkpoint_dir": str(tiny_checkpoint), "data": str(tiny_data), "methods": "lora"},
            **{"global_batch_size": 8, "micro_batch_size": 4, "max_steps": 4, "eval_interval": 2},
            **{"lr_warmup_steps": 1, "device": "cpu", "bench": False, "seeds": 1},
            "out_dir": tmp_path / "out",
        }
        return run_comparison(load_compare_config(settings | changes), ["compare"])

    run.folder = tmp_path / "out"
    return run


def test_a_registered_comparison(compare, tmp_path, capsys):
    compare(register=True)
    path, cell = (
        compare.folder / "registration.json",
        compare.folder / "cells/lora-lr0.001-seed1337",
    )
    registration = json.loads(path.read_text())
    end = json.loads(cell.with_name(f"{cell.name}.json").read_text())
    plan = registration["plan"]
    assert plan["cells"] == {cell.name: end["key"]}
    assert parse_time(registration["registered_at"]) <= parse_time(end["outcome"]["started_at"])
    assert plan["analysis"]["baseline"] == "lora"
    assert len(plan["data"]["sha256"]) == len(registration["sha256"]) == 64
    assert {"skip2bench", "torch", "litgpt"} <= plan["versions"].keys()
    assert run_verify(compare.folder).differences == ()

    # the same plan goes on and repeats nothing, another is refused and loses nothing
    capsys.readouterr()
    before = path.read_bytes()
    compare(register=True)
    assert f"registered at {registration['registered_at']}" in capsys.readouterr().err
    with pytest.raises(Skip2BenchError, match=r"registers another plan \(other: .*seeds"):
        compare(register=True, seeds=2)
    assert path.read_bytes() == before
    assert run_verify(compare.folder).differences == ()

    config = ReportConfig(results=compare.folder, lang="en", plots_dir=tmp_path / "plots")
    assert "These results follow it: the same runs" in render_report(config)
    path.write_text(path.read_text().replace('"model": "tiny"', '"model": "huge"'))
    assert "the plan in the file is not that of its sha256" in render_report(config)
    with pytest.raises(Skip2BenchError, match="was changed: its plan is not that of its sha256"):
        compare(register=True)
    path.unlink()
    with pytest.raises(Skip2BenchError, match="holds runs already, and a plan is registered"):
        compare(register=True)
    assert not path.exists()

    # a run that was disturbed is repeated where that is asked for, and only then
    summary = json.loads((cell / "summary.json").read_text())
    assert summary["processor"].keys() == {"training", "steps", "validation"}
    summary["processor"]["training"]["others_cores"] = 1e3
    (cell / "summary.json").write_text(json.dumps(summary))
    stamp = (cell / "summary.json").stat().st_mtime_ns
    result = compare()
    assert [it.cells for it in result.warnings if it.kind == "disturbed"] == [(cell.name,)]
    assert result.configurations[0].figures["train_seconds"].is_disturbed
    assert (cell / "summary.json").stat().st_mtime_ns == stamp
    compare(repeat_disturbed=True)
    assert (cell / "summary.json").stat().st_mtime_ns != stamp
    again = json.loads((cell / "summary.json").read_text())
    assert again["processor"]["training"]["others_cores"] != 1e3
