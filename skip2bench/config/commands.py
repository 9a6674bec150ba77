"""Configurations of the commands: frozen records, checked when made.

One name serves as flag (`--max-steps`), YAML key (`max_steps`) and Python argument. Where the
values come from (defaults < YAML < flags, LitGPT's nested YAML included) is `load`'s business; the
configuration of `train` is in `train`, what all share in `run`.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from skip2bench.config.methods import MethodName
from skip2bench.config.options import (
    MAX_REPEATS,
    check_choice,
    check_positive,
    option,
    same_option,
)
from skip2bench.config.run import RunConfig
from skip2bench.config.train import EMBEDDED_DEFAULTS, TrainConfig
from skip2bench.io.resources import EMBEDDED_MODEL
from skip2bench.io.units import Language

ReportFormat = Literal["md", "html"]


@dataclass(frozen=True, kw_only=True)
class BenchConfig(RunConfig):
    """What `skip2bench bench` measures."""

    model: str = option(
        EMBEDDED_MODEL,
        "'pystd', a LitGPT config name (random weights) or a checkpoint folder.",
        role="condition",
        also="checkpoint_dir",
        is_path=True,
    )
    methods: tuple[str, ...] = option(
        ("lora", "skip2"), "Methods to compare, comma-separated.", role="adapter"
    )
    blocks: tuple[str, ...] = option(
        ("fast", "balanced", "accurate"),
        "Blocks of the Skip methods; repeat the flag for several.",
        repeatable=True,
        role="adapter",
    )
    top_blocks: tuple[int, ...] = option(
        (),
        "How many of the last blocks LoRA-Top adapts; several with commas (default: a quarter).",
        role="adapter",
    )
    batch_size: int = option(4, "Sequences in a batch.", role="condition")
    seq_length: int = option(256, "Tokens in a sequence.", role="condition")
    rounds: int = option(
        3, "Rounds over all configurations (at least 3 for an interval).", role="measuring"
    )
    iterations: int = option(10, "Iterations of a configuration in each round.", role="measuring")
    inference: bool = option(
        False,
        "Also measure answers: tokens/s and memory of the base, merged LoRA, Skip adapters and "
        "their exported model.",
        role="measuring",
        one_way=True,
    )

    def __post_init__(self) -> None:
        for name in self.methods:
            check_choice("methods", name, get_args(MethodName))
        super().__post_init__()
        for name in ("batch_size", "seq_length"):
            check_positive(name, getattr(self, name))
        for name in ("rounds", "iterations"):
            check_positive(name, getattr(self, name), MAX_REPEATS)


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(RunConfig):
    """What `skip2bench doctor` looks at: this machine, and whether a run fits it."""

    model: str = option(
        EMBEDDED_MODEL,
        "'pystd', a LitGPT config name or a checkpoint folder.",
        role="condition",
        also="checkpoint_dir",
        is_path=True,
    )
    data: str = same_option(TrainConfig, "data")
    val_data: str | None = same_option(TrainConfig, "val_data")
    fields: tuple[str, ...] = same_option(TrainConfig, "fields")
    drop_records: bool = same_option(TrainConfig, "drop_records")
    data_options: tuple[str, ...] = same_option(TrainConfig, "data_options")
    train_samples: int | None = same_option(TrainConfig, "train_samples")
    val_samples: int | None = same_option(TrainConfig, "val_samples")
    mask_prompt: bool | None = same_option(TrainConfig, "mask_prompt")
    prompt_style: str = same_option(TrainConfig, "prompt_style")
    val_split_fraction: float = same_option(TrainConfig, "val_split_fraction")
    methods: tuple[str, ...] = option(
        ("lora", "skip2"), "Methods to fit, comma-separated.", role="adapter"
    )
    blocks: tuple[str, ...] = option(
        ("balanced",),
        "Blocks of the Skip methods; repeat the flag for several.",
        repeatable=True,
        role="adapter",
    )
    top_blocks: tuple[int, ...] = option(
        (),
        "How many of the last blocks LoRA-Top adapts; several with commas (default: a quarter).",
        role="adapter",
    )
    max_seq_length: int | None = same_option(TrainConfig, "max_seq_length")
    cache_project: int | None = option(
        None,
        "Numbers that Skip-Cache would project each block's output to.",
        role="adapter",
    )
    cache_dir: Path | None = option(
        None,
        "Folder that would keep Skip-Cache (default: it lives in the run folder).",
        role="place",
    )

    def __post_init__(self) -> None:
        for name in self.methods:
            check_choice("methods", name, get_args(MethodName))
        super().__post_init__()
        if self.cache_project is not None:
            check_positive("cache_project", self.cache_project)
        self.train_config(None)

    def train_config(self, checkpoint_dir: Path | None) -> TrainConfig:
        """What a run with the same options is told; its method and blocks mean nothing.

        Args:
            checkpoint_dir: Of the model; None for one that is the embedded one or has no weights.

        Raises:
            Skip2BenchError: a value is not good.
        """
        known = {item.name for item in fields(TrainConfig)}
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name in known}
        for name in ("blocks", "top_blocks"):  # several here
            del own[name]
        defaults = EMBEDDED_DEFAULTS if self.model == EMBEDDED_MODEL else {}
        return TrainConfig(checkpoint_dir=checkpoint_dir, **(own | defaults))


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Which results `skip2bench report` reads and how it writes."""

    results: Path = option(Path("results"), "Folder of results.", role="call")
    lang: Language = option("ja", "Language of the report: ja or en.", role="call")
    format: ReportFormat = option(
        "md", "Form of the report: md or html, one file by itself.", role="call"
    )
    output: Path | None = option(None, "File to write (default: standard output).", role="call")
    plots_dir: Path | None = option(
        None,
        "Folder of the charts of a Markdown report (default: figures, beside it).",
        role="call",
    )
    run: tuple[Path, ...] = option(
        (),
        "Use only this run, or those below this folder; repeatable.",
        repeatable=True,
        role="call",
    )
    template: Path | None = option(
        None, "Jinja template of your own, rendered in a sandbox.", role="call"
    )
    json: bool = option(False, "Write the tables as JSON instead.", role="call", one_way=True)

    def __post_init__(self) -> None:
        check_choice("lang", self.lang, get_args(Language))
        check_choice("format", self.format, get_args(ReportFormat))
