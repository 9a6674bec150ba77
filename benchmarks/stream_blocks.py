"""Memory of `skip2bench train --stream-blocks` beside the same run without it.

    python benchmarks/stream_blocks.py                                  # bf16 weights, bf16-true
    python benchmarks/stream_blocks.py --case fp32:bf16-true            # weights to be converted

Makes a checkpoint of a known shape with random weights, then fine-tunes a small data set with
Skip2-LoRA, streamed and not, each in a process of its own with the same seed. From outside, memory
is read every 50 ms: anonymous (which no file stands behind) and the peak of all resident pages
(which includes mapped files that the system may drop). Linux only.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from skip2bench.data.load import pydoc_records
from skip2bench.io.console import note
from skip2bench.io.whole import write_json

REPOSITORY = Path(__file__).resolve().parent.parent
READ_EVERY_SECONDS = 0.05
BASELINE = "import skip2bench.train.run; input()"
"""What every run imports, and then waits."""
VALIDATION_SHARE = 0.2


def read_status(pid: int) -> dict[str, int]:
    """RssAnon and VmHWM of a process in bytes; empty once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in lines)
    return {
        name: int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "VmHWM") if name in fields
    }


def watch(command: list[str], log: Path) -> dict[str, int]:
    """Run a command to its end, its output in `log`; the highest readings of its memory."""
    peak: dict[str, int] = {}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            for name, value in read_status(process.pid).items():
                peak[name] = max(peak.get(name, 0), value)
            time.sleep(READ_EVERY_SECONDS)
    if process.returncode:
        sys.exit(f"error: {' '.join(command)}\n{log.read_text(encoding='utf-8')[-2000:]}")
    return peak


def measure_baseline() -> dict[str, int]:
    """Memory of a process that has imported everything and done nothing."""
    process = subprocess.Popen([sys.executable, "-c", BASELINE], stdin=subprocess.PIPE)
    peak: dict[str, int] = {}
    before = -1
    while peak.get("RssAnon", 0) != before:  # it still grows
        before = peak.get("RssAnon", 0)
        time.sleep(3)
        peak = read_status(process.pid)
    process.communicate(b"\n")
    return peak


def write_data(records: int, path: Path) -> None:
    """Alpaca records of the embedded data set."""
    train, _ = pydoc_records()
    path.write_text(json.dumps(train[:records]), encoding="utf-8")


def train(
    folder: Path, options: argparse.Namespace, checkpoint: Path, precision: str, *, streamed: bool
) -> dict[str, Any]:
    """One run: memory seen from outside, its summary and its losses."""
    name = "streamed" if streamed else "whole"
    out_dir = folder / name
    note(f"{checkpoint.name}, {precision}: {name}")
    flags = f"""--method skip2 --blocks {options.blocks} --checkpoint-dir {checkpoint}
        --data {folder / "data.json"} --mask-prompt --val-split-fraction {VALIDATION_SHARE}
        --max-seq-length {options.max_seq_length} --epochs {options.epochs}
        --max-steps {options.max_steps} --global-batch-size 8 --lr-warmup-steps 2
        --eval-interval {options.max_steps} --precision {precision} --device cpu
        --cache-tier {options.cache_tier} --out-dir {out_dir} --force"""
    command = [sys.executable, "-m", "skip2bench", "train", *flags.split()]
    memory = watch([*command, *["--stream-blocks"] * streamed], folder / f"{name}.log")
    summary = json.loads((out_dir / "summary.json").read_text(encoding="utf-8"))
    logs = out_dir / summary["log_folder"]
    losses = [*pd.read_csv(logs / "steps.csv")["loss"]]
    losses += [*pd.read_csv(logs / "metrics.csv")["val_loss"]]
    return {"run": name, **memory, "summary": summary, "losses": losses}


def measure_case(case: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both runs on a checkpoint of one dtype at one precision."""
    dtype, precision = case.split(":")
    checkpoint = folder / f"{options.name}-{dtype}"
    maker = [sys.executable, str(REPOSITORY / "scripts" / "make_random_checkpoint.py")]
    maker += [options.name, "--out-dir", str(checkpoint), "--dtype", dtype]
    made = watch(maker, folder / "checkpoint.log")
    runs = [train(folder, options, checkpoint, precision, streamed=s) for s in (False, True)]
    whole, streamed = (run["losses"] for run in runs)
    result = {
        "case": case,
        "checkpoint_bytes": (checkpoint / "lit_model.pth").stat().st_size,
        "making_it": made,
        "runs": runs,
        "largest_difference": max(abs(a - b) for a, b in zip(whole, streamed, strict=True)),
    }
    shutil.rmtree(checkpoint)
    return result


def render(results: list[dict[str, Any]], baseline: dict[str, int]) -> str:
    """The table, in Markdown."""
    lines = [
        "| weights, precision | run | peak anonymous memory | peak resident memory | "
        "building | largest difference of losses |",
        "|---|---|---|---|---|---|",
        f"| | imports alone | {_megabytes(baseline['RssAnon'])} | {_megabytes(baseline['VmHWM'])} "
        "| | |",
    ]
    for result in results:
        for run in result["runs"]:
            summary = run["summary"]
            building = summary["cache_build_seconds"] + summary["validation_seconds"]
            difference = f"{result['largest_difference']:g}" if summary["streamed_blocks"] else ""
            lines.append(
                f"| {result['case'].replace(':', ', ')} | {run['run']} | "
                f"{_megabytes(run['RssAnon'])} | {_megabytes(run['VmHWM'])} | {building:.1f} s | "
                f"{difference} |"
            )
    return "\n".join(lines)


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.0f} MB"


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="tiny-llama-1.1b", help="a LitGPT config name")
    parser.add_argument(
        "--case",
        action="append",
        help="CHECKPOINT_DTYPE:PRECISION, repeatable (default: bf16:bf16-true)",
    )
    parser.add_argument("--blocks", default="balanced")
    parser.add_argument("--records", type=int, default=40)
    parser.add_argument("--max-seq-length", type=int, default=256)
    parser.add_argument("--max-steps", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--cache-tier", default="auto")
    parser.add_argument("--work-dir", type=Path, help="for checkpoints and runs (default: new)")
    parser.add_argument("--output", type=Path, help="also write all figures as JSON")
    options = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("error: this reads /proc, which Linux alone has")
    with tempfile.TemporaryDirectory(dir=options.work_dir) as temporary:
        folder = Path(temporary)
        write_data(options.records, folder / "data.json")
        baseline = measure_baseline()
        cases = options.case or ["bf16:bf16-true"]
        results = [measure_case(case, options, folder) for case in cases]
    if options.output:
        write_json(options.output, {"baseline": baseline, "results": results})
    print(render(results, baseline))


if __name__ == "__main__":
    main()
