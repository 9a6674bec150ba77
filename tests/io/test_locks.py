import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from skip2bench.errors import Skip2BenchError
from skip2bench.io.locks import locked_folder

HOLD = (
    "import sys, time; from pathlib import Path; from skip2bench.io.locks import locked_folder\n"
    "with locked_folder(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
)


def test_the_holder_is_named_and_its_lock_ends_with_it(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Skip2BenchError) as caught, locked_folder(tmp_path):
            pass
        assert str(caught.value).startswith(f"process {holder.pid} is working in {str(tmp_path)!r}")
        holder.send_signal(signal.SIGKILL)
        with locked_folder(tmp_path, timeout_seconds=30):
            assert (tmp_path / ".lock.pid").read_text() == f"{os.getpid()} {socket.gethostname()}\n"
    assert not (tmp_path / ".lock.pid").exists()


ANOTHER_HOST = ["unshare", "--uts", "--net", "--pid", "--fork", "--kill-child"]


def test_a_lock_holds_between_hosts_of_one_file_system(tmp_path):
    """Two as namespaces make them: a name, a network and process numbers of its own."""
    if (
        not shutil.which("unshare")
        or subprocess.run([*ANOTHER_HOST, "true"], check=False).returncode
    ):
        pytest.skip("namespaces cannot be made here")
    begin = f'hostname node7; exec "{sys.executable}" -c "$1" "$2"'
    command = [*ANOTHER_HOST, "sh", "-c", begin, "sh", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Skip2BenchError) as caught, locked_folder(tmp_path):
            pass
        assert str(caught.value).startswith(f"process 1 on node7 is working in {str(tmp_path)!r}")
        holder.kill()  # as a node that is lost
        with locked_folder(tmp_path, timeout_seconds=30):
            pass


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / ".lock").mkdir()  # no file can be made in its place
    with (
        pytest.raises(Skip2BenchError, match=r"cannot write to '.*'.*choose another --out-dir"),
        locked_folder(tmp_path),
    ):
        pass
