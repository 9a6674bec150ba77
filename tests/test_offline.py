"""Nothing asks the network for anything: every command runs with all sockets refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import skip2bench
from skip2bench.cli import app as cli

HOOK = """
import os, socket, sys

def _refuse(event, arguments):
    if not event.startswith("socket.") or event in ("socket.__new__", "socket.gethostname"):
        return
    subject = arguments[0] if arguments else None
    if getattr(subject, "family", None) == socket.AF_UNIX:
        return
    with open(os.environ["NETWORK_ATTEMPTS"], "a") as file:
        file.write(f"{event} {arguments!r} of {sys.argv!r}\\n")
    raise OSError("the network is refused by this test")

sys.addaudithook(_refuse)
"""


@pytest.fixture
def run(tmp_path):
    """Run a command line in a process whose children, too, have no network."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    attempts = tmp_path / "attempts.txt"
    package = Path(skip2bench.__file__).parent.parent
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # it must hold without these
    environment = {key: value for key, value in os.environ.items() if key not in names} | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "hook"), str(package)]),
        "NETWORK_ATTEMPTS": str(attempts),
    }

    def call(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call.attempts = attempts
    return call


def test_the_hook_sees_what_it_should(run):
    code = (
        "import socket\n"
        "for ask in (lambda: socket.create_connection(('127.0.0.1', 9)),\n"
        "            lambda: socket.getaddrinfo('example.org', 80)):\n"
        "    try: ask()\n"
        "    except OSError as error: assert 'refused by this test' in str(error)\n"
        "    else: raise SystemExit('it went through')\n"
    )
    run("-c", code)
    assert len(run.attempts.read_text().splitlines()) == 2


DRIVER = """
import json, sys
from skip2bench.cli import app as cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["skip2bench", *arguments]
    try:
        cli.main()
    except SystemExit as exit_:
        assert not exit_.code, arguments
    print("\\n=== next ===", flush=True)
"""


def test_every_command_runs_without_a_network(run, tiny_checkpoint, tiny_data):
    """In one process, to import torch once; the cell of `compare` is a process of its own."""
    common = ["--checkpoint-dir", str(tiny_checkpoint), "--data", str(tiny_data)]
    common += ["--max-steps", "2", "--device", "cpu", "--lr-warmup-steps", "1"]
    bench = ["--model", str(tiny_checkpoint), "--blocks", "0", "--rounds", "1", "--iterations", "1"]
    bench += ["--methods", "skip2", "--seq-length", "8", "--batch-size", "1", "--device", "cpu"]
    compared = ["--out-dir", "results/compared", *common]
    commands = [
        ["bench", *bench],
        ["train", "--method", "lora", "--out-dir", "results/lora", *common],
        ["train", "--blocks", "0,1", "--cache-dir", "kept", "--out-dir", "results/skip2", *common],
        ["compare", "--methods", "lora", "--seeds", "1", "--no-bench", "--json", *compared],
        ["merge", "results/lora/final"],
        ["cache", "list", "--cache-dir", "kept"],
        ["report", "--lang", "en"],
    ]
    commands += [
        ["doctor", "--data", str(tiny_data)],
        ["tune", "--finalists", "0", "--ranks", "2", "--out-dir", "results/tune", *common[:4]],
        ["generate", "results/lora", "--prompt", "Hello", "--max-new-tokens", "2"],
        ["export", "results/skip2", "--to", "litgpt", "--out-dir", "exported"],
        ["verify", "results/compared"],
    ]
    known = {it.callback.__name__ for it in cli.app.registered_commands} | {"cache"}
    assert {command[0] for command in commands} == known - {"fetch"}  # which is there to use it
    printed = run("-c", DRIVER, json.dumps(commands)).split("=== next ===\n")
    cells = json.loads(printed[3])["cells"]
    assert [cell["status"] for cell in cells.values()] == ["ok"]
    assert "2 caches" in printed[5]
    assert "Skip2-LoRA" in printed[6]
    assert not run.attempts.exists(), run.attempts.read_text()
