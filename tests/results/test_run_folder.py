import csv
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from skip2bench.errors import Skip2BenchError
from skip2bench.io.whole import write_csv, write_json
from skip2bench.results.run_folder import create_log_folder, create_run_folder, open_run_folder


def make_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "summary.json", {"kind": "train"})
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


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_text_that_a_spreadsheet_would_run_gets_an_apostrophe(tmp_path, start):
    text = f"{start}HYPERLINK(1)"
    write_csv(tmp_path / "a.csv", ["a", "b"], [{"a": text, "b": -1.5}, {"a": f"a{text}", "b": 0}])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    shown = text.replace("\r", "\n")
    assert rows == [["a", "b"], [f"'{shown}", "-1.5"], [f"a{shown}", "0"]]
