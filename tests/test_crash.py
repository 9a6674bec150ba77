"""A few of the trials of the two crash scripts; `docs/reliability.md` has the figures of many."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "kills", "lines"),
    [
        ("crash_resume.py", 3, ["lora: 3 of 3 equal", "skip2: 3 of 3 equal", "skip2 disk: 3 of 3"]),
        ("crash_compare.py", 1, ["4 of 4 cells equal; left over: []"]),
    ],
)
def test_what_was_killed_goes_on_as_if_it_had_not_been(script, kills, lines):
    if sys.platform == "win32":
        pytest.skip("needs fork and SIGKILL")
    path = Path(__file__).with_name(script)
    done = subprocess.run(
        [sys.executable, str(path), "--kills", str(kills)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in lines if line not in done.stdout] == []
