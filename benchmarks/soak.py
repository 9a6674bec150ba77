"""Long runs watched from outside: resident memory, open files, files left behind.

    python benchmarks/soak.py

Trains 2,000 steps of LoRA and of Skip2-LoRA on the embedded model and data, and runs a comparison
of 40 small cells. Ten times a second the process that is watched (the training, or the comparison's
parent) is asked for its resident memory and its open files. Flat means: the median of the last
quarter is at most 2 % above that of the second quarter, the first being warm-up. Exit status 1
where something grows or is left over. Linux.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

FLAT_RATIO = 1.02
STEPS = 2000
TRAIN = [
    *("--max-steps", str(STEPS), "--epochs", str(STEPS), "--train-samples", "200"),
    *("--max-seq-length", "128", "--global-batch-size", "4", "--eval-interval", "200"),
    *("--save-interval", "100", "--domain-text", "none"),
]
COMPARE = [
    *("--methods", "lora,last,skip,lora-last", "--blocks", "0,1", "--seeds", "10", "--no-bench"),
    *("--max-steps", "5", "--train-samples", "20", "--max-seq-length", "128"),
    *("--lr-warmup-steps", "1", "--eval-interval", "5", "--domain-text", "none"),
]


def watch(arguments: list[str], folder: Path) -> dict[str, Any]:
    """Run a command to its end; what was seen of it meanwhile, from its warm-up on."""
    scratch = folder / "tmp"
    scratch.mkdir(parents=True)
    command = [sys.executable, "-m", "skip2bench", *arguments, "--out-dir", str(folder / "run")]
    memory: list[int] = []
    files: list[int] = []
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {"TMPDIR": str(scratch)}
        )
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(0.1)
            if has_begun(folder / "run"):
                try:
                    memory.append(watched.memory_info().rss)
                    files.append(watched.num_fds())
                except psutil.Error:  # it has just ended
                    break
        process.wait()
    quarter = len(memory) // 4
    second = statistics.median(memory[quarter : 2 * quarter])
    last = statistics.median(memory[-quarter:])
    return {
        "exit_status": process.returncode,
        "observations": len(memory),
        "memory_second_quarter_bytes": second,
        "memory_last_quarter_bytes": last,
        "memory_ratio": last / second,
        "files_second_quarter": statistics.median(files[quarter : 2 * quarter]),
        "files_last_quarter": statistics.median(files[-quarter:]),
        "left_over": find_left_over(folder),
    }


def has_begun(run: Path) -> bool:
    """True from the first step, or the first cell that has ended, on."""
    steps = run / "logs/version_0/steps.csv"
    has_steps = steps.is_file() and steps.read_bytes().count(b"\n") > 1
    return has_steps or (run / "comparison_results.json").is_file()


def find_left_over(folder: Path) -> list[str]:
    """Temporary files, and what only an unfinished run has."""
    run = folder / "run"
    names = ("state", ".cache", "cache", ".lock.pid")
    found = [p for p in run.rglob("*") if p.suffix in (".part", ".tmp") or p.name in names]
    # files: torch makes an empty folder there when it is imported
    found += [path for path in (folder / "tmp").rglob("*") if path.is_file()]
    return [str(path.relative_to(folder)) for path in found]


def main() -> None:
    """Watch the three runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, help="also write the figures here, as JSON")
    output = parser.parse_args().output
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    runs = {
        "lora": ["train", "--method", "lora", *TRAIN],
        "skip2": ["train", "--method", "skip2", *TRAIN],
        "compare": ["compare", *COMPARE],
    }
    results = {name: watch(arguments, root / name) for name, arguments in runs.items()}
    text = json.dumps(results, indent=2)
    print(text)
    if output:
        output.write_text(text + "\n")
    is_good = all(
        result["exit_status"] == 0
        and result["memory_ratio"] <= FLAT_RATIO
        and result["files_last_quarter"] <= result["files_second_quarter"]
        and not result["left_over"]
        for result in results.values()
    )
    sys.exit(0 if is_good else f"something grows or is left over: see {root}")


if __name__ == "__main__":
    main()
