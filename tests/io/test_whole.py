import os

import pytest
from full_disk import full_at

from skip2bench.io.whole import making_folder, replacing, write_bytes


def test_a_file_is_replaced_whole(tmp_path):
    write_bytes(tmp_path / "a", b"old")
    write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path):
    write_bytes(tmp_path / "a", b"old")
    with full_at(100), pytest.raises(OSError, match="too large"):
        write_bytes(tmp_path / "a", bytes(1000))
    assert (tmp_path / "a").read_bytes() == b"old"

    def write_half():
        with replacing(tmp_path / "a") as aside:
            aside.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_is_gone_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_bytes(tmp_path / "gone" / "a", b"x")


def test_a_folder_that_a_killed_process_was_making_is_removed(tmp_path):
    gone, here = tmp_path / ".out.999999999.abc.part", tmp_path / f".out.{os.getpid()}.abc.part"
    gone.mkdir()
    here.mkdir()
    with making_folder(tmp_path / "out", 1, what="exporting", flag="--out-dir") as aside:
        (aside / "a").write_text("x")
    assert not gone.exists()
    assert here.exists()
    assert (tmp_path / "out" / "a").read_text() == "x"
