"""What the configurations share: choices, and the base of all that train."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from skip2bench.config.options import MAX_RANK, check_choice, check_positive, option
from skip2bench.errors import Skip2BenchError

Target = Literal["hidden", "logits"]
Features = Literal["scaled", "raw"]
Precision = Literal["auto", "32-true", "bf16-true", "bf16-mixed", "16-true", "16-mixed"]
Device = Literal["auto", "cpu", "cuda", "mps"]
EMBEDDED_DATA = "pydoc"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What `bench` and `train` share: the adapters, where a run happens and where it is written."""

    target: Target = option(
        "hidden",
        "Where the Skip adapters add: 'hidden' or 'logits'.",
        role="adapter",
        recorded_as="target",
        taken_by="is_skip",
    )
    features: Features = option(
        "scaled",
        "What the Skip adapters read: block outputs scaled by the size of the last one ('scaled'), "
        "or as they are, which is the paper's ('raw').",
        role="adapter",
        recorded_as="features",
        taken_by="is_skip",
    )
    share_b: bool = option(
        False,
        "One B for the Skip adapters of all blocks; their rank can be higher then.",
        role="adapter",
        recorded_as="share_b",
        taken_by="is_skip",
    )
    lora_r: int = option(
        4, "Rank of traditional LoRA.", role="adapter", recorded_as="rank", taken_by="has_lora"
    )
    skip_r: int = option(
        16, "Rank of the Skip adapters.", role="adapter", recorded_as="rank", taken_by="is_skip"
    )
    lora_alpha: int = option(16, "Scale: alpha / rank multiplies every adapter.", role="adapter")
    lora_dropout: float = option(0.05, "Dropout on the adapters' inputs.", role="adapter")
    precision: Precision = option(
        "auto",
        "Fabric precision; auto: 32-true on a CPU, bf16-true on a GPU that has it.",
        role="backbone",
        recorded_as="precision",
    )
    device: Device = option(
        "auto",
        "Device to run on; auto takes a GPU where there is one.",
        role="backbone",
        recorded_as="device",
    )
    seed: int = option(
        1337,
        "Seed of adapters, dropout, order of samples, and random tokens.",
        role="repetition",
        recorded_as="seed",
    )
    out_dir: Path | None = option(
        None, "Run folder (default: a new one below results).", role="call"
    )
    force: bool = option(
        False, "Write into a folder that already holds a run.", role="call", one_way=True
    )

    def __post_init__(self) -> None:
        check_choice("target", self.target, get_args(Target))
        check_choice("features", self.features, get_args(Features))
        check_choice("precision", self.precision, get_args(Precision))
        check_choice("device", self.device, get_args(Device))
        for name in ("lora_r", "skip_r"):
            check_positive(name, getattr(self, name), MAX_RANK)
        check_positive("lora_alpha", self.lora_alpha)
        if not 0 <= self.seed < 2**32:
            raise Skip2BenchError(f"seed is {self.seed}; give a number from 0 to {2**32 - 1}")
        if not 0 <= self.lora_dropout < 1:
            raise Skip2BenchError(
                f"lora_dropout is {self.lora_dropout}; give a share from 0 to below 1"
            )
