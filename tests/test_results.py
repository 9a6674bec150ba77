import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from skip2bench.errors import Skip2BenchError
from skip2bench.results import (
    create_log_folder,
    create_run_folder,
    open_run_folder,
    read_run,
    read_runs,
    write_csv,
    write_json,
)


def make_run(folder: Path, started_at: str = "2026-01-01T00:00:00+00:00") -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "summary.json", {"kind": "train", "started_at": started_at})
    return folder


def test_new_folders_are_named_by_time_model_and_label(tmp_path):
    first = create_run_folder("train", "pystd", "lora", root=tmp_path)
    second = create_run_folder("train", "pystd", "lora", root=tmp_path)
    assert first != second
    assert first.parent == tmp_path / "train"
    assert "Z-pystd-lora" in first.name


def test_processes_that_start_in_one_second_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        make = partial(create_run_folder, "train", "m", "lora", root=tmp_path)
        folders = [future.result() for future in [pool.submit(make) for _ in range(40)]]
    assert len(set(folders)) == 40


def test_a_folder_that_holds_a_run_needs_force(tmp_path):
    folder = make_run(tmp_path / "run")
    with (
        pytest.raises(Skip2BenchError) as caught,
        open_run_folder("train", "m", "l", folder),
    ):
        pass
    assert str(caught.value) == (
        f"{str(folder)!r} holds a run already; choose another --out-dir, add --resume to go on "
        "with it, or --force to replace it"
    )
    with open_run_folder("train", "m", "l", folder, force=True) as opened:
        assert opened == folder


def test_force_removes_what_a_run_made_and_nothing_else(tmp_path):
    for name in ("mine", "run"):
        for part in ("final", "state", ".cache"):
            (tmp_path / name / part).mkdir(parents=True)
            (tmp_path / name / part / "weights").write_text("x")
    write_json(tmp_path / "run" / "summary.json", {})
    for name in ("mine", "run"):
        with open_run_folder("train", "m", "l", tmp_path / name, force=True):
            pass
    assert (tmp_path / "mine" / "final" / "weights").exists()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "summary.json"]


def test_a_second_run_in_a_folder_is_told_who_is_there(tmp_path):
    with (
        open_run_folder("train", "m", "l", tmp_path / "run") as folder,
        pytest.raises(Skip2BenchError) as caught,
        open_run_folder("train", "m", "l", folder),
    ):
        pass
    assert str(caught.value) == (
        f"process {os.getpid()} is working in {str(folder)!r}; wait for it, or choose another "
        "--out-dir"
    )


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Skip2BenchError, match=r"cannot make the run folder .*file/run"):
        create_run_folder("train", "m", "l", tmp_path / "file" / "run")


def test_log_folders_count_up(tmp_path):
    for name in ("version_0", "version_1", "version_2"):
        folder = create_log_folder(tmp_path)
        assert folder.name == name
        assert create_log_folder(tmp_path) == folder  # nothing is in it yet
        (folder / "steps.csv").touch()


def test_json_has_no_word_for_nan(tmp_path):
    write_json(
        tmp_path / "a.json",
        {"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}, "e": "日本"},
    )
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": {"d": None}, "e": "日本"}
    assert "日本" in text
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_missing_values_are_empty_cells(tmp_path):
    write_csv(tmp_path / "a.csv", ["a", "b"], [{"a": 1, "b": None}, {"a": 2}])
    assert (tmp_path / "a.csv").read_text() == "a,b\n1,\n2,\n"


def test_runs_are_found_at_any_of_three_levels_oldest_first(tmp_path):
    make_run(tmp_path / "train" / "b", "2026-01-02T00:00:00+00:00")
    make_run(tmp_path / "train" / "a", "2026-01-03T00:00:00+00:00")
    make_run(tmp_path / "alone", "2026-01-01T00:00:00+00:00")
    make_run(tmp_path / "reference" / "gpu")
    assert [run.folder.name for run in read_runs(tmp_path)[0]] == ["alone", "b", "a"]
    assert [run.folder.name for run in read_runs(tmp_path / "reference")[0]] == ["gpu"]
    assert [run.folder.name for run in read_runs(tmp_path / "alone")[0]] == ["alone"]


def test_no_results_folder_is_an_error(tmp_path):
    with pytest.raises(Skip2BenchError, match="does not exist; run 'skip2bench bench' first"):
        read_runs(tmp_path / "none")


@pytest.mark.parametrize("text", ["{", "[1]", "", '{"blocks": 5}'])
def test_a_broken_summary_names_its_folder(tmp_path, text):
    folder = make_run(tmp_path / "run")
    (folder / "summary.json").write_text(text)
    with pytest.raises(Skip2BenchError, match=r"the run in .* cannot be read .*; move it away"):
        read_run(folder)
