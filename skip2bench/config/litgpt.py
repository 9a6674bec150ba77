"""LitGPT's configuration files and flags, and those of the guide's fork, brought to names here.

Each of their keys means a field here, has no effect here and is named, or is refused; what a file
leaves to LitGPT's defaults is taken from there. Spellings of every release are known, since files
outlive releases.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from skip2bench.config.methods import FULL, LORA_TARGETS, SKIP2, TRADITIONAL
from skip2bench.config.train import TrainConfig
from skip2bench.errors import Skip2BenchError

_FORK_PREFIX = "skip2lora_"
_OWN_FIELDS = frozenset(item.name for item in fields(TrainConfig))

_RENAMED = {
    "model": "checkpoint_dir",
    "eval.interval": "eval_interval",
    "logger_name": "logger",
    "skip2lora_block_indices": "blocks",
    "skip2lora_output_layer": "target",
    "optimizer.lr": "learning_rate",
    "optimizer.weight_decay": "weight_decay",
    # of older releases
    "io.checkpoint_dir": "checkpoint_dir",
    "io.out_dir": "out_dir",
    "train.learning_rate": "learning_rate",
    "train.weight_decay": "weight_decay",
    "train.beta1": "adam_beta1",
    "train.beta2": "adam_beta2",
    "train.batch_size": "global_batch_size",
    "batch_size": "global_batch_size",
    "data.test_split_fraction": "val_split_fraction",
    "warmup_steps": "lr_warmup_steps",
}
_FIELDS_OF_BLOCKS = {
    "train": (
        *("save_interval", "global_batch_size", "micro_batch_size", "lr_warmup_steps", "epochs"),
        *("max_steps", "max_seq_length", "max_norm"),
    ),
    "data": ("mask_prompt", "val_split_fraction", "prompt_style"),
}
"""Keys of LitGPT's blocks that are fields of the same name here."""
_WITHOUT_EFFECT = {
    **dict.fromkeys(
        (
            *("train.log_interval", "log_interval", "train.log_iters_interval"),
            *("log_step_interval", "eval.max_new_tokens", "eval.evaluate_example"),
            *("eval_max_new_tokens", "access_token", "train.epoch_size", "train.log_step_interval"),
            *("io.train_data_dir", "io.val_data_dir"),
        ),
        "",
    ),
    **dict.fromkeys(("eval.max_iters", "eval_iters"), "the whole validation side counts"),
    **dict.fromkeys(("eval.initial_validation", "eval.final_validation"), "both are always made"),
    **dict.fromkeys(("data.num_workers", "data.download_dir", "data.ignore_index"), ""),
    "data.seed": "records are divided by LitGPT's own seed, 42",
    "train.min_lr": "the rate falls to 0",
}
"""Keys that change nothing here, and what holds instead."""
_UNSUPPORTED = {
    "train.max_tokens": "use max_steps",
    "train.max_time": "use max_steps",
    "train.max_iters": "use max_steps",
    "max_iters": "use max_steps",
    "train.tie_embeddings": "the checkpoint's own setting is used",
    "train.lr_warmup_fraction": "use lr_warmup_steps",
    "train.lr_warmup_iters": "micro-batches; use lr_warmup_steps",
    "data_dir": "use data",
    "data.access_token": "set HF_TOKEN in the environment",
}
"""Keys that cannot be had, and what to do instead; null and false ask for nothing."""
_OF_PRETRAINING = ("model_name", "model_config", "initial_checkpoint_dir", "tokenizer_dir")
OF_MODULES = (
    *("file_url", "file_name", "url", "repo_id", "subsets", "include_multiturn_conversations"),
)
"""Arguments that some of LitGPT's data modules have, and others not."""
_DATA_OF_PRETRAINING = (
    *("TextFiles", "LitData", "TinyLlama", "TinyStories", "OpenWebText", "MicroLlama"),
)
_DEFAULTS: dict[str, Any] = {
    "lr_warmup_steps": 100,
    "save_interval": 1000,
    "eval_interval": 100,
    "micro_batch_size": 1,
    "learning_rate": 1e-3,
    "data": "alpaca",
}
"""LitGPT's where they are not those of the fields here."""
_DEFAULT_RANK = 8
_FULL_EVAL_INTERVAL = 600
_ADAMW = "AdamW"


@dataclass(kw_only=True)
class Translated:
    """A file brought to names here."""

    values: dict[str, Any] = field(default_factory=dict)
    """By field name; and keys that are nobody's, to be refused."""
    ignored: list[str] = field(default_factory=list)
    """LitGPT's keys with a value that have no effect here, with what holds instead."""
    problems: list[str] = field(default_factory=list)
    """What cannot be had, all of it."""
    origin: dict[str, str] = field(default_factory=dict)
    """By field, the key that gave it."""

    def take(self, key: str, value: Any) -> None:
        """Add what a key says."""
        if key in _WITHOUT_EFFECT:
            if value not in (None, {}):
                why = _WITHOUT_EFFECT[key]
                self.ignored.append(f"{key} ({why})" if why else key)
        elif key in _UNSUPPORTED:
            if value not in (None, False):
                self.problems.append(
                    f"LitGPT's key {key!r} is not supported; leave it empty ({_UNSUPPORTED[key]})"
                )
        elif key.startswith("optimizer.") and key not in _RENAMED:
            self.problems.append(
                f"optimizer has {key.partition('.')[2]!r}, which is no option here; lr, "
                "weight_decay and betas are"
            )
        elif key.startswith("log."):
            self.ignored += [key] if value not in (None, {}, False) else []
        elif key.startswith("data.") and key.removeprefix("data.") in OF_MODULES:
            if value is not None:
                text = f"{key.removeprefix('data.')}={value}"
                self.values.setdefault("data_options", []).append(text)
        else:
            self._take_field(key, value)

    def _take_field(self, key: str, value: Any) -> None:
        if key == "devices" and value == "auto":
            self.ignored.append("devices (auto: one is used; give their number)")
        elif value is not None or key != "data":  # LitGPT writes null where it has a default
            self._add(find_field(key), key, value)

    def _add(self, name: str, key: str, value: Any) -> None:
        if name not in self.values:
            self.values[name], self.origin[name] = value, key
        elif key == "batch_size":
            self.ignored.append(f"{key} ({self.origin[name]} is given)")
        else:
            self.problems.append(
                f"{name} is given twice, as {self.origin[name]!r} and as {key!r}; keep one"
            )

    def check(self) -> None:
        """Raise a Skip2BenchError that names all that cannot be had."""
        if self.problems:
            raise Skip2BenchError("; ".join(self.problems))


def find_field(key: str) -> str:
    """The field here that LitGPT's key means, such as `train.epochs`; the key where it is none."""
    block, _, name = key.rpartition(".")
    is_field = name in _FIELDS_OF_BLOCKS.get(block, ()) or (
        block == "train" and name in _OWN_FIELDS
    )
    return _RENAMED.get(key, name if is_field else key)


def is_litgpts(nested: Mapping[str, Any], *, of_matrix: bool = False) -> bool:
    """True for a file of LitGPT's own: it says nothing of a method, and has LitGPT's blocks.

    Args:
        nested: The file.
        of_matrix: It is given to a command whose own files have a `train` block too.
    """
    if "method" in nested or "methods" in nested:
        return False
    is_fork = any(key.startswith(_FORK_PREFIX) for key in nested)
    with_class = ("data", "optimizer")
    has_class = any(
        isinstance(block := nested.get(name), dict) and "class_path" in block for name in with_class
    )
    signs = is_fork or has_class or isinstance(nested.get("eval"), dict) or "logger_name" in nested
    return signs or (not of_matrix and isinstance(nested.get("train"), dict))


def translate(nested: Mapping[str, Any]) -> Translated:
    """The values of a file, LitGPT's blocks and spellings brought to fields.

    Raises:
        Skip2BenchError: it is a file of another command, or asks for what cannot be had; all of
            that is named at once.
    """
    pretraining = [key for key in _OF_PRETRAINING if nested.get(key) is not None]
    if pretraining:
        raise Skip2BenchError(
            f"the file is one of 'litgpt pretrain' (it has {', '.join(pretraining)}); give one of "
            "LitGPT's finetuning"
        )
    found = Translated()
    for key, value in _list_pairs(nested, found.problems):
        found.take(key, value)
    enabled = found.values.pop("skip2lora_enabled", None)
    if not isinstance(enabled, bool | None):
        found.problems.append(f"skip2lora_enabled is {enabled!r}; give true or false")
    found.check()
    _take_method(nested, found, enabled)
    return found


def _take_method(nested: Mapping[str, Any], found: Translated, enabled: bool | None) -> None:
    """What a file of LitGPT's or the fork's trains."""
    values = found.values
    if enabled is False:
        for name in ("blocks", "target"):
            key = found.origin.get(name, "")
            if key.startswith(_FORK_PREFIX) and values.pop(name) not in (None, []):
                found.ignored.append(f"{key} (skip2lora_enabled is false)")
    elif values.get("blocks") == [] and found.origin["blocks"].startswith(_FORK_PREFIX):
        raise Skip2BenchError(
            "skip2lora_block_indices names no block; name some, or set skip2lora_enabled: false"
        )
    if "method" in values or "methods" in values:
        return
    has_lora = any(key in nested for key in ("lora_r", "lora_alpha", "lora_dropout", *LORA_TARGETS))
    if enabled is False:
        values["method"] = TRADITIONAL
    elif any(key.startswith(_FORK_PREFIX) for key in nested):
        values["method"] = SKIP2
    elif has_lora:
        values["method"] = TRADITIONAL
    elif is_litgpts(nested):
        values["method"] = FULL


def find_defaults(is_full: bool) -> dict[str, Any]:
    """What LitGPT takes where a file of its own is silent, by field here.

    Args:
        is_full: It fine-tunes everything.
    """
    found = dict(_DEFAULTS)
    if is_full:
        found["eval_interval"] = _FULL_EVAL_INTERVAL
    else:
        found["lora_r"] = _DEFAULT_RANK
    return found


def _list_pairs(nested: Mapping[str, Any], problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Keys and values, those of LitGPT's blocks as `train.epochs`.

    A block may also hold fields of `train` under `train`, as a comparison's own config.yaml does.
    """
    for key, value in nested.items():
        if key == "data" and isinstance(value, dict):
            yield from _list_data(value)
        elif key == "optimizer":
            yield from _list_optimizer(value)
        elif key in ("train", "eval", "io", "log"):
            if not isinstance(value, dict | None):
                problems.append(f"{key} is {value!r}; write a mapping below it")
                continue
            yield from ((f"{key}.{name}", inner) for name, inner in (value or {}).items())
        else:
            yield key, value


def _list_data(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Pairs of LitGPT's `{class_path: …, init_args: {…}}`.

    `class_path: litgpt.data.Alpaca2k` becomes its name in lower case, a JSON module its path.
    """
    unknown = set(value) - {"class_path", "init_args"}
    module, _, name = str(value.get("class_path")).rpartition(".")
    if unknown or "class_path" not in value or module not in ("", "litgpt.data"):
        raise Skip2BenchError(
            "data needs class_path (and init_args), such as class_path: litgpt.data.Alpaca2k"
        )
    if name in _DATA_OF_PRETRAINING:
        raise Skip2BenchError(
            f"data {name} is text to pretrain on; give records, as class_path: litgpt.data.JSON"
        )
    init_args = _read_arguments("data", value)
    source = init_args.pop("json_path", None) if name == "JSON" else name.lower()
    if source is None:
        raise Skip2BenchError("data of class JSON needs init_args: json_path")
    yield "data", source
    yield from ((f"data.{key}", inner) for key, inner in init_args.items())


def _read_arguments(key: str, value: Mapping[str, Any]) -> dict[str, Any]:
    init_args = value.get("init_args") or {}
    if not isinstance(init_args, dict):
        raise Skip2BenchError(f"init_args of {key} is {init_args!r}; write a mapping below it")
    return dict(init_args)


def _list_optimizer(value: Any) -> Iterator[tuple[str, Any]]:
    arguments: dict[str, Any] = {}
    name = value
    if isinstance(value, dict):
        name, arguments = value.get("class_path"), _read_arguments("optimizer", value)
        arguments |= {k: v for k, v in value.items() if k not in ("class_path", "init_args")}
    if name is not None and str(name).rpartition(".")[2] != _ADAMW:
        raise Skip2BenchError(
            f"optimizer {name!r} is not supported; every method trains with torch.optim.AdamW"
        )
    betas = arguments.pop("betas", None)
    yield from ((f"optimizer.{key}", inner) for key, inner in arguments.items())
    if betas is not None:
        yield from zip(("adam_beta1", "adam_beta2"), read_betas(betas), strict=True)


def read_betas(value: Any) -> Sequence[Any]:
    """AdamW's two decay rates, as LitGPT's files and flags give them.

    Raises:
        Skip2BenchError: they are no pair.
    """
    pair = value
    if isinstance(value, str):
        pair = value.strip("[]() ").replace(",", " ").split()
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise Skip2BenchError(f"optimizer betas {value!r} is no pair; write [0.9, 0.95]")
    return pair
