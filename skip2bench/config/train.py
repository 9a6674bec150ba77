"""What `skip2bench train` runs: every option of a fine-tuning run, the same for all methods.

Its values are checked when it is made, alone and against each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from skip2bench.config.blocks import blocks_text
from skip2bench.config.methods import LORA_TARGETS, METHODS, MethodName, find_method
from skip2bench.config.options import (
    check_choice,
    check_pairs,
    coerce,
    expand_path,
    list_options,
    option,
)
from skip2bench.config.run import EMBEDDED_DATA, RunConfig
from skip2bench.config.score import SCORES_TEXT
from skip2bench.config.train_checks import (
    check_counts,
    check_optimizer,
    check_quantize,
    check_ranks,
    check_sample_prompt,
    check_score,
    check_streaming,
)
from skip2bench.errors import Skip2BenchError
from skip2bench.io.resources import EMBEDDED_MODEL
from skip2bench.io.units import parse_bytes

LoggerName = Literal["csv", "tensorboard", "wandb", "mlflow", "litlogger"]
StrategyName = Literal["auto", "ddp", "fsdp"]
CacheTier = Literal["auto", "device", "ram", "disk"]
CacheDtype = Literal["model", "bf16", "int8"]
Keep = Literal["best", "last"]
AlgebraName = Literal["auto", "head", "folded"]
ProjectionName = Literal["gradient", "pca", "random"]
Quantize = Literal["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8-training"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """What `skip2bench train` runs.

    What its defaults follow from, the model and the method, is in `default_values`, which the
    command line and `load_train_config` ask.
    """

    method: MethodName = option(
        "skip2",
        f"Method: {', '.join(get_args(MethodName))}.",
        role="adapter",
        recorded_as="method",
        set_by_matrix="use methods",
    )
    blocks: str = option(
        "balanced",
        "Blocks of the Skip methods: '0,1,2,3', all, last:8, even:8, auto or auto:8 (chosen by the "
        "loss's gradient), or the first ones: fast (4), balanced (6), accurate (8).",
        role="adapter",
        recorded_as="blocks",
        taken_by="is_skip",
    )
    top_blocks: int | None = option(
        None,
        "How many of the last blocks LoRA-Top adapts; those before them are frozen (default: a "
        "quarter of all).",
        role="adapter",
        recorded_as="top_blocks",
        taken_by="is_top",
    )
    checkpoint_dir: Path | None = option(
        None,
        "LitGPT checkpoint folder (default: the embedded model).",
        role="condition",
        recorded_as="model",
        also="model",
    )
    data: str = option(
        EMBEDDED_DATA,
        "'pydoc', a file of records (JSON, JSONL, CSV, TSV, Parquet), a folder with train.json and "
        "val.json or one saved by datasets, or a LitGPT data module such as alpaca2k.",
        role="input",
        is_path=True,
    )
    val_data: str | None = option(
        None,
        "File of records to validate on (default: a share of --data, or its folder's val.json).",
        role="input",
        is_path=True,
    )
    test_data: str | None = option(
        None,
        "File of records that --score asks (default: those that validate, or the folder's "
        "test.json).",
        role="input",
        is_path=True,
    )
    fields: tuple[str, ...] = option(
        (),
        "Which field of a record is what, such as instruction=question,output=answer; roles: "
        "instruction, input, output, system, messages, choices (default: known names).",
        role="input",
    )
    drop_records: bool = option(
        False,
        "Leave out records that cannot be used, in place of an error.",
        role="input",
        one_way=True,
    )
    data_options: tuple[str, ...] = option(
        (),
        "Arguments of a LitGPT data module, as NAME=VALUE, such as subsets=aqua_train; repeat the "
        "flag.",
        role="input",
        repeatable=True,
    )
    epochs: int = option(
        5, "Passes over the training samples.", role="condition", recorded_as="steps"
    )
    max_steps: int | None = option(
        None,
        "Stop after this many steps, or earlier with --epochs.",
        role="condition",
        recorded_as="steps",
    )
    train_samples: int | None = option(None, "Use only the first N training samples.", role="input")
    val_samples: int | None = option(
        None, "Validate on only the first N validation samples.", role="input"
    )
    sample_prompt: str | None = option(
        None,
        "Show an answer to this prompt at every evaluation, in no clock; skip2 keeps the whole "
        "model in memory for it.",
        role="place",
        set_by_matrix="leave it out: it would change the memory that is compared",
    )
    domain_text: str = option(
        "auto",
        "Held-out text of the base model's domain, to measure forgetting: a text file, none, or "
        "auto (the embedded model brings its own).",
        role="input",
        is_path=True,
    )
    max_seq_length: int | None = option(
        None, "Cut samples to this many tokens (default: the model's context).", role="input"
    )
    global_batch_size: int = option(
        16, "Samples in an optimizer step.", role="condition", recorded_as="global_batch_size"
    )
    micro_batch_size: int | Literal["auto"] | None = option(
        None,
        "Samples in a forward pass, or auto: as many as fit. The loss does not depend on it "
        "(default: on a GPU the guide's for its memory: 16 GB 2, 24 GB 4, 40 GB 8; else 1, and for "
        "the embedded model 4).",
        role="variant",
        recorded_as="micro_batch_size",
    )
    learning_rate: float | Literal["auto"] = option(
        1e-3,
        "Peak learning rate of AdamW (default: LitGPT's 1e-3; 3e-3 for scaled Skip features and "
        "for the embedded model), or auto: the best of several in a short search.",
        role="tuned",
        recorded_as="learning_rate",
        set_by_matrix="use learning_rates",
    )
    max_norm: float | None = option(
        None, "Clip gradients to this norm over all that trains.", role="condition"
    )
    weight_decay: float = option(0.01, "Weight decay of AdamW.", role="condition")
    adam_beta1: float = option(0.9, "AdamW's decay of the mean gradient.", role="condition")
    adam_beta2: float = option(
        0.999, "AdamW's decay of the mean squared gradient.", role="condition"
    )
    lr_warmup_steps: int | None = option(
        None,
        "Steps of linear warm-up; then a cosine to zero (default: a tenth of the run's steps).",
        role="condition",
        recorded_as="lr_warmup_steps",
    )
    lora_query: bool = option(
        True, "LoRA on the query projection.", role="adapter", taken_by="lora_is_configured"
    )
    lora_key: bool = option(
        False, "LoRA on the key projection.", role="adapter", taken_by="lora_is_configured"
    )
    lora_value: bool = option(
        True, "LoRA on the value projection.", role="adapter", taken_by="lora_is_configured"
    )
    lora_projection: bool = option(
        False,
        "LoRA on attention's output projection.",
        role="adapter",
        taken_by="lora_is_configured",
    )
    lora_mlp: bool = option(
        False, "LoRA on the MLP.", role="adapter", taken_by="lora_is_configured"
    )
    lora_head: bool = option(
        False, "LoRA on lm_head.", role="adapter", taken_by="lora_is_configured"
    )
    mask_prompt: bool | None = option(
        None,
        "Take no loss from the prompt (default: yes for pydoc, else LitGPT's no).",
        role="input",
    )
    prompt_style: str = option(
        "auto",
        "LitGPT prompt style, or a file with a Jinja template of instruction, input and system "
        "(auto: that of a chat model by its name, else alpaca).",
        role="input",
        is_path=True,
        recorded_as="prompt_style",
    )
    val_split_fraction: float = option(
        0.05, "Share of a data file that is kept for validation.", role="input"
    )
    eval_interval: int = option(100, "Steps between validations.", role="measuring")
    keep: Keep = option(
        "best",
        "Which adapter is saved: that of the lowest validation loss ('best'), or the 'last'.",
        role="measuring",
    )
    patience: int | None = option(
        None,
        "Stop early, once this many validations in a row have not lowered the loss.",
        role="condition",
    )
    score: str | None = option(
        None,
        "After training, in no clock of it, let the model answer held-out records of a data file "
        f"or pydoc, and compare with their outputs: {SCORES_TEXT}.",
        role="measuring",
    )
    score_samples: int = option(
        100, "Held-out records that --score asks, at most.", role="measuring"
    )
    score_max_new_tokens: int = option(
        256, "Most tokens of an answer that --score asks for.", role="measuring"
    )
    save_interval: int = option(
        100, "Steps between saved states, from which --resume goes on.", role="place"
    )
    resume: bool = option(
        False,
        "Go on with a stopped run: that of --out-dir, or the newest of this configuration.",
        role="call",
    )
    cache_tier: CacheTier = option(
        "auto",
        "Where Skip-Cache lives: device, ram or disk; auto takes the nearest that has room.",
        role="variant",
        taken_by="is_cached",
    )
    cache_dtype: CacheDtype = option(
        "model",
        "What Skip-Cache stores: the model's own dtype, bf16, or int8 with scales.",
        role="variant",
        taken_by="is_cached",
    )
    cache_project: int | None = option(
        None,
        "Have each Skip adapter read its block's output projected to N numbers, and Skip-Cache "
        "store those; the saved adapter is an ordinary one.",
        role="adapter",
        taken_by="is_skip",
    )
    cache_projection: ProjectionName = option(
        "gradient",
        "What --cache-project projects to: directions of the loss's gradient, principal ones of "
        "the output ('pca'), or random ones.",
        role="adapter",
        taken_by="is_skip",
    )
    algebra: AlgebraName = option(
        "auto",
        "How losses come from Skip-Cache: by the head, by base logits that are cached too "
        "('folded'), or whichever costs less. The loss does not depend on it.",
        role="variant",
        taken_by="serves_rows",
    )
    cache_max_bytes: str | None = option(
        None,
        "Cap on Skip-Cache, such as 2GiB; samples beyond it are recomputed every epoch.",
        role="variant",
        taken_by="is_cached",
    )
    cache_dir: Path | None = option(
        None,
        "Folder that keeps Skip-Cache for later runs (default: it ends with the run).",
        role="place",
        taken_by="is_cached",
        set_by_matrix="leave it out: cells share a cache below the comparison's folder",
    )
    stream_blocks: bool = option(
        False,
        "Build Skip-Cache one block at a time, for a model larger than memory (skip2 alone).",
        role="variant",
    )
    gradient_checkpointing: bool = option(
        False,
        "Compute the blocks' activations again in backward instead of keeping them.",
        role="condition",
        taken_by="walks_blocks_backward",
    )
    quantize: Quantize | None = option(
        None,
        "Hold the frozen linear layers in 4 or 8 bits, by bitsandbytes, as LitGPT does: "
        f"{', '.join(get_args(Quantize))}.",
        role="backbone",
    )
    compile: bool = option(
        False,
        "Let torch compile blocks and Skip adapters; the first steps take the time of it.",
        role="backbone",
    )
    devices: int = option(
        1,
        "Devices of each node; one process (rank) for each.",
        role="condition",
        set_by_matrix="leave it out: every cell is one process",
    )
    num_nodes: int = option(
        1,
        "Number of nodes; torchrun or SLURM starts the run on each.",
        role="condition",
        set_by_matrix="leave it out: every cell is one process",
    )
    strategy: StrategyName = option(
        "auto",
        "With several devices: ddp (auto) has the whole model on each; fsdp shards the frozen "
        "backbone of skip and skip2.",
        role="variant",
        set_by_matrix="leave it out: every cell is one process",
    )
    logger: LoggerName = option(
        "csv",
        "Also log to tensorboard, wandb, mlflow or litlogger, each with an extra of its name; CSV "
        "files are always written.",
        role="place",
    )

    def __post_init__(self) -> None:
        check_choice("method", self.method, get_args(MethodName))
        check_choice("logger", self.logger, get_args(LoggerName))
        check_choice("strategy", self.strategy, get_args(StrategyName))
        check_choice("cache_tier", self.cache_tier, get_args(CacheTier))
        check_choice("cache_dtype", self.cache_dtype, get_args(CacheDtype))
        check_choice("keep", self.keep, get_args(Keep))
        check_choice("algebra", self.algebra, get_args(AlgebraName))
        check_choice("cache_projection", self.cache_projection, get_args(ProjectionName))
        if self.cache_max_bytes is not None and not parse_bytes(
            "cache_max_bytes", self.cache_max_bytes
        ):
            raise Skip2BenchError(
                "cache_max_bytes is 0, which has room for no sample; "
                "use --method skip to train without a cache"
            )
        super().__post_init__()
        check_streaming(self)
        check_sample_prompt(self)
        check_score(self)
        if self.quantize is not None:
            check_choice("quantize", self.quantize, get_args(Quantize))
            check_quantize(self)
        check_counts(self)
        check_optimizer(self)
        check_pairs("data_options", self.data_options)
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
        if METHODS[self.method].lora_is_configured and not any(
            getattr(self, key) for key in LORA_TARGETS
        ):
            raise Skip2BenchError(
                f"no LoRA target is on; turn on at least one of {', '.join(LORA_TARGETS)}"
            )


INPUT_PATHS = tuple(
    item.name for item in list_options(TrainConfig, "input") if item.metadata.get("is_path")
)
"""Options that name files or folders to read, or something that is none."""


def wanted_blocks(config: TrainConfig) -> str:
    """What `models.methods.resolve_method` is asked for: blocks, or how many of the last ones."""
    is_top = METHODS[config.method].is_top
    return str(config.top_blocks or "") if is_top else config.blocks


def name_model(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, the embedded model's name as what it means: no checkpoint folder."""
    is_embedded = str(values.get("checkpoint_dir")) == EMBEDDED_MODEL
    return {**values, "checkpoint_dir": None} if is_embedded else dict(values)


def find_downloaded(folder: Any) -> Any:
    """The folder; of a name that is none, LitGPT's folder for it: `checkpoints/<name>`."""
    if not isinstance(folder, str | Path) or not str(folder):
        return folder
    path = Path(expand_path("checkpoint_dir", str(folder)))
    downloaded = Path("checkpoints") / path
    is_name = not path.is_absolute() and not path.exists() and downloaded.is_dir()
    return downloaded if is_name else folder


def default_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run with these values, what its defaults are beside those of the fields."""
    if values.get("checkpoint_dir") is None:
        return EMBEDDED_DEFAULTS
    method = find_method(values.get("method", TrainConfig.method))
    is_scaled = method.is_skip and values.get("features", TrainConfig.features) == "scaled"
    return {"learning_rate": SCALED_LEARNING_RATE} if is_scaled else {}


def usual_learning_rate(config: TrainConfig) -> float:
    """The default of such a run, whatever it was given."""
    values = {
        "checkpoint_dir": config.checkpoint_dir,
        "method": config.method,
        "features": config.features,
    }
    return float(default_values(values).get("learning_rate", 1e-3))


_GUIDES_TARGET = "lm_head"
"""The guide's word for: the adapters end where lm_head begins."""


def make_train_config(values: Mapping[str, Any]) -> TrainConfig:
    """A configuration of values as flags and files have them, the defaults that suit it added."""
    merged = name_model(values)
    if (folder := merged.get("checkpoint_dir")) is not None:
        merged["checkpoint_dir"] = find_downloaded(folder)
    if merged.get("target") == _GUIDES_TARGET:
        merged["target"] = "hidden"
    if isinstance(named := merged.get("fields"), dict):
        merged["fields"] = [f"{role}={name}" for role, name in named.items()]
    if "blocks" in merged:
        merged["blocks"] = blocks_text(merged["blocks"])
    return TrainConfig(**coerce(TrainConfig, default_values(merged) | merged))


SCALED_LEARNING_RATE = 3e-3
"""Scaled features are of one size, so it depends little on the model."""
EMBEDDED_DEFAULTS: dict[str, Any] = {
    "learning_rate": 3e-3,
    "eval_interval": 50,
    "save_interval": 50,
}
"""Defaults of `train` where the base model is the embedded one: they suit its size."""
