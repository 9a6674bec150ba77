"""LitGPT's own `litgpt finetune_lora`, run through its own command line."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import torch

from skip2bench.compare.peers.peer import PeerRun, offline_environment, thread_count, write_records
from skip2bench.config.methods import LORA_TARGETS
from skip2bench.config.run import EMBEDDED_DATA
from skip2bench.config.train import TrainConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.train.plan import TrainingPlan

DIFFERENCES = (
    "its clock is the sum of its iterations' own times (waiting for a batch, forward, backward, "
    "optimizer): what favours it most",
    "shuffles samples by its own loader, so its batches are others of the same samples",
    "takes the mean of a micro-batch's loss and then of the micro-batches, not over the supervised "
    "tokens of the global batch",
    "its warm-up starts at a learning rate of 0",
    "a global batch crosses the end of an epoch; samples at the very end that fill none are "
    "left out",
    "its memory is the peak of its whole process, loading and merging included",
    "malloc gives freed memory back to the system, as it does by default",
)


def train_with_litgpt(plan: TrainingPlan, folder: Path) -> PeerRun:
    """Run `litgpt finetune_lora` on the plan's data and settings.

    Raises:
        Skip2BenchError: it failed.
    """
    write_records(plan, folder / "records")
    run_finetune_lora(litgpt_command(plan, folder), folder / "litgpt.log")
    rows = read_iterations(folder)
    a_step = plan.config.global_batch_size // (plan.micro_batch_size or 1)
    final = folder / "out" / "final"
    adapter = torch.load(final / "lit_model.pth.lora", weights_only=True)["model"]
    size = (final / "lit_model.pth.lora").stat().st_size
    (final / "lit_model.pth").unlink()  # its merged copy of the whole model
    return PeerRun(
        train_seconds=sum(float(row["iter_time"]) for row in rows),
        steps=int(float(rows[-1]["step"])) // a_step,  # of iterations
        tokens=int(float(rows[-1]["tokens"])),
        peak_memory_bytes=_peak_memory_of_children(),
        adapter_bytes=size,
        trainable_parameters=sum(value.numel() for value in adapter.values()),
        adapter=adapter,
        row_factors={},
        differences=list(DIFFERENCES),
    )


def litgpt_command(plan: TrainingPlan, folder: Path) -> list[str]:
    """`litgpt finetune_lora` with the plan's settings; `folder` holds `records`."""
    config = plan.config
    is_masked = config.data == EMBEDDED_DATA if config.mask_prompt is None else config.mask_prompt
    never = plan.steps + 1
    options: dict[str, object] = {
        "precision": plan.precision,
        "devices": 1,
        "seed": config.seed,
        **{name: getattr(config, name) for name in ("lora_r", "lora_alpha", "lora_dropout")},
        **{name: getattr(config, name) for name in LORA_TARGETS},
        "data": "JSON",
        "data.json_path": folder / "records",
        "data.mask_prompt": is_masked,
        "data.prompt_style": plan.prompt_style,
        "train.epochs": config.epochs,
        "train.global_batch_size": config.global_batch_size,
        "train.micro_batch_size": plan.micro_batch_size or 1,
        "train.lr_warmup_steps": plan.warmup_steps,
        "train.max_seq_length": plan.max_seq_length,
        "train.log_interval": 1,
        "train.save_interval": never,
        "eval.interval": never,
        "eval.initial_validation": False,
        "eval.final_validation": False,
        "logger_name": "csv",
        "out_dir": folder / "out",
        "optimizer": json.dumps(_adamw(config)),
    }
    if config.max_steps is not None:
        options["train.max_steps"] = config.max_steps
    command = [sys.executable, "-m", "litgpt", "finetune_lora", str(plan.base_folder)]
    for name, value in options.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        command += [f"--{name}", text]
    return command


def read_iterations(folder: Path) -> list[dict[str, str]]:
    """LitGPT's log of its iterations, one row a micro-batch."""
    with (folder / "out/logs/csv/version_0/metrics.csv").open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["iter_time"]]


def _adamw(config: TrainConfig) -> dict[str, object]:
    return {
        "class_path": "torch.optim.AdamW",
        "init_args": {
            "lr": config.learning_rate,
            "weight_decay": config.weight_decay,
            "betas": [config.adam_beta1, config.adam_beta2],
        },
    }


def run_finetune_lora(command: list[str], log_file: Path) -> None:
    """Run the command with its output in `log_file`.

    Raises:
        Skip2BenchError: it failed.
    """
    environment = offline_environment() | {"OMP_NUM_THREADS": str(thread_count())}
    with log_file.open("w", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False)
    if done.returncode:
        lines = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else ""
        raise Skip2BenchError(
            f"litgpt finetune_lora ended with exit status {done.returncode} ({last}); "
            f"see {log_file}"
        )


def _peak_memory_of_children() -> int | None:
    """Largest resident size among the processes that this one has waited for."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
