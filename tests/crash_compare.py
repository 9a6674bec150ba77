"""Kills a comparison at random moments, finishes it, and compares it with an undisturbed one.

    python tests/crash_compare.py --kills 5

Every second kill takes the running cell with it at once; else the cell notices that its comparison
is gone. Equal is every figure of every cell, timings and memory aside. Exit status 1 where one is
not, or where something is left over.
"""

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from tiny import make_checkpoint, make_records

MATRIX = {
    **{"methods": "lora,skip2", "blocks": ["0,1,3"], "seeds": 1, "bench": False, "device": "cpu"},
    **{"global_batch_size": 8, "micro_batch_size": 4, "learning_rates": [1e-2], "epochs": 1000},
    **{"max_steps": 400, "eval_interval": 40, "save_interval": 10, "lr_warmup_steps": 2},
}
UNEQUAL = ("_seconds", "_memory_bytes", "_per_second")
"""Endings of the figures that no two runs share."""


def read_cells(folder: Path) -> dict[str, Any]:
    """Status and exact figures of every cell."""
    content = json.loads((folder / "comparison_results.json").read_text())
    return {
        name: {
            "status": cell["status"],
            **{k: v for k, v in cell["figures"].items() if not k.endswith(UNEQUAL)},
        }
        for name, cell in content["cells"].items()
    }


def wait_for_cell(folder: Path, process: "subprocess.Popen[bytes]") -> bool:
    """Wait until a cell has been started; False where the comparison ended before."""
    started = time.time()
    while process.poll() is None:
        specs = (folder / "cells").glob("*.spec.json")
        if any(path.stat().st_mtime >= started - 1 for path in specs):
            return True
        time.sleep(0.05)
    return False


def kill(process: "subprocess.Popen[bytes]", *, with_cell: bool) -> None:
    """End a comparison as `kill -9` does, and its cell too where asked for."""
    cells = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for cell in cells if with_cell else ():
        cell.kill()


def main() -> None:
    """Run the undisturbed comparison, the killed one, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="crash-compare-"))
    checkpoint = make_checkpoint(folder / "tiny")
    data = make_records(folder / "tiny.json")
    matrix = folder / "matrix.yaml"
    matrix.write_text(
        yaml.safe_dump(MATRIX | {"checkpoint_dir": str(checkpoint), "data": str(data)})
    )
    command = [sys.executable, "-m", "skip2bench", "compare", "--config", str(matrix), "--out-dir"]
    log = (folder / "log").open("wb")
    started = time.monotonic()
    subprocess.run([*command, str(folder / "whole")], stdout=log, stderr=log, check=True)
    seconds_per_cell = (time.monotonic() - started) / len(read_cells(folder / "whole"))
    for number in range(arguments.kills):
        process = subprocess.Popen([*command, str(folder / "killed")], stdout=log, stderr=log)
        if not wait_for_cell(folder / "killed", process):
            raise SystemExit(f"it ended before kill {number + 1}: see {folder / 'log'}")
        delay = draw.uniform(0.0, seconds_per_cell)
        time.sleep(delay)
        if process.poll() is not None:
            raise SystemExit(f"it ended before kill {number + 1}: see {folder / 'log'}")
        kill(process, with_cell=bool(number % 2))
        print(f"killed {delay:.1f} s after a cell had started", flush=True)
    done = subprocess.run([*command, str(folder / "killed")], stdout=log, stderr=log, check=False)
    expected, found = read_cells(folder / "whole"), read_cells(folder / "killed")
    equal = [name for name in expected if expected[name] == found.get(name)]
    left = [p for p in (folder / "killed").rglob("*") if p.suffix == ".part" or p.name == "state"]
    losses = [cell["final_val_loss"] for cell in found.values()]
    print(f"{len(equal)} of {len(expected)} cells equal; left over: {left}")
    is_good = done.returncode == 0 and len(equal) == len(expected) and not left
    if not is_good or not all(map(math.isfinite, losses)):
        raise SystemExit(f"not as the undisturbed comparison: see {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
