"""Repeat the figures of Skip-Cache: `skip2` beside `lora`, one inference pass and LitGPT's LoRA.

    python benchmarks/skip_cache.py --data pydoc --precision 32-true --precision bf16-true

On the embedded model, where both methods train equally many parameters. Each thing is measured in a
process of its own, one after the other, and a ratio never mixes invocations. At each learning rate
`lora` runs, then `skip2`: its first run builds Skip-Cache, those after it find it kept. What fails
is said and leaves "-" in its rows.
"""

import argparse
import json
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from subprocess import PIPE
from typing import Any

import torch
from lightning.fabric import Fabric
from litgpt.model import GPT
from litgpt.tokenizer import Tokenizer

from skip2bench.cache.skip_cache import token_budget
from skip2bench.compare.peers.litgpt import litgpt_command, read_iterations
from skip2bench.compare.peers.peer import write_records
from skip2bench.config.run import EMBEDDED_DATA
from skip2bench.config.train import EMBEDDED_DEFAULTS, TrainConfig
from skip2bench.data.load import load_data
from skip2bench.data.samples import collate, length_buckets
from skip2bench.errors import Skip2BenchError
from skip2bench.io import units
from skip2bench.io.console import note, warn
from skip2bench.io.resources import embedded_checkpoint
from skip2bench.io.whole import write_json
from skip2bench.machine.clock import time_call
from skip2bench.machine.environment import choose_device, weights_dtype
from skip2bench.models.base import load_checkpoint
from skip2bench.train.plan import TrainingPlan, plan_training

DEFAULTS = TrainConfig()
Run = dict[str, Any]
"""The summary of a training run; empty where there is none."""


@dataclass(kw_only=True)
class Cell:
    """Raw figures of a data set at a precision: a column of a table."""

    data: str
    precision: str
    runs: list[Run] = field(default_factory=list)
    """In their order; `cache` says whether a skip2 run built its cache or found it kept."""
    inference: dict[str, Any] = field(default_factory=dict)
    litgpt: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    """Command lines."""

    def find(self, **wanted: object) -> Run:
        """The first run with these entries."""
        return next((run for run in self.runs if wanted.items() <= run.items()), {})


def run_command(cell: Cell, command: list[str], log: Path) -> str:
    """Run a process to its end with its stderr in `log`; return its stdout, "" where it failed."""
    note(f"{cell.data} {cell.precision}: {log.stem}")
    with log.open("w", encoding="utf-8") as stderr:
        done = subprocess.run(command, stdout=PIPE, stderr=stderr, text=True, check=False)
    if done.returncode == 0:
        return done.stdout
    cell.failed.append(shlex.join(command))
    last_lines = log.read_text(encoding="utf-8").strip().splitlines()[-3:]
    warn("\n".join([f"exit status {done.returncode}: {cell.failed[-1]}", *last_lines]))
    return ""


def data_flags(cell: Cell, options: argparse.Namespace) -> list[str]:
    """Data and precision, for `skip2bench train` and for this script itself."""
    mask = {None: [], True: ["--mask-prompt"], False: ["--no-mask-prompt"]}[options.mask_prompt]
    samples = f"--precision {cell.precision} --train-samples {options.train_samples}".split()
    return ["--data", cell.data, *samples, *mask]


def train(cell: Cell, options: argparse.Namespace, method: str, rate: float, folder: Path) -> None:
    """Add one fine-tuning run, validated at its start and its end alone."""
    cache = folder / "cache"
    out_dir = folder / f"{len(cell.runs) + len(cell.failed) + 1}-{method}-{rate:g}"
    more_than_steps = options.epochs * options.train_samples
    own = {"lora": "--lora-r 8", "skip2": "--blocks all --skip-r 16"}[method]
    flags = f"""--method {method} {own} --learning-rate {rate} --epochs {options.epochs}
        --global-batch-size 16 --micro-batch-size 4 --seed {DEFAULTS.seed}
        --eval-interval {more_than_steps} --json"""
    command = [sys.executable, "-m", "skip2bench", "train", *flags.split()]
    command += ["--out-dir", str(out_dir), *data_flags(cell, options)]
    command += ["--cache-dir", str(cache)] if method == "skip2" else []
    output = run_command(cell, command, folder / f"{out_dir.name}.log")
    if output:
        environment = json.loads((out_dir / "environment.json").read_text(encoding="utf-8"))
        summary = json.loads(output)
        state = {None: None, True: "kept", False: "built"}[summary.get("cache_kept")]
        cell.runs.append(summary | {"cache": state, "environment": environment})
    trainable = {run["trainable_parameters"] for run in cell.runs}
    if len(trainable) > 1:
        sys.exit(f"error: the methods train different numbers of parameters: {trainable}")


def measure_inference(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of passes of the base model over the training set, logits of every token included.

    The batches are of similar length, as where a cache is built. Within the clock are padding,
    copying to the device and the forward pass; loading and tokenizing are not.
    """
    device, precision = choose_device("auto"), options.precision[0]
    fabric = Fabric(accelerator=device.type, devices=1, precision=precision)
    base = load_checkpoint(embedded_checkpoint(), device, weights_dtype(precision))
    config = TrainConfig(
        data=options.data[0], train_samples=options.train_samples, mask_prompt=options.mask_prompt
    )
    samples = load_data(config, Tokenizer(base.folder), base.config.block_size).train
    with torch.device("meta"):
        model = GPT(base.config)
    model.load_state_dict(base.weights, assign=True)
    model.cos, model.sin = model.rope_cache(device=device)
    model.eval()
    buckets = length_buckets(range(len(samples)), samples.lengths, token_budget(device))

    def infer() -> None:
        with torch.inference_mode(), fabric.autocast():
            for ids in buckets:
                model(collate(samples, ids)[0].to(device))

    return {"seconds": [time_call(infer, device) for _ in range(3)], "tokens": sum(samples.lengths)}


def plan_litgpt(data: str, precision: str, options: argparse.Namespace) -> TrainingPlan:
    """One epoch of LoRA with the settings of `train` here."""
    own = {
        "method": "lora",
        "lora_r": 8,
        "epochs": 1,
        "data": data,
        "train_samples": options.train_samples,
        "mask_prompt": options.mask_prompt,
        "precision": precision,
        "learning_rate": options.learning_rates[0],
    }
    return plan_training(TrainConfig(**EMBEDDED_DEFAULTS | own))


def finetune_with_litgpt(cell: Cell, options: argparse.Namespace, folder: Path) -> None:
    """One epoch of LitGPT's own LoRA on the same checkpoint, records and settings."""
    plan = plan_litgpt(cell.data, cell.precision, options)
    folder = folder / "litgpt"
    folder.mkdir()
    write_records(plan, folder / "records")
    command = litgpt_command(plan, folder)
    if not run_command(cell, command, folder / "litgpt.log"):
        return
    # An iteration's own time is that of waiting for its batch, forward, backward and optimizer
    # alone: what favours LitGPT most.
    rows = read_iterations(folder)
    seconds = [float(row["iter_time"]) for row in rows]
    cell.litgpt = {"iteration_seconds": seconds, "tokens": int(float(rows[-1]["tokens"]))}


def measure(cell: Cell, options: argparse.Namespace, folder: Path) -> None:
    """Fill a cell, one process after the other."""
    folder.mkdir()
    for rate in options.learning_rates:
        train(cell, options, "lora", rate, folder)
        train(cell, options, "skip2", rate, folder)
    if len(options.learning_rates) == 1:
        train(cell, options, "skip2", rate, folder)  # the run that finds the cache
    shutil.rmtree(folder / "cache", ignore_errors=True)
    command = [sys.executable, __file__, "--inference-only", *data_flags(cell, options)]
    cell.inference = json.loads(run_command(cell, command, folder / "inference.log") or "{}")
    if not options.skip_litgpt:
        finetune_with_litgpt(cell, options, folder)
    tokens = {part["tokens"] for part in (cell.inference, cell.litgpt) if part}
    if len(tokens) > 1:
        warn(f"LitGPT trained on other tokens than skip2bench: {tokens}")


def epoch_seconds(run: Run) -> float | None:
    """Seconds of an epoch on the training clock, without building or opening a cache."""
    return (run["train_seconds"] - run["cache_build_seconds"]) / run["epochs"] if run else None


def show(figure: float | None, form: Callable[[Any], str] = units.format_seconds) -> str:
    """A figure as text, "-" where it is missing."""
    return "-" if figure is None else form(figure)


def compare(
    first: float | None, second: float | None, form: Callable[[Any], str] = units.format_seconds
) -> str:
    """The first as a multiple of the second, and both; "-" where one is missing."""
    if first is None or not second:
        return "-"
    return f"{units.format_significant(first / second)} ({form(first)} / {form(second)})"


def show_clock(run: Run) -> str:
    """A run's training clock and its parts."""
    parts = ("cache_build", "data", "forward", "backward", "optimizer")
    shown = [f"{part} {units.format_seconds(run[f'{part}_seconds'])}" for part in parts if run]
    return f"{units.format_seconds(run['train_seconds'])}: {', '.join(shown)}" if run else "-"


def show_best(cell: Cell, method: str) -> str:
    """The lowest final validation loss of a method and the learning rate that gave it."""
    runs = (run for run in cell.runs if run["method"] == method)
    losses = [(run["final_val_loss"], run["learning_rate"]) for run in runs]
    return "{:.4f} at {:g}".format(*min(losses)) if losses else "-"


def render_column(cell: Cell) -> dict[str, str]:
    """Every row of the table by its label."""
    first, second = cell.find(cache="built"), cell.find(cache="kept")
    # beside a run of skip2 stands that of lora at its learning rate, made just before it
    lora, lora_of_second = (
        cell.find(method="lora", learning_rate=run.get("learning_rate")) for run in (first, second)
    )
    clock, saved, in_bytes = "train_seconds", "saved_for_backward_bytes", (units.format_bytes,)
    inference = statistics.median(cell.inference["seconds"]) if cell.inference else None
    litgpt = sum(cell.litgpt["iteration_seconds"]) if cell.litgpt else None
    epoch = epoch_seconds(lora or cell.find(method="lora"))
    return {
        "skip2 clock / lora clock": compare(first.get(clock), lora.get(clock)),
        "cached epoch / lora epoch": compare(epoch_seconds(first), epoch),
        "skip2 clock / one inference pass": compare(first.get(clock), inference),
        "second run's clock / lora clock": compare(second.get(clock), lora_of_second.get(clock)),
        "best final validation loss, skip2": show_best(cell, "skip2"),
        "best final validation loss, lora": show_best(cell, "lora"),
        "saved for backward, skip2 / lora": compare(first.get(saved), lora.get(saved), *in_bytes),
        "lora, an epoch": show(epoch),
        "litgpt finetune_lora, an epoch": show(litgpt),
        "lora epoch / litgpt finetune_lora epoch": compare(epoch, litgpt),
        "skip2 clock": show_clock(first),
        "second run's clock": show_clock(second),
        "cached epoch": show(epoch_seconds(first)),
        "cache": show(first.get("cache_bytes"), *in_bytes),
        "loss from the cache": first.get("algebra", "-"),
        "tokens in the training set": show(cell.inference.get("tokens"), "{:,}".format),
    }


def render_table(cells: list[Cell], options: argparse.Namespace) -> str:
    """A data set as a Markdown table, a column a precision."""
    columns = [render_column(cell) for cell in cells]
    rows = [["", *(cell.precision for cell in cells)], ["---"] * (len(cells) + 1)]
    rows += [[label, *(column[label] for column in columns)] for label in columns[0]]
    title = f"{Path(cells[0].data).name}, {options.train_samples} samples, {options.epochs} epochs"
    note_below = "skip2's clock holds building the cache; its second run finds it in --cache-dir."
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"## {title}\n\n{table}\n\n{note_below}\n"


def parse_options() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", action="append", help="pydoc or an Alpaca file; repeat it for several")
    add("--precision", action="append", help="such as 32-true; repeat it for several")
    add("--epochs", type=int, default=5)
    add("--train-samples", type=int, default=1000)
    add(
        "--learning-rates",
        default="3e-3,1e-2",
        type=lambda text: [float(rate) for rate in text.split(",")],
        help="comma-separated",
    )
    add("--mask-prompt", action=argparse.BooleanOptionalAction)
    add("--skip-litgpt", action="store_true", help="leave LitGPT's finetune_lora out")
    add("--work-dir", type=Path, default="out/skip_cache", help="runs and logs go below it")
    add("--json", type=Path, help="file for all raw figures")
    add("--inference-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    options.data = options.data or [EMBEDDED_DATA]
    options.precision = options.precision or ["32-true"]
    return options


def main() -> int:
    """Measure every cell and print the tables; 1 where a command failed."""
    options = parse_options()
    if options.inference_only:
        print(json.dumps(measure_inference(options)))
        return 0
    work = options.work_dir.resolve() / datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    folders = {data: work / f"{i}" for i, data in enumerate(options.data, start=1)}
    cells: list[Cell] = []
    try:
        for data, folder in folders.items():
            plan_litgpt(data, options.precision[0], options)  # raises where it cannot be read
            folder.mkdir(parents=True)
    except Skip2BenchError as error:
        sys.exit(f"error: {error}")
    for data, folder in folders.items():
        for precision in options.precision:
            cells.append(Cell(data=data, precision=precision))
            measure(cells[-1], options, folder / precision)
            if options.json:
                write_json(options.json, {"cells": [asdict(cell) for cell in cells]})
        print(render_table([cell for cell in cells if cell.data == data], options), flush=True)
    return 1 if any(cell.failed for cell in cells) else 0


if __name__ == "__main__":
    sys.exit(main())
