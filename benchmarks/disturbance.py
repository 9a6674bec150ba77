"""What a busy process beside them costs LoRA's steps and steps from Skip-Cache, by setting.

    python benchmarks/disturbance.py [--rounds 5]

Each measurement is a process of its own: steps of the embedded model on random tokens, alone or
beside one process of this script's that is busy all the time. The settings alternate within every
round, so that a ratio compares neighbours; medians over the rounds are printed. Threads that wait
by spinning hold a core that another process could use; those that sleep are woken late.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import nullcontext

import psutil
import torch

SETTINGS: dict[str, dict[str, str]] = {
    "as it is": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "threads that give way": {"SKIP2BENCH_GIVE_WAY": "1"},
}
STEPS = {"lora": 20, "cached": 250}
"""Seconds of each: threads are looked after once a second."""
METHODS = {"lora": "lora", "cached": "skip2"}


def measure(kind: str) -> float:
    """Seconds of some steps, in this process."""
    from skip2bench.bench.workload import build_workload
    from skip2bench.config.commands import BenchConfig
    from skip2bench.machine.processor_use import ProcessorMeter
    from skip2bench.machine.threads import give_way
    from skip2bench.models.base import load_base
    from skip2bench.models.methods import resolve_method

    device, config = torch.device("cpu"), BenchConfig(device="cpu")
    base = load_base(config.model, device, torch.float32, 0)
    settings = resolve_method(METHODS[kind], "0,1,2,3", config, base.config)
    work = build_workload(settings, base, config, device, "32-true")
    gives_way = "SKIP2BENCH_GIVE_WAY" in os.environ
    meter = ProcessorMeter(on_look=give_way if gives_way else lambda _others: None)
    for _ in range(2):
        work.take_step(nullcontext, cached=work.is_cached)
    meter.enter("steps")
    started = time.perf_counter()
    for _ in range(STEPS[kind]):
        work.take_step(nullcontext, cached=work.is_cached)
        meter.enter("steps")
    return time.perf_counter() - started


def busy() -> None:
    """Use one core until somebody ends this process."""
    while True:
        pass


def run(kind: str, setting: dict[str, str], *, beside: bool) -> float:
    """Seconds of one measurement in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    this = [sys.executable, __file__]
    other = subprocess.Popen([*this, "--busy"]) if beside else None
    try:
        done = subprocess.run(
            [*this, "--measure", kind],
            env=environment | setting,
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        if other is not None:
            other.kill()
            other.wait()
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    """Measure, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", choices=METHODS)
    parser.add_argument("--busy", action="store_true")
    arguments = parser.parse_args()
    if arguments.busy:
        busy()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    print(f"{psutil.cpu_count()} cores, torch {torch.__version__}, {arguments.rounds} rounds")
    found: dict[tuple[str, str, bool], list[float]] = defaultdict(list)
    for number in range(arguments.rounds):
        for kind in METHODS:
            for beside in (False, True):
                for name, setting in SETTINGS.items():
                    found[kind, name, beside].append(run(kind, setting, beside=beside))
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
    print("| steps | setting | alone, s | by as it is | beside a busy process, s | by alone |")
    print("|---|---|---|---|---|---|")
    for kind in METHODS:
        usual = found[kind, "as it is", False]
        for name in SETTINGS:
            alone, beside = found[kind, name, False], found[kind, name, True]
            cost = statistics.median(a / b for a, b in zip(alone, usual, strict=True))
            slowed = statistics.median(b / a for a, b in zip(usual, beside, strict=True))
            print(
                f"| {kind} | {name} | {statistics.median(alone):.2f} | {cost:.2f} | "
                f"{statistics.median(beside):.2f} | {slowed:.2f} |"
            )


if __name__ == "__main__":
    main()
