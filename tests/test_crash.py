"""A few of the trials of `crash_resume.py`; `docs/reliability.md` has the figures of many.

Those of `crash_compare.py` take minutes; `test_compare` kills and finishes a small comparison.
"""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been():
    path = Path(__file__).with_name("crash_resume.py")
    done = subprocess.run(
        [sys.executable, str(path), "--kills", "3"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("lora: 3 of 3 equal", "skip2: 3 of 3 equal", "skip2 disk: 3 of 3"):
        assert line in done.stdout
