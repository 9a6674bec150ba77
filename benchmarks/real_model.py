"""How near training on a real model comes to what the arithmetic allows, and `skip2` to `lora`.

    python benchmarks/real_model.py --checkpoint-dir DIR --data FILE.json --train-samples 190

Everything runs in a process of its own, one after the other; nothing else should run meanwhile. A
floor is the products alone, at the rate that this machine's matrix products of these shapes reach,
measured in the same call: what is above it is everything else that a step does.
"""

import argparse
import csv
import itertools
import json
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from skip2bench.compare.peers.litgpt import litgpt_command, read_iterations
from skip2bench.compare.peers.peer import write_records
from skip2bench.config.train import TrainConfig
from skip2bench.io.console import note
from skip2bench.io.whole import write_json
from skip2bench.machine.environment import weights_dtype
from skip2bench.models.base import load_config
from skip2bench.train.plan import plan_training

_ROWS = 2048
"""Of the products that are timed: a batch of a forward pass."""


def measure_rate(n_in: int, n_out: int, dtype: torch.dtype, repeats: int = 30) -> float:
    """FLOPs a second of a linear layer's product on `_ROWS` rows, the best of several: a floor."""
    rows, weight = torch.randn(_ROWS, n_in, dtype=dtype), torch.randn(n_out, n_in, dtype=dtype)
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        torch.mm(rows, weight.t())
        seconds.append(time.perf_counter() - started)
    return 2 * _ROWS * n_in * n_out / min(seconds[1:])


def run_train(options: argparse.Namespace, precision: str, folder: Path, *flags: str) -> Any:
    """A run's summary, with the rows of its steps."""
    note(f"{precision}: {folder.name}")
    common = f"""--precision {precision} --epochs {options.epochs} --mask-prompt --json
        --train-samples {options.train_samples} --val-samples {options.val_samples}
        --eval-interval 100000 --max-seq-length {options.max_seq_length}"""
    command = [sys.executable, "-m", "skip2bench", "train", *common.split(), *flags]
    command += ["--checkpoint-dir", str(options.checkpoint_dir), "--data", options.data]
    command += ["--domain-text", "none", "--out-dir", str(folder)]
    with folder.with_suffix(".log").open("w", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, check=True)
    summary = json.loads(done.stdout)
    steps = (folder / summary["log_folder"] / "steps.csv").read_text(encoding="utf-8")
    return summary | {"rows": list(csv.DictReader(steps.splitlines()))}


def median_step(run: Any) -> tuple[float, float, float]:
    """Seconds, tokens and supervised positions of a step; the first one is left out."""
    steps = [
        (
            float(row["train_seconds"]) - float(before["train_seconds"]),
            float(row["tokens"]) - float(before["tokens"]),
            float(row["supervised_tokens"]),
        )
        for before, row in itertools.pairwise(run["rows"])
    ]
    seconds = statistics.median(span / supervised for span, _, supervised in steps)
    n = statistics.mean(supervised for _, _, supervised in steps)
    return seconds * n, statistics.mean(tokens for _, tokens, _ in steps), n


def time_litgpt(options: argparse.Namespace, precision: str, folder: Path) -> float:
    """Seconds a token of LitGPT's own finetune_lora, over an epoch."""
    config = TrainConfig(
        method="lora",
        lora_r=8,
        checkpoint_dir=options.checkpoint_dir,
        data=options.data,
        train_samples=options.train_samples,
        val_samples=options.val_samples,
        max_seq_length=options.max_seq_length,
        mask_prompt=True,
        precision=precision,
        epochs=1,
        domain_text="none",
        learning_rate=3e-3,
    )
    plan = plan_training(config)
    folder.mkdir()
    write_records(plan, folder / "records")
    note(f"{precision}: litgpt finetune_lora")
    with folder.with_suffix(".log").open("w", encoding="utf-8") as log:
        subprocess.run(litgpt_command(plan, folder), stdout=log, stderr=log, check=True)
    rows = read_iterations(folder)
    return sum(float(row["iter_time"]) for row in rows) / float(rows[-1]["tokens"])


def measure(options: argparse.Namespace, precision: str, folder: Path) -> dict[str, Any]:
    """The figures of a precision."""
    folder.mkdir(parents=True)
    config = load_config(options.checkpoint_dir)
    d, vocabulary, dtype = config.n_embd, config.padded_vocab_size, weights_dtype(precision)
    mlp_rate = measure_rate(d, config.intermediate_size, dtype)
    head_rate = measure_rate(d, vocabulary, dtype)
    qkv = (config.n_head + 2 * config.n_query_groups) * config.head_size
    of_block = d * qkv + config.n_head * config.head_size * d + 3 * d * config.intermediate_size
    blocks = ",".join(map(str, range(config.n_layer - options.n_blocks, config.n_layer)))
    skip2 = run_train(options, precision, folder / "skip2", "--method", "skip2", "--blocks", blocks)
    rates = ("--learning-rate", "3e-3", "--lora-r", "8", "--micro-batch-size", "4")
    lora = run_train(options, precision, folder / "lora", "--method", "lora", *rates)
    cached, _, served = median_step(skip2)
    step, tokens, supervised = median_step(lora)
    blocks_flops = 2 * config.n_layer * of_block
    head_floor = 2 * 2 * d * vocabulary / head_rate  # forward, and the gradient of its input
    shared = skip2["shared_prefix_tokens"] * (skip2["train_samples"] - 1)
    passed = float(lora["rows"][-1]["tokens"]) / lora["epochs"] - shared
    figures: dict[str, Any] = {
        "GFLOP/s, MLP and head": [mlp_rate / 1e9, head_rate / 1e9],
        "cached step, seconds": cached,
        "cached step / floor": cached / (served * head_floor),
        "building, seconds": skip2["cache_build_seconds"],
        "building / floor": skip2["cache_build_seconds"] / (passed * blocks_flops / mlp_rate),
        "lora step, seconds": step,
        # backward: the gradient of every layer's input
        "lora step / floor": step
        / (2 * tokens * blocks_flops / mlp_rate + supervised * head_floor),
        "skip2 clock / lora clock": skip2["train_seconds"] / lora["train_seconds"],
        "peak memory, skip2 / lora": skip2["peak_memory_bytes"] / lora["peak_memory_bytes"],
        "algebra": skip2["algebra"],
        "validation loss: start, skip2, lora": [
            skip2["initial_val_loss"],
            skip2["final_val_loss"],
            lora["final_val_loss"],
        ],
    }
    if options.litgpt:
        own = lora["train_seconds"] / float(lora["rows"][-1]["tokens"])
        figures["lora / litgpt finetune_lora"] = own / time_litgpt(
            options, precision, folder / "litgpt"
        )
    return figures


def main() -> None:
    """Measure every precision and print its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint-dir", type=Path, required=True)
    add("--data", required=True, help="an Alpaca file, or pydoc")
    add("--precision", action="append", help="repeat it for several (default: 32-true)")
    add("--train-samples", type=int, default=190)
    add("--val-samples", type=int, default=60)
    add("--max-seq-length", type=int, default=1024)
    add("--epochs", type=int, default=5)
    add("--n-blocks", type=int, default=8, help="the last ones")
    add("--litgpt", action="store_true", help="time litgpt finetune_lora as well")
    add("--work-dir", type=Path, default=Path("out/real_model"), help="runs go below it")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    work = options.work_dir.resolve() / datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    for precision in options.precision or ["32-true"]:
        figures = measure(options, precision, work / precision)
        write_json(work / f"{precision}.json", figures)
        for name, value in figures.items():
            shown = value if isinstance(value, list) else [value]
            print(precision, name, *(f"{v:.3g}" if isinstance(v, float) else v for v in shown))


if __name__ == "__main__":
    main()
