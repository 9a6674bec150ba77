"""What `gpu_reference.sh` needs beside the command line: ranks, an inference pass, the summary.

python scripts/gpu_reference.py ranks MODEL
python scripts/gpu_reference.py inference OUT_FILE [flags of train]
python scripts/gpu_reference.py summary OUT_DIR
"""

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from skip2bench.cache.skip_cache import supervised_rows
from skip2bench.compare.matrix import list_configurations
from skip2bench.config.compare import load_compare_config
from skip2bench.config.load import load_train_config
from skip2bench.data.samples import collate, micro_batches
from skip2bench.errors import Skip2BenchError
from skip2bench.io.units import format_amount
from skip2bench.io.whole import write_csv, write_json
from skip2bench.machine.clock import Clock
from skip2bench.models.base import config_by_name
from skip2bench.models.loss import token_loss
from skip2bench.report.tables.bench_rows import build_bench_rows
from skip2bench.results.reading import BenchRun, TrainRun, read_run
from skip2bench.train.parts import load_model
from skip2bench.train.plan import plan_training
from skip2bench.train.ranks.ranks import Ranks

PRESETS = ("fast", "balanced", "accurate", "all")
EPOCHS = (1, 3, 5, 10)
PASSES = 3
"""Inference passes that are timed, after one that is not."""
COLUMNS = ("configuration", "figure", "by_flops", "measured", "low", "high", "share_of_flops")


def find_ranks(model: str) -> dict[str, int]:
    """Rank of the Skip adapters of each preset that trains as many parameters as LoRA does."""
    ranks = {}
    for blocks in PRESETS:  # one by one: on a small model, several mean the same blocks
        flags = {"methods": "lora,skip2", "blocks": [blocks], "match_params": True}
        _, matched = list_configurations(load_compare_config(flags), config_by_name(model))
        ranks[blocks] = matched.settings.rank
    return ranks


def time_inference(arguments: list[str]) -> dict[str, Any]:
    """Seconds of one forward pass without gradients over a run's training samples.

    In micro-batches as the run has them, the loss computed, by the clock of training.
    """
    flags = dict(zip(arguments[::2], arguments[1::2], strict=True))
    values = {name.removeprefix("--").replace("-", "_"): value for name, value in flags.items()}
    plan = plan_training(load_train_config(values | {"method": "last"})[0])  # no adapter
    fabric = Fabric(accelerator=plan.device.type, devices=1, precision=plan.precision)
    model = fabric.setup_module(load_model(plan, Ranks())).eval()
    samples = plan.data.train
    parts = micro_batches(range(len(samples)), samples.lengths, plan.micro_batch_size or 1)
    batches = [
        fabric.to_device((input_ids, *supervised_rows(labels)))
        for input_ids, labels in (collate(samples, part) for part in parts)
    ]
    passes = []
    with torch.inference_mode():
        for _ in range(1 + PASSES):
            clock = Clock(plan.device)
            with clock.part("forward"):
                for batch in batches:
                    token_loss(model, *batch)
            passes.append(clock.seconds["forward"])
    return {
        "seconds": statistics.median(passes[1:]),
        "passes_seconds": passes[1:],
        "samples": len(samples),
        "tokens": sum(samples.lengths),
        "micro_batch_size": plan.micro_batch_size,
        "precision": plan.precision,
    }


def summarise(out_dir: Path) -> list[dict[str, Any]]:
    """Measured reductions beside those by FLOPs: of the benchmark, and of whole runs by epochs."""
    rows = []
    if (out_dir / "bench" / "summary.json").is_file():
        rows += list(_bench_figures(read_run(out_dir / "bench")))
    rows += list(_epoch_figures(_read_runs(out_dir), out_dir))
    for row in rows:
        if row["by_flops"] and row["measured"] is not None:
            row["share_of_flops"] = row["measured"] / row["by_flops"]
    return rows


def _read_runs(out_dir: Path) -> list[TrainRun]:
    runs = [read_run(path.parent) for path in sorted(out_dir.glob("train/*/summary.json"))]
    return [run for run in runs if run.summary.status == "ok"]


def _bench_figures(run: BenchRun) -> Iterable[dict[str, Any]]:
    for row in build_bench_rows(run):
        if row["method"] == "lora":
            continue
        paired = row["backward_reduction"]
        yield {
            "configuration": row["label"],
            "figure": "backward",
            "by_flops": row["backward_flops_reduction"],
            "measured": paired and paired.value,
            "low": paired and paired.low,
            "high": paired and paired.high,
        }
        for figure, name in (("step", "step"), ("cached step", "cached_step")):
            if row[f"{name}_flops_reduction"] is not None:
                yield {
                    "configuration": row["label"],
                    "figure": figure,
                    "by_flops": row[f"{name}_flops_reduction"],
                    "measured": row[f"{name}_reduction"],
                }


def _epoch_figures(runs: list[TrainRun], out_dir: Path) -> Iterable[dict[str, Any]]:
    """Training time up to the end of each epoch against LoRA's, both by the training clock."""
    lora = next((run for run in runs if run.summary.method == "lora"), None)
    if lora is None:
        return
    flops = _flops_by_label(out_dir)
    baseline = _clock_by_epoch(lora)
    for run in runs:
        own = _clock_by_epoch(run)
        for epoch in EPOCHS:
            if run is lora or epoch not in own or epoch not in baseline:
                continue
            yield {
                "configuration": run.summary.label,
                "figure": format_amount(epoch, "epoch"),
                "by_flops": _flops_reduction(flops, run.summary.label, epoch),
                "measured": 1 - own[epoch] / baseline[epoch],
            }


def _clock_by_epoch(run: TrainRun) -> dict[int, float]:
    """Seconds of the training clock at the end of each whole epoch."""
    path = run.folder / run.summary.log_folder / "steps.csv"
    with path.open(newline="", encoding="utf-8") as file:
        seconds = {float(row["epoch"]): row["train_seconds"] for row in csv.DictReader(file)}
    return {int(epoch): float(at) for epoch, at in seconds.items() if epoch.is_integer()}


def _flops_by_label(out_dir: Path) -> dict[str, Mapping[str, Any]]:
    if not (out_dir / "bench" / "summary.json").is_file():
        return {}
    entries = read_run(out_dir / "bench").summary.configurations
    return {entry.label: entry.flops.to_plain() for entry in entries}


def _flops_reduction(
    flops: Mapping[str, Mapping[str, Any]], label: str, epochs: int
) -> float | None:
    """Of a batch that is supervised everywhere: one forward pass, then steps from the cache."""
    own, lora = flops.get(label), flops.get("Traditional LoRA")
    names = ("forward_flops", "cached_forward_flops", "cached_backward_flops")
    if own is None or lora is None or None in (own[name] for name in names):
        return None
    building, *cached = (own[name] for name in names)
    step = lora["train_forward_flops"] + lora["backward_flops"]
    return float(1 - (building + epochs * sum(cached)) / (epochs * step))


def write_summary(out_dir: Path) -> None:
    """`summary.csv`, and the same as a Markdown table with the inference pass."""
    rows = summarise(out_dir)
    write_csv(out_dir / "summary.csv", COLUMNS, rows)
    lines = [
        "| configuration | reduction of | by FLOPs | measured [95 % interval] |",
        "|---|---|---:|---:|",
    ]
    for row in rows:
        interval = ""
        if row.get("low") is not None:
            interval = f" [{row['low']:.1%}, {row['high']:.1%}]"
        lines.append(
            f"| {row['configuration']} | {row['figure']} | {_percent(row['by_flops'])} | "
            f"{_percent(row['measured'])}{interval} |"
        )
    lines += _describe_inference(out_dir)
    (out_dir / "summary.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _describe_inference(out_dir: Path) -> list[str]:
    """Training times as multiples of one forward pass over the same samples."""
    path = out_dir / "inference.json"
    if not path.is_file():
        return []
    figures = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "",
        f"One inference pass over the same {figures['samples']} samples "
        f"({figures['tokens']:,} tokens) takes {figures['seconds']:.3g} s. Training time as a "
        "multiple of it, building the cache included (which computes a prompt that all share once, "
        "and no logits):",
        "",
        f"| configuration | {' | '.join(format_amount(epoch, 'epoch') for epoch in EPOCHS)} |",
        "|---" + "|---:" * len(EPOCHS) + "|",
    ]
    for run in _read_runs(out_dir):
        clock = _clock_by_epoch(run)
        ratios = [
            f"{clock[epoch] / figures['seconds']:.3g} ×" if epoch in clock else "-"
            for epoch in EPOCHS
        ]
        lines.append(f"| {run.summary.label} | {' | '.join(ratios)} |")
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=("ranks", "inference", "summary"))
    parser.add_argument("target", help="a LitGPT config name, a file or a folder")
    options, rest = parser.parse_known_args()
    try:
        if options.task == "ranks":
            print(" ".join(f"rank_{k}={v}" for k, v in find_ranks(options.target).items()))
        elif options.task == "inference":
            figures = time_inference(rest)
            write_json(Path(options.target), figures)
            print(f"one inference pass: {figures['seconds']:.2f} s")
        else:
            write_summary(Path(options.target))
    except Skip2BenchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
