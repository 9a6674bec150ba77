"""LoRA that others wrote, on the same data: a cell that runs a peer, with a run folder like any.

Its own loss is never taken for granted: the adapter that a peer leaves is loaded here and validated
as every other method's. What a peer does otherwise, it lists as `differences`.
"""

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.fabric import Fabric
from torch import Tensor

from skip2bench.building import build_model, count_parameters
from skip2bench.config import EMBEDDED_DATA, TrainConfig, to_plain
from skip2bench.console import note
from skip2bench.data import pydoc_records
from skip2bench.environment import weights_dtype
from skip2bench.errors import Skip2BenchError
from skip2bench.models import load_checkpoint
from skip2bench.objective import token_validation_loss
from skip2bench.recording import record_run
from skip2bench.records import is_records_file, load_records
from skip2bench.results import open_run_folder
from skip2bench.run_switches import CONDITIONS
from skip2bench.stop_request import interrupted_by_sigterm
from skip2bench.training_plan import TrainingPlan, plan_training

LABELS = {"litgpt": "LitGPT finetune_lora", "peft": "Hugging Face PEFT LoRA"}


@dataclass(frozen=True, kw_only=True)
class PeerRun:
    """What a peer's training gave."""

    train_seconds: float
    steps: int
    tokens: int
    peak_memory_bytes: int | None
    adapter_bytes: int
    adapter: dict[str, Tensor]
    """Trained tensors by their names in LitGPT's LoRA model."""
    differences: list[str]


class Peer(Protocol):
    """Trains LoRA with somebody else's program."""

    def __call__(self, plan: TrainingPlan, folder: Path) -> PeerRun:
        """Train on the plan's data with its settings; `folder` takes what the peer writes."""


def check_peers(names: tuple[str, ...], plan: TrainingPlan) -> None:
    """Check that the peers can run on the data and model of a comparison.

    Raises:
        Skip2BenchError: a package is missing, a switch is on that peers do not have here, or the
            data is of a kind that peers cannot get.
    """
    config = plan.config
    for name in CONDITIONS if names else ():
        if getattr(config, name):
            raise Skip2BenchError(
                f"peers run without {name}, so that they would not compare; leave it or --peers out"
            )
    if config.data != EMBEDDED_DATA and not is_records_file(config.data):
        raise Skip2BenchError(
            f"peers cannot train on {config.data!r}; give pydoc or an Alpaca JSON file"
        )
    if plan.data.dropped:
        raise Skip2BenchError(
            f"peers cannot leave out the {plan.data.dropped} samples without a supervised token; "
            "raise --max-seq-length or remove them"
        )
    size = plan.micro_batch_size or 1
    if "litgpt" in names and size > config.global_batch_size:
        raise Skip2BenchError(
            f"the peer 'litgpt' refuses micro_batch_size {size} above "
            f"global_batch_size {config.global_batch_size}; lower --micro-batch-size"
        )
    if "peft" in names:
        missing = [name for name in ("transformers", "peft", "accelerate") if not find_spec(name)]
        if missing:
            raise Skip2BenchError(
                f"the peer 'peft' needs {', '.join(missing)}; pip install 'skip2bench[peers]'"
            )
        from skip2bench.peer_peft import make_hf_config

        make_hf_config(plan)


def run_peer(name: str, config: TrainConfig, arguments: list[str]) -> dict[str, Any]:
    """Train with a peer, validate what it leaves, write the run folder, and return its summary.

    Raises:
        Skip2BenchError: bad input, or the peer failed.
    """
    started = time.monotonic()
    plan = plan_training(config)
    check_peers((name,), plan)
    environment = plan.describe_environment(arguments)
    known = plan.describe() | {"label": LABELS[name], "peer": name}
    with (
        interrupted_by_sigterm(),
        open_run_folder(
            "train", plan.model_name, name, config.out_dir, force=config.force
        ) as folder,
        record_run(folder, to_plain(config), environment, known, started) as summary,
    ):
        summary |= _train_and_validate(name, plan, folder / name)
    return summary | {"folder": str(folder)}


def _train_and_validate(name: str, plan: TrainingPlan, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    fabric = Fabric(accelerator=plan.device.type, devices=1, precision=plan.precision)
    note(f"{LABELS[name]}: training")
    try:
        run = _find_peer(name)(plan, folder)
    finally:
        for copy in ("records", "base"):  # of the data and of the weights
            shutil.rmtree(folder / copy, ignore_errors=True)
    base = load_checkpoint(plan.base_folder, plan.device, weights_dtype(plan.precision))
    model = build_model(plan.settings, base, plan.device, plan.config.seed).eval()
    total, trainable = count_parameters(model)

    def losses() -> tuple[float, float | None]:
        with fabric.autocast():
            val = token_validation_loss(fabric, model, plan.data.val)
            domain = token_validation_loss(fabric, model, plan.domain) if plan.domain else None
        return val, domain

    initial, domain_before = losses()
    expected = {key for key, p in model.named_parameters() if p.requires_grad}
    if run.adapter.keys() != expected:
        raise RuntimeError(
            f"{name} left other tensors than LoRA's: {run.adapter.keys() ^ expected}"
        )
    model.load_state_dict({k: v.to(plan.device) for k, v in run.adapter.items()}, strict=False)
    final, domain_after = losses()
    figures = {key: value for key, value in asdict(run).items() if key != "adapter"}
    return {
        **figures,
        "epochs": run.steps * plan.config.global_batch_size / len(plan.data.train),
        "total_parameters": total,
        "trainable_parameters": trainable,
        "cache_bytes": 0,
        "initial_val_loss": initial,
        "final_val_loss": final,
        "best_val_loss": min(initial, final),
        "domain_loss_before": domain_before,
        "domain_loss_after": domain_after,
        "forgetting": None
        if domain_before is None or domain_after is None
        else domain_after - domain_before,
    }


def _find_peer(name: str) -> Peer:
    if name == "litgpt":
        from skip2bench.peer_litgpt import train_with_litgpt

        return train_with_litgpt
    from skip2bench.peer_peft import train_with_peft

    return train_with_peft


def write_records(config: TrainConfig, folder: Path) -> None:
    """Write the records of a run as `train.json` and `val.json`, for LitGPT's JSON module."""
    train, val = (
        pydoc_records()
        if config.data == EMBEDDED_DATA
        else load_records(Path(config.data), config.val_split_fraction)
    )
    folder.mkdir(parents=True)
    for side, records in (("train", train[: config.train_samples]), ("val", val)):
        (folder / f"{side}.json").write_text(json.dumps(records), encoding="utf-8")


def offline_environment() -> dict[str, str]:
    """Variables of a process in which no library asks a server for anything."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    return dict(os.environ) | dict.fromkeys(names, "1") | {"TOKENIZERS_PARALLELISM": "false"}


def thread_count() -> int:
    """Threads that a peer must use to be compared."""
    return torch.get_num_threads()
