import pytest

from skip2bench.compare.process import _judge, cell_context, read_cell_run, run_cell
from skip2bench.io.whole import write_json

KILLED = "killed (signal 9), as the system does where memory runs out"


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "cell.log"
    path.write_text("loading\nerror: the file is gone\n\n")
    return path


@pytest.mark.parametrize(
    ("summary", "exit_status", "status", "error"),
    [
        ({"status": "ok"}, 0, "ok", None),
        ({"status": "failed", "error": "the loss is nan"}, 1, "failed", "the loss is nan"),
        ({"status": "oom", "error": "2 GiB"}, 1, "oom", "2 GiB"),
        ({"status": "interrupted", "error": None}, 130, "interrupted", None),
        (None, 1, "failed", "the file is gone"),
        # nobody could say so: killed
        (
            {"status": "running"},
            -9,
            "oom",
            KILLED,
        ),
        ({"status": "running"}, -11, "failed", "the file is gone"),
        # it says that it ended well, and did not
        ({"status": "ok"}, 1, "failed", "the file is gone"),
    ],
)
def test_the_status_of_a_cell(summary, exit_status, status, error, log, tmp_path):
    if summary is not None:
        known = {"schema_version": 1, "kind": "train"}
        write_json(tmp_path / "summary.json", known | summary)
    assert _judge(read_cell_run(tmp_path), log, exit_status) == (status, error)


def test_words_in_the_log_tell_of_memory_that_ran_out(log, tmp_path):
    log.write_text("terminate called after throwing an instance of 'std::bad_alloc'\n")
    assert _judge(read_cell_run(tmp_path), log, -6)[0] == "oom"


def test_bad_input_is_the_cells_error(tmp_path):
    spec = {
        "kind": "train",
        "config": {"data": "nowhere.json"},
        "out_dir": str(tmp_path / "run"),
        "arguments": ["train"],
        "max_memory_bytes": None,
    }
    outcome, cell_run = run_cell(
        spec, tmp_path / "spec.json", tmp_path / "cell.log", cell_context("cpu", "nowhere.json")
    )
    assert outcome.status == "failed"
    assert outcome.error == "data file 'nowhere.json' does not exist; check the path"
    assert outcome.exit_status == 1
    assert outcome.wall_seconds > 0
    assert cell_run is None
    assert not (tmp_path / "run").exists()
