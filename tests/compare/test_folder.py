import shutil
from dataclasses import replace

import pytest

from skip2bench.compare.folder import CompareFolder, describe_cell, find_folder, make_key
from skip2bench.compare.matrix import list_cells, list_configurations
from skip2bench.compare.process import Outcome, read_cell_run
from skip2bench.compare.results import read_result
from skip2bench.config.compare import load_compare_config
from skip2bench.config.options import to_plain
from skip2bench.errors import Skip2BenchError
from skip2bench.io.resources import embedded_checkpoint
from skip2bench.io.whole import write_json, write_yaml
from skip2bench.machine.environment_record import Environment
from skip2bench.models.base import load_config
from skip2bench.results.curves import CurvePoint

OK = Outcome(
    status="ok",
    error=None,
    started_at="2026-01-01T00:00:00+00:00",
    wall_seconds=1.0,
    other_cpu_cores=0.0,
    exit_status=0,
)
KNOWN = {"schema_version": 1, "kind": "bench", "status": "ok"}
ENVIRONMENT = {"torch": "2.13.0", "threads": 2, "checkpoint": {"sha256": "a"}}


@pytest.fixture
def cell(tmp_path):
    config = load_compare_config({"methods": "lora,skip2", "blocks": ["fast"]})
    configurations = list_configurations(config, load_config(embedded_checkpoint()))
    cells = list_cells(config, configurations, tmp_path / "cache")
    return next(cell for cell in cells if cell.role == "reused")


@pytest.fixture
def folder(tmp_path):
    folder = CompareFolder(tmp_path)
    folder.run_folder("x").mkdir()
    write_json(folder.run_folder("x") / "summary.json", KNOWN)
    folder.write_outcome("x", "key", OK)
    return folder


def test_a_cell_is_done_only_under_its_own_key(folder):
    assert folder.read_outcome("x", "key") == OK
    assert folder.read_outcome("x", "another") is None
    assert folder.read_outcome("y", "key") is None
    assert folder.holds_another("x", "another")
    assert not folder.holds_another("x", "key")
    assert not folder.holds_another("y", "key")


@pytest.mark.parametrize("content", ["", "{", '{"key": "key"}', '{"key": "key", "outcome": {}}'])
def test_a_broken_record_means_that_the_cell_runs_again(folder, content):
    (folder.path / "cells/x.json").write_text(content)
    assert folder.read_outcome("x", "key") is None


def test_a_cell_without_its_run_folder_runs_again(folder):
    folder.clear("x")
    folder.write_outcome("x", "key", OK)
    assert folder.read_outcome("x", "key") is None


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: (run / "logs/version_0/metrics.csv").unlink(), "metrics.csv is missing, or"),
        (lambda run: cut(run / "logs/version_0/metrics.csv"), "the metrics of the run in"),
        (lambda run: (run / "logs/version_0/steps.csv").unlink(), "steps.csv is missing"),
        (lambda run: cut(run / "logs/version_0/steps.csv"), "steps.csv has "),
        (lambda run: shutil.rmtree(run / "final"), "no file in final has the adapter's "),
        (lambda run: cut(run / "final/adapter.safetensors"), "no file in final has the adapter's "),
        (lambda run: cut(run / "summary.json"), "summary.json is no JSON"),
        (lambda run: shutil.rmtree(run), "summary.json is "),
    ],
)
def test_a_cell_that_is_no_longer_whole_is_named_once_and_runs_again(
    train, tmp_path, capsys, damage, said
):
    folder = CompareFolder(tmp_path)
    train("cells/x", method="skip2")
    folder.write_outcome("x", "key", OK)
    assert folder.read_outcome("x", "key") == OK
    damage(folder.run_folder("x"))
    folder = CompareFolder(tmp_path)  # which has read nothing yet
    capsys.readouterr()
    assert folder.read_outcome("x", "key") is None
    assert not folder.holds_another("x", "other key")
    err = capsys.readouterr().err
    assert err.startswith(f"warning: x runs again: {said}")
    assert err.count("runs again") == 1


def test_what_decides_a_result_changes_the_key(cell):
    def key(cell=cell, environment=ENVIRONMENT, data="d"):
        return make_key(describe_cell(cell, data), Environment(**environment))

    assert key() == key()
    others = [
        key(replace(cell, config=replace(cell.config, learning_rate=1.0))),
        key(replace(cell, config=replace(cell.config, seed=1))),
        key(replace(cell, role="run")),
        key(replace(cell, max_memory_bytes=1)),
        key(environment=ENVIRONMENT | {"torch": "2.14.0"}),
        key(environment=ENVIRONMENT | {"checkpoint": {"sha256": "b"}}),
        key(environment=ENVIRONMENT | {"processor": "another"}),
        key(data="e"),
    ]
    assert len({key(), *others}) == len(others) + 1
    # but not where its cache happens to lie
    elsewhere = replace(cell, config=replace(cell.config, cache_dir=None))
    assert key(elsewhere) == key()


@pytest.mark.parametrize("name", ["data", "val_data", "test_data", "prompt_style", "domain_text"])
def test_what_a_configuration_reads_alone_changes_its_key(cell, tmp_path, name):
    """In a file, or in a file of a folder."""
    folder = tmp_path / "own"
    folder.mkdir()
    file = folder / "train.json"
    for place in (file,) if name == "prompt_style" else (file, folder):
        own = replace(cell, config=replace(cell.config, **{name: str(place)}))
        file.write_text("[1]")
        before = make_key(describe_cell(own, "d"), Environment())
        assert make_key(describe_cell(own, "d"), Environment()) == before
        file.write_text("[22]")
        assert make_key(describe_cell(own, "d"), Environment()) != before


def test_what_is_known_by_name_is_no_file_that_is_called_so(cell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pydoc", "alpaca", "auto"):
        (tmp_path / name).mkdir()
    (tmp_path / "pydoc" / "train.json").write_text("[1]")
    own = replace(cell, config=replace(cell.config, prompt_style="alpaca"))
    before = make_key(describe_cell(own, "d"), Environment())
    for name in ("pydoc", "alpaca", "auto"):
        (tmp_path / name / "train.json").write_text("[22]")
    assert make_key(describe_cell(own, "d"), Environment()) == before


def test_the_next_call_finds_the_newest_comparison_of_its_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_compare_config({})
    first = find_folder(config, "pystd")
    write_yaml(first / "config.yaml", to_plain(config))
    assert find_folder(config, "pystd") == first
    assert find_folder(load_compare_config({"epochs": 1}), "pystd") != first
    assert find_folder(replace(config, resume=False), "pystd") != first


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    write_json(tmp_path / "summary.json", KNOWN)
    with pytest.raises(Skip2BenchError, match="holds a run that is no comparison; choose another"):
        find_folder(load_compare_config({"out_dir": tmp_path}), "pystd")


def test_a_comparison_is_not_begun_anew_over_another(tmp_path):
    write_json(tmp_path / "summary.json", KNOWN | {"kind": "compare"})
    config = load_compare_config({"out_dir": tmp_path})
    assert find_folder(config, "pystd") == tmp_path
    with pytest.raises(Skip2BenchError, match="or leave --no-resume out to go on with it"):
        find_folder(replace(config, resume=False), "pystd")


def test_a_peer_is_at_its_target_where_its_end_is(folder, cell):
    summary = KNOWN | {"kind": "train", "steps": 10, "final_val_loss": 2.0, "train_seconds": 5.0}
    write_json(folder.run_folder("x") / "summary.json", summary)
    cell_run = read_cell_run(folder.run_folder("x"))
    assert read_result(cell, OK, cell_run).curve == []  # its metrics are lost
    result = read_result(replace(cell, peer="litgpt"), OK, cell_run)
    assert result.curve == [CurvePoint(step=10, val_loss=2.0, train_seconds=5.0)]
    failed = replace(OK, status="failed")
    assert not read_result(cell, failed, cell_run).curve
