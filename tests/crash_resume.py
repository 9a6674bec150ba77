"""Kills training runs at random moments, resumes them, and compares them with undisturbed ones.

    python tests/crash_resume.py --kills 20

An undisturbed run counts its moments: every batch of cache building, loss, backward pass, update,
row of a log, and part of a file that is written (before it, half-way, before and after the rename).
Each trial ends at one of them, drawn at random, as `kill -9` ends it; then it is resumed. Equal are
the adapter's bytes, every loss and step of metrics.csv and steps.csv, and the files that are left.
Exit status 1 where one is not.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.fabric import Fabric
from tiny import make_checkpoint, make_records

import skip2bench.cache.loss
import skip2bench.cache.portions
import skip2bench.io.whole
import skip2bench.train.caches
from skip2bench.config.train import TrainConfig
from skip2bench.train.logs import CsvLog
from skip2bench.train.run import run_training

STEPS = 30
TIMED = ["train_seconds", "peak_memory_bytes"]
"""Columns that no two runs share."""


class Moments:
    """Counts the moments of a run and kills its process at one of them."""

    def __init__(self, last: int | None) -> None:
        """`last` is the moment to be killed at; None for a run to its end."""
        self.count = 0
        self.kinds: Counter[str] = Counter()
        self._last = last

    def tick(self, kind: str) -> None:
        """Pass a moment."""
        self.count += 1
        self.kinds[kind] += 1
        if self.count == self._last:
            print(kind, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


def watch(moments: Moments) -> None:
    """Put the moments into this process's run."""

    def before(owner: Any, name: str, kind: str) -> None:
        call: Callable[..., Any] = getattr(owner, name)

        def ticking(*args: Any, **kwargs: Any) -> Any:
            moments.tick(kind)
            return call(*args, **kwargs)

        setattr(owner, name, ticking)

    for owner, name, kind in (
        (skip2bench.train.caches.Bar, "advance", "progress"),
        (skip2bench.train.caches.CacheBuilder, "provide", "cache building"),
        (Fabric, "backward", "step"),
        (torch.optim.AdamW, "step", "step"),
        (skip2bench.cache.portions, "token_loss", "step"),
        (skip2bench.cache.loss.ServedLoss, "__call__", "step"),
        (skip2bench.io.whole, "sync", "file, before it is safe"),
        (os, "replace", "file, before the rename"),
        (os, "rename", "folder, before the rename"),
        (CsvLog, "sync", "log"),
    ):
        before(owner, name, kind)
    write = CsvLog._write

    def write_in_two(log: CsvLog, row: dict[str, Any]) -> None:
        size = os.fstat(log._file.fileno()).st_size
        write(log, row)
        moments.tick("log, whole row")
        if moments.count + 1 == moments._last:  # leave half of the row
            now = os.fstat(log._file.fileno()).st_size
            os.ftruncate(log._file.fileno(), (size + now) // 2)
        moments.tick("log, half a row")

    CsvLog._write = write_in_two  # type: ignore[method-assign]
    write_all = Path.write_bytes

    def write_halves(path: Path, content: bytes) -> int:
        middle = len(content) // 2
        write_all(path, content[:middle])
        moments.tick("file, half of it")
        return write_all(path, content)

    Path.write_bytes = write_halves  # type: ignore[method-assign, assignment]


def in_process(work: Callable[[], None], log: Path) -> int:
    """Do the work in a process that shares this one's imports; its wait status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    status = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work()
        status = 0
    except BaseException:  # noqa: BLE001 - the process ends here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def train(config: dict[str, Any], folder: Path, last: int | None, *, resume: bool) -> Moments:
    """A run, killed at moment `last`."""
    torch.set_num_threads(2)
    moments = Moments(last)
    watch(moments)
    run_training(TrainConfig(**config, out_dir=folder, resume=resume), ["train"])
    return moments


def read_result(folder: Path) -> dict[str, Any]:
    """What must be equal."""
    summary = json.loads((folder / "summary.json").read_text())
    logs = folder / summary["log_folder"]
    names = ("metrics.csv", "steps.csv")
    tables = {name: pd.read_csv(logs / name).drop(columns=TIMED, errors="ignore") for name in names}
    files = [path for path in sorted((folder / "final").iterdir()) if path.is_file()]
    return {
        "status": summary["status"],
        **{name: table.to_dict("list") for name, table in tables.items()},
        "steps": tables["steps.csv"]["step"].tolist(),
        "final_val_loss": summary["final_val_loss"],
        "tokens": summary["tokens"],
        "adapter": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
        "left over": sorted(
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.suffix == ".part" or path.name in ("state", ".cache", ".lock.pid")
        ),
    }


def compare_method(
    method: dict[str, Any], kills: int, folder: Path, draw: random.Random
) -> tuple[int, Counter[str]]:
    """Trials of one method; how many were equal, and what they were killed in."""
    name = "-".join(str(value) for value in method.values())
    config = {
        **{"checkpoint_dir": folder / "tiny", "data": str(folder / "tiny.json"), **method},
        **{"blocks": "0,1,3", "lora_dropout": 0.1, "learning_rate": 1e-2, "lr_warmup_steps": 2},
        **{"global_batch_size": 8, "micro_batch_size": 3, "eval_interval": 4, "save_interval": 3},
        **{"max_steps": STEPS, "epochs": 10, "device": "cpu"},
    }
    log, counted = folder / f"{name}.log", folder / f"{name}.count"

    def undisturbed() -> None:
        counted.write_text(str(train(config, folder / name, None, resume=False).count))

    if in_process(undisturbed, log):
        raise SystemExit(f"the undisturbed run failed:\n{log.read_text()}")
    expected = read_result(folder / name)
    assert expected["steps"] == list(range(1, STEPS + 1))
    assert expected["left over"] == []
    total, equal = int(counted.read_text()), 0
    killed_in: Counter[str] = Counter()
    for number in range(kills):
        last = draw.randint(1, total)
        run = folder / f"{name}-{number}"
        log = run.with_suffix(".log")
        status = in_process(lambda: train(config, run, last, resume=False) and None, log)  # noqa: B023
        assert os.WIFSIGNALED(status), f"moment {last} of {total} did not come:\n{log.read_text()}"
        kind = log.read_text().splitlines()[-1]
        killed_in[kind] += 1
        status = in_process(lambda: train(config, run, None, resume=True) and None, log)  # noqa: B023
        found = read_result(run) if status == 0 else {"status": log.read_text()}
        differing = [key for key in expected if found.get(key) != expected[key]]
        equal += not differing
        verdict = "equal" if not differing else f"DIFFERS in {differing}, see {log}"
        print(
            f"{name}: killed at moment {last} of {total} ({kind}), resumed: {verdict}", flush=True
        )
        if not differing:
            shutil.rmtree(run)
    return equal, killed_in


def main() -> None:
    """Run the trials of each method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="for each method")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="crash-resume-"))
    # in processes of their own: one that has used torch's threads cannot be forked
    in_process(lambda: make_checkpoint(folder / "tiny"), folder / "make.log")
    make_records(folder / "tiny.json")
    methods = [{"method": "lora"}, {"method": "skip2"}, {"method": "skip2", "cache_tier": "disk"}]
    failed = False
    for method in methods:
        equal, killed_in = compare_method(method, arguments.kills, folder, draw)
        print(f"{' '.join(method.values())}: {equal} of {arguments.kills} equal; {dict(killed_in)}")
        failed |= equal < arguments.kills
    if failed:
        sys.exit(1)
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
