"""What the defaults of Skip adapters rest on: one run for each setting, from one kept cache.

    python benchmarks/adapter_settings.py --checkpoint-dir DIR --data FILE.json

Every run trains on the same samples in the same order; only what a line says differs. The first
builds Skip-Cache of all blocks, the others find it. `--lora` adds LoRA, which takes longer than all
others together.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from skip2bench.io.console import note, warn
from skip2bench.io.whole import write_json

SETTINGS = {
    "all, scaled": "--blocks all",
    "last 8, raw, 1e-3": "--blocks last:8 --features raw --learning-rate 1e-3",
    "last 8, raw": "--blocks last:8 --features raw",
    "balanced (0-5), raw, 1e-3": "--blocks balanced --features raw --learning-rate 1e-3",
    "balanced (0-5), raw": "--blocks balanced --features raw",
    "fast (0-3), scaled": "--blocks fast",
    "balanced (0-5), scaled": "--blocks balanced",
    "accurate (0-7), scaled": "--blocks accurate",
    "last 1, scaled": "--blocks last:1",
    "last 8, scaled, 1e-3": "--blocks last:8 --learning-rate 1e-3",
    "last 8, scaled": "--blocks last:8",
    "last 8, scaled, rank 4": "--blocks last:8 --skip-r 4",
    "last 8, scaled, rank 64": "--blocks last:8 --skip-r 64",
    "8 spread evenly, scaled": "--blocks even:8",
    "balanced (0-5), one B, rank 64": "--blocks balanced --share-b --skip-r 64",
    "last 1, one B, rank 64": "--blocks last:1 --share-b --skip-r 64",
    "last 8, one B, rank 28": "--blocks last:8 --share-b --skip-r 28",
    "last 8, one B, rank 64": "--blocks last:8 --share-b --skip-r 64",
    "8 spread evenly, one B, rank 64": "--blocks even:8 --share-b --skip-r 64",
    "all, one B, rank 64": "--blocks all --share-b --skip-r 64",
}
LORA = {"lora, rank 8": "--method lora --lora-r 8 --micro-batch-size 4"}


def run_setting(options: argparse.Namespace, name: str, flags: str) -> Any:
    """The summary of a run; None where it failed."""
    common = f"""train --learning-rate {options.learning_rate} --epochs {options.epochs} --json
        --train-samples {options.train_samples} --val-samples {options.val_samples} --mask-prompt
        --eval-interval 1000000 --domain-text none --data {options.data} {flags}"""
    command = [sys.executable, "-m", "skip2bench", *common.split()]
    command += ["--checkpoint-dir", str(options.checkpoint_dir)] if options.checkpoint_dir else []
    command += ["--out-dir", str(options.work_dir / name.replace(" ", "_")), "--force"]
    if "--method" not in flags:
        command += ["--cache-dir", str(options.work_dir / "cache")]
    note(name)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        warn(f"{name}: {done.stderr.strip().splitlines()[-1]}")
        return None
    return json.loads(done.stdout)


def main() -> None:
    """Run every setting and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint-dir", type=Path, help="default: the embedded model")
    add("--data", default="pydoc", help="an Alpaca file, or pydoc")
    add("--learning-rate", default="3e-3", help="where a line names no other")
    add("--train-samples", type=int, default=190)
    add("--val-samples", type=int, default=60)
    add("--epochs", type=int, default=3)
    add("--lora", action="store_true", help="LoRA as well")
    add("--work-dir", type=Path, default=Path("out/adapter_settings"), help="runs go below it")
    options = parser.parse_args()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    found = {}
    print("| setting | trainable parameters | validation loss, start | end |\n|---|---|---|---|")
    for name, flags in (SETTINGS | (LORA if options.lora else {})).items():
        summary = run_setting(options, name, flags)
        found[name] = summary
        if summary is not None:
            losses = (summary[f"{when}_val_loss"] for when in ("initial", "final"))
            cells = [f"{summary['trainable_parameters']:,}", *(f"{loss:.3f}" for loss in losses)]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    write_json(options.work_dir / "summaries.json", found)


if __name__ == "__main__":
    main()
