"""Configurations of the commands: frozen records, checked when made.

One name serves as flag (`--max-steps`), YAML key (`max_steps`) and Python argument. Where the
values come from (defaults < YAML < flags, LitGPT's nested YAML included) is `config_file`'s
business.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from skip2bench.byte_sizes import parse_bytes
from skip2bench.config_checks import (
    MAX_RANK,
    MAX_REPEATS,
    check_choice,
    check_counts,
    check_optimizer,
    check_positive,
    check_ranks,
    check_streaming,
)
from skip2bench.errors import Skip2BenchError

MethodName = Literal[
    "lora", "lora-all", "lora-last", "full", "full+lora", "last", "bias", "skip", "skip2"
]
Target = Literal["hidden", "logits"]
Precision = Literal["auto", "32-true", "bf16-true", "bf16-mixed", "16-true", "16-mixed"]
Device = Literal["auto", "cpu", "cuda", "mps"]
LoggerName = Literal["csv", "tensorboard"]
StrategyName = Literal["auto", "ddp", "fsdp"]
Language = Literal["ja", "en"]
ReportFormat = Literal["md", "html"]
CacheTier = Literal["auto", "device", "ram", "disk"]
CacheDtype = Literal["model", "bf16", "int8"]

EMBEDDED_MODEL = "pystd"
EMBEDDED_DATA = "pydoc"


def option(default: Any, text: str, **metadata: Any) -> Any:
    """A dataclass field whose `text` is also the flag's help."""
    return field(default=default, metadata={"help": text, **metadata})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What `bench` and `train` share: the adapters, where a run happens and where it is written."""

    target: Target = option("hidden", "Where the Skip adapters add: 'hidden' or 'logits'.")
    lora_r: int = option(4, "Rank of traditional LoRA.")
    skip_r: int = option(16, "Rank of the Skip adapters.")
    lora_alpha: int = option(16, "Scale: alpha / rank multiplies every adapter.")
    lora_dropout: float = option(0.05, "Dropout on the adapters' inputs.")
    precision: Precision = option(
        "auto", "Fabric precision; auto: 32-true on a CPU, bf16-true on a GPU that has it."
    )
    device: Device = option("auto", "Device to run on; auto takes a GPU where there is one.")
    seed: int = option(1337, "Seed of adapters, dropout, order of samples, and random tokens.")
    out_dir: Path | None = option(None, "Run folder (default: a new one below results).")
    force: bool = option(False, "Write into a folder that already holds a run.")

    def __post_init__(self) -> None:
        check_choice("target", self.target, get_args(Target))
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


@dataclass(frozen=True, kw_only=True)
class BenchConfig(RunConfig):
    """What `skip2bench bench` measures."""

    model: str = option(
        EMBEDDED_MODEL, "'pystd', a LitGPT config name (random weights) or a checkpoint folder."
    )
    methods: tuple[str, ...] = option(("lora", "skip2"), "Methods to compare, comma-separated.")
    blocks: tuple[str, ...] = option(
        ("fast", "balanced", "accurate"),
        "Blocks of the Skip methods; repeat the flag for several.",
        repeatable=True,
    )
    batch_size: int = option(4, "Sequences in a batch.")
    seq_length: int = option(256, "Tokens in a sequence.")
    rounds: int = option(3, "Rounds over all configurations (at least 3 for an interval).")
    iterations: int = option(10, "Iterations of a configuration in each round.")

    def __post_init__(self) -> None:
        for name in self.methods:
            check_choice("methods", name, get_args(MethodName))
        super().__post_init__()
        for name in ("batch_size", "seq_length"):
            check_positive(name, getattr(self, name))
        for name in ("rounds", "iterations"):
            check_positive(name, getattr(self, name), MAX_REPEATS)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """What `skip2bench train` runs.

    Defaults are LitGPT's; the embedded model has its own (EMBEDDED_DEFAULTS).
    """

    method: MethodName = option("skip2", f"Method: {', '.join(get_args(MethodName))}.")
    blocks: str = option(
        "balanced", "Blocks of the Skip methods: '0,1,2,3', all, fast, balanced or accurate."
    )
    checkpoint_dir: Path | None = option(
        None, "LitGPT checkpoint folder (default: the embedded model)."
    )
    data: str = option(
        EMBEDDED_DATA,
        "'pydoc', an Alpaca JSON/JSONL file, or a LitGPT data module such as alpaca2k.",
    )
    epochs: int = option(5, "Passes over the training samples.")
    max_steps: int | None = option(None, "Stop after this many steps, or earlier with --epochs.")
    train_samples: int | None = option(None, "Use only the first N training samples.")
    domain_text: str = option(
        "auto",
        "Held-out text of the base model's domain, to measure forgetting: a text file, none, or "
        "auto (the embedded model brings its own).",
    )
    max_seq_length: int | None = option(
        None, "Cut samples to this many tokens (default: the model's context)."
    )
    global_batch_size: int = option(16, "Samples in an optimizer step.")
    micro_batch_size: int | Literal["auto"] = option(
        1, "Samples in a forward pass, or auto: as many as fit. The loss does not depend on it."
    )
    learning_rate: float = option(1e-3, "Peak learning rate of AdamW.")
    weight_decay: float = option(0.01, "Weight decay of AdamW.")
    adam_beta1: float = option(0.9, "AdamW's decay of the mean gradient.")
    adam_beta2: float = option(0.999, "AdamW's decay of the mean squared gradient.")
    lr_warmup_steps: int = option(100, "Steps of linear warm-up; then a cosine to zero.")
    lora_query: bool = option(True, "LoRA on the query projection.")
    lora_key: bool = option(False, "LoRA on the key projection.")
    lora_value: bool = option(True, "LoRA on the value projection.")
    lora_projection: bool = option(False, "LoRA on attention's output projection.")
    lora_mlp: bool = option(False, "LoRA on the MLP.")
    lora_head: bool = option(False, "LoRA on lm_head.")
    mask_prompt: bool | None = option(
        None, "Take no loss from the prompt (default: yes for pydoc, else LitGPT's no)."
    )
    prompt_style: str = option("alpaca", "LitGPT prompt style.")
    val_split_fraction: float = option(0.05, "Share of a data file that is kept for validation.")
    eval_interval: int = option(100, "Steps between validations.")
    save_interval: int = option(100, "Steps between saved states, from which --resume goes on.")
    resume: bool = option(
        False, "Go on with a stopped run: that of --out-dir, or the newest of this configuration."
    )
    cache_tier: CacheTier = option(
        "auto",
        "Where Skip-Cache lives: device, ram or disk; auto takes the nearest that has room.",
    )
    cache_dtype: CacheDtype = option(
        "model", "What Skip-Cache stores: the model's own dtype, bf16, or int8 with scales."
    )
    cache_max_bytes: str | None = option(
        None, "Cap on Skip-Cache, such as 2GiB; samples beyond it are recomputed every epoch."
    )
    cache_dir: Path | None = option(
        None, "Folder that keeps Skip-Cache for later runs (default: it ends with the run)."
    )
    stream_blocks: bool = option(
        False,
        "Build Skip-Cache one block at a time, for a model larger than memory (skip2 alone).",
    )
    devices: int = option(1, "Devices of each node; one process (rank) for each.")
    num_nodes: int = option(1, "Number of nodes; torchrun or SLURM starts the run on each.")
    strategy: StrategyName = option(
        "auto",
        "With several devices: ddp (auto) has the whole model on each; fsdp shards the frozen "
        "backbone of skip and skip2.",
    )
    logger: LoggerName = option(
        "csv", "Also log to TensorBoard with 'tensorboard'; CSV files are always written."
    )

    def __post_init__(self) -> None:
        check_choice("method", self.method, get_args(MethodName))
        check_choice("logger", self.logger, get_args(LoggerName))
        check_choice("strategy", self.strategy, get_args(StrategyName))
        check_choice("cache_tier", self.cache_tier, get_args(CacheTier))
        check_choice("cache_dtype", self.cache_dtype, get_args(CacheDtype))
        if self.cache_max_bytes is not None and not parse_bytes(
            "cache_max_bytes", self.cache_max_bytes
        ):
            raise Skip2BenchError(
                "cache_max_bytes is 0, which has room for no sample; "
                "use --method skip to train without a cache"
            )
        super().__post_init__()
        check_streaming(self)
        check_counts(self)
        check_optimizer(self)
        if not 0 < self.val_split_fraction < 1:
            raise Skip2BenchError(
                f"val_split_fraction is {self.val_split_fraction}; give a share between 0 and 1"
            )
        if self.resume and self.force:
            raise Skip2BenchError(
                "resume and force contradict each other: the one goes on with a run, the other "
                "replaces it; give one of them"
            )
        check_ranks(self)
        if self.method == "lora" and not any(getattr(self, key) for key in LORA_TARGETS):
            raise Skip2BenchError(
                f"no LoRA target is on; turn on at least one of {', '.join(LORA_TARGETS)}"
            )


LORA_TARGETS = ("lora_query", "lora_key", "lora_value", "lora_projection", "lora_mlp", "lora_head")

EMBEDDED_DEFAULTS: dict[str, Any] = {
    "learning_rate": 3e-3,
    "lr_warmup_steps": 10,
    "micro_batch_size": 4,
    "eval_interval": 50,
    "save_interval": 50,
}
"""Defaults of `train` where the base model is the embedded one: they suit its size."""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(RunConfig):
    """What `skip2bench doctor` looks at: this machine, and whether a run fits it."""

    model: str = option(EMBEDDED_MODEL, "'pystd', a LitGPT config name or a checkpoint folder.")
    data: str = option(
        EMBEDDED_DATA,
        "'pydoc', an Alpaca JSON/JSONL file, or a LitGPT data module such as alpaca2k.",
    )
    methods: tuple[str, ...] = option(("lora", "skip2"), "Methods to fit, comma-separated.")
    blocks: tuple[str, ...] = option(
        ("balanced",), "Blocks of the Skip methods; repeat the flag for several.", repeatable=True
    )
    max_seq_length: int | None = option(
        None, "Cut samples to this many tokens (default: the model's context)."
    )
    cache_dir: Path | None = option(
        None, "Folder that would keep Skip-Cache (default: it lives in the run folder)."
    )

    def __post_init__(self) -> None:
        for name in self.methods:
            check_choice("methods", name, get_args(MethodName))
        super().__post_init__()
        if self.max_seq_length is not None:
            check_positive("max_seq_length", self.max_seq_length)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Which results `skip2bench report` reads and how it writes."""

    results: Path = option(Path("results"), "Folder of results.")
    lang: Language = option("ja", "Language of the report: ja or en.")
    format: ReportFormat = option("md", "Form of the report: md or html, one file by itself.")
    output: Path | None = option(None, "File to write (default: standard output).")
    plots_dir: Path | None = option(
        None, "Folder of the charts of a Markdown report (default: figures, beside it)."
    )
    run: tuple[Path, ...] = option(
        (), "Use only this run, or those below this folder; repeatable.", repeatable=True
    )
    template: Path | None = option(None, "Jinja template of your own, rendered in a sandbox.")
    json: bool = option(False, "Write the tables as JSON instead.")

    def __post_init__(self) -> None:
        check_choice("lang", self.lang, get_args(Language))
        check_choice("format", self.format, get_args(ReportFormat))


def to_plain(config: RunConfig) -> dict[str, Any]:
    """The configuration as YAML can hold it, by field name, to be read back and run again.

    Where it was written, and whether over another run, is left out: a repetition goes elsewhere.
    """
    plain: dict[str, Any] = {}
    for item in fields(config):
        if item.name in ("out_dir", "force", "resume"):
            continue
        value = getattr(config, item.name)
        plain[item.name] = (
            str(value)
            if isinstance(value, Path)
            else list(value)
            if isinstance(value, tuple)
            else value
        )
    return plain
