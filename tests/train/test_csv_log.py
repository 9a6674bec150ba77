import errno
import os

import pytest
from full_disk import full_at

from skip2bench.train.logs import CsvLog, DamagedLogError, keep_rows

COLUMNS = ("step", "loss")
TEXT = "step,loss\n1,0.5\n2,0.25\n3,0.125\n"


def test_every_row_is_in_the_file_at_once(tmp_path):
    log = CsvLog(tmp_path / "log.csv", COLUMNS)
    log.append({"step": 1, "loss": 0.5})
    assert (tmp_path / "log.csv").read_text() == "step,loss\n1,0.5\n"
    with pytest.raises(ValueError, match="not in fieldnames"):
        log.append({"step": 1, "other": 2})
    log.close()
    log = CsvLog(tmp_path / "log.csv", COLUMNS)  # goes on
    log.append({"step": 2, "loss": 0.25})
    log.sync()
    log.close()
    assert (tmp_path / "log.csv").read_text() == "step,loss\n1,0.5\n2,0.25\n"


def test_a_row_that_has_no_room_is_left_out_whole(tmp_path):
    path = tmp_path / "log.csv"
    log = CsvLog(path, COLUMNS)
    log.append({"step": 1, "loss": 0.5})
    size = path.stat().st_size
    with full_at(size + 3), pytest.raises(OSError, match="too large") as caught:
        log.append({"step": 2, "loss": 0.25})  # 7 bytes: 3 fit
    assert caught.value.errno == errno.EFBIG
    assert path.read_text() == "step,loss\n1,0.5\n"
    log.append({"step": 2, "loss": 0.25})
    log.close()
    assert path.read_text() == "step,loss\n1,0.5\n2,0.25\n"


@pytest.mark.parametrize("end", ["", "4,0.", "4,0.1\n5,x,y\n"])
def test_a_log_is_cut_back_to_the_steps_that_count(tmp_path, end):
    path = tmp_path / "log.csv"
    path.write_text(TEXT + end)
    keep_rows(path, COLUMNS, range(1, 3))
    assert path.read_text() == "step,loss\n1,0.5\n2,0.25\n"
    assert os.listdir(tmp_path) == ["log.csv"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "step,loss\n1,0.5\n",
        "step,loss\n1,0.5\n2,0.2",
        "step,loss\n1,0.5\n3,0.25\n",
        "step,loss\n1,0.5\n2\n",
        "step,loss\n1,0.5\n\n2,0.25\n",
        "step,other\n1,0.5\n2,0.25\n",
    ],
)
def test_a_log_without_those_rows_is_damaged_and_stays_as_it_is(tmp_path, text):
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(DamagedLogError, match=r"log.csv does not hold the 2 rows until there"):
        keep_rows(path, COLUMNS, range(1, 3))
    assert path.read_text() == text


def test_a_log_that_is_gone_is_damaged(tmp_path):
    with pytest.raises(DamagedLogError, match=r"log.csv cannot be read \(No such file"):
        keep_rows(tmp_path / "log.csv", COLUMNS, ())
