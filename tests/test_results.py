import csv
import json
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from skip2bench.errors import Skip2BenchError
from skip2bench.results import (
    CsvLog,
    create_log_folder,
    create_run_folder,
    write_csv,
    write_json,
)


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
    with pytest.raises(
        Skip2BenchError, match="holds a run already; choose another --out-dir, or add --force"
    ):
        create_run_folder("train", "m", "l", folder)
    assert create_run_folder("train", "m", "l", folder, force=True) == folder


def test_force_removes_the_adapter_of_a_run_and_nothing_that_no_run_made(tmp_path):
    for name in ("mine", "run"):
        (tmp_path / name / "final").mkdir(parents=True)
        (tmp_path / name / "final" / "weights").write_text("x")
    write_json(tmp_path / "run" / "summary.json", {})
    for name in ("mine", "run"):
        create_run_folder("train", "m", "l", tmp_path / name, force=True)
    assert (tmp_path / "mine" / "final" / "weights").exists()
    assert not (tmp_path / "run" / "final").exists()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Skip2BenchError, match=r"cannot make the run folder .*file/run"):
        create_run_folder("train", "m", "l", tmp_path / "file" / "run")


def test_log_folders_count_up(tmp_path):
    assert [create_log_folder(tmp_path).name for _ in range(3)] == [
        "version_0",
        "version_1",
        "version_2",
    ]


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


def test_a_log_is_on_disk_row_by_row_and_never_restarted(tmp_path):
    log = CsvLog(tmp_path / "log.csv", ["a", "b"])
    log.append({"a": 1, "b": 2})
    assert (tmp_path / "log.csv").read_text() == "a,b\n1,2\n"
    with pytest.raises(ValueError, match="not in fieldnames"):
        log.append({"a": 1, "c": 2})
    log.close()
    with pytest.raises(FileExistsError):
        CsvLog(tmp_path / "log.csv", ["a"])
