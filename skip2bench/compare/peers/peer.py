"""What a peer is: LoRA that others wrote, trained on a plan's data with its settings."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from litgpt.prompts import PromptStyle
from torch import Tensor

from skip2bench.config.run import EMBEDDED_DATA
from skip2bench.data.load import embedded_sides
from skip2bench.data.records import load_records
from skip2bench.data.styles import place_input
from skip2bench.train.plan import TrainingPlan


@dataclass(frozen=True, kw_only=True)
class PeerRun:
    """What a peer's training gave."""

    train_seconds: float
    steps: int
    tokens: int
    peak_memory_bytes: int | None
    adapter_bytes: int
    trainable_parameters: int
    """As the peer's own model has them."""
    adapter: dict[str, Tensor]
    """Trained tensors by their names in LitGPT's LoRA model."""
    row_factors: dict[str, Tensor]
    """By the name of a weight (d_out, d_in) there, what its rows are multiplied by (d_out,); empty
    for what is LoRA and no more."""
    differences: list[str]


class Peer(Protocol):
    """Trains LoRA with somebody else's program."""

    def __call__(self, plan: TrainingPlan, folder: Path) -> PeerRun:
        """Train on the plan's data with its settings; `folder` takes what the peer writes."""


def write_records(plan: TrainingPlan, folder: Path) -> None:
    """Write the records of a run as `train.json` and `val.json`, for LitGPT's JSON module."""
    config = plan.config
    sides = embedded_sides(config) if config.data == EMBEDDED_DATA else load_records(config)
    folder.mkdir(parents=True)
    for side, records in (
        ("train", sides.train[: config.train_samples]),
        ("val", sides.val[: config.val_samples]),
    ):
        text = json.dumps(place_input(records, PromptStyle.from_name(plan.prompt_style)))
        (folder / f"{side}.json").write_text(text, encoding="utf-8")


def offline_environment() -> dict[str, str]:
    """Variables of a process in which no library asks a server for anything."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    return dict(os.environ) | dict.fromkeys(names, "1") | {"TOKENIZERS_PARALLELISM": "false"}


def thread_count() -> int:
    """Threads that a peer must use to be compared."""
    return torch.get_num_threads()
