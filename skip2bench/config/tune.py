"""What `skip2bench tune` runs: the space of configurations, and how much of it is tried.

A key that is none of the sweep's own is one of `train`, and holds for every configuration.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from skip2bench.config.engine import EngineConfig
from skip2bench.config.matrix import own_keys, read_given, split_given
from skip2bench.config.methods import (
    LORA_TARGETS,
    METHODS,
    TRADITIONAL,
    MethodName,
    list_names,
)
from skip2bench.config.options import (
    MAX_RANK,
    check_choice,
    check_positive,
    coerce,
    option,
)
from skip2bench.config.run import Features
from skip2bench.config.train import TrainConfig, make_train_config, name_model
from skip2bench.errors import Skip2BenchError
from skip2bench.io.units import parse_duration

SET_BY_SWEEP: dict[str, str] = {
    "skip_r": "use ranks",
    "learning_rate": "use learning_rates",
    "lora_r": "use ranks",
    "patience": "a sweep stops configurations by itself",
    "sample_prompt": "ask the adapter of a run of its own",
    "score": "train the best with --score, or use 'compare --score'",
    "score_samples": "a sweep scores no answers",
    "score_max_new_tokens": "a sweep scores no answers",
    "devices": "a sweep is one process",
    "num_nodes": "a sweep is one process",
    "strategy": "a sweep is one process",
    "stream_blocks": "build the cache with 'train --stream-blocks --cache-dir DIR' first",
    "save_interval": "a sweep saves after every rung",
    "keep": "the lowest validation loss counts",
    "logger": "tune.csv has every curve",
}
"""Fields of `train` that a sweep sets itself, and what to do instead."""
EMBEDDED_SIZES: dict[str, Any] = {"train_samples": 800, "val_samples": 100, "epochs": 3}
"""Of a sweep of the embedded model on its own data, where none are given, with one finalist: under
two minutes on two cores."""
DEFAULT_BLOCKS = ("fast", "balanced", "accurate", "last:8", "even:8", "all")
_MAX_CONFIGURATIONS = 100_000
_TRIED_BY_ITSELF = {
    "lora_r": "a sweep tries ranks",
    "skip_r": "a sweep tries ranks",
    "learning_rates": "a sweep tries rates",
    "save_interval": "a sweep saves after every rung",
}
_OF_LORA = dict.fromkeys(LORA_TARGETS, "Skip adapters read whole blocks")
"""What a file of LitGPT's says of its one run, and why it does not hold for a sweep."""
_TRIED = {
    "learning_rates": "learning_rate",
    "alphas": "lora_alpha",
    "dropouts": "lora_dropout",
    "weight_decays": "weight_decay",
}
"""Options with values to try, and the field of `train` that takes them."""


@dataclass(frozen=True, kw_only=True)
class TuneConfig(EngineConfig):
    """Which configurations a sweep has, and how they are narrowed down."""

    budget: str = option(
        "16",
        "Configurations to begin with, or time for the sweep such as 5min; building the cache "
        "before it and training the finalists after it are not in it.",
        role="matrix",
    )
    method: MethodName = option(
        "skip2",
        "Method: skip2, whose cache serves many configurations at once, or lora-top, of which "
        "each configuration is a whole run.",
        role="matrix",
    )
    blocks: tuple[str, ...] = option(
        DEFAULT_BLOCKS,
        "Blocks to try; repeat the flag for several.",
        repeatable=True,
        role="matrix",
    )
    top_blocks: tuple[int, ...] = option(
        (),
        "Of LoRA-Top, how many of the last blocks to try, comma-separated (default: an eighth, a "
        "quarter and half of all).",
        role="matrix",
    )
    ranks: tuple[int, ...] = option((4, 16, 64), "Ranks to try, comma-separated.", role="matrix")
    learning_rates: tuple[float, ...] = option(
        (),
        "Learning rates to try, comma-separated; auto: around the default, and beyond while the "
        "best is at an edge.",
        role="matrix",
    )
    alphas: tuple[int, ...] = option(
        (), "Scales to try (default: --lora-alpha alone).", role="matrix"
    )
    dropouts: tuple[float, ...] = option(
        (), "Dropout to try (default: --lora-dropout alone).", role="matrix"
    )
    weight_decays: tuple[float, ...] = option(
        (), "Weight decay to try (default: --weight-decay alone).", role="matrix"
    )
    features: tuple[str, ...] = option(
        ("scaled",), "What the adapters read: scaled, raw, or both.", role="matrix"
    )
    screening: bool = option(
        True,
        "Try every block alone as well, and the best of them together.",
        role="matrix",
    )
    finalists: int = option(
        2, "Configurations at most that are trained again alone; 0 for none.", role="matrix"
    )
    seeds: int = option(3, "Runs of each finalist, each with a seed of its own.", role="matrix")
    train: dict[str, Any] = field(default_factory=dict, metadata={"help": "", "role": "matrix"})
    """Values of `train` for every configuration, by field name."""
    resume: bool = option(
        True, "Go on with the newest sweep of the same configuration that was stopped.", role="call"
    )
    force: bool = option(
        False, "Replace the sweep that the folder holds.", role="call", one_way=True
    )
    out_dir: Path | None = option(
        None, "Folder of the sweep (default: below results).", role="call"
    )

    def __post_init__(self) -> None:
        self._check_engine()
        check_choice("method", self.method, get_args(MethodName))
        self._check_method()
        self._check_tried()
        if self.train.get("cache_project") is not None and len(self.features) > 1:
            raise Skip2BenchError(
                "cache_project stores one kind of features, and features names several; name one"
            )
        check_positive("seeds", self.seeds, 1000)
        if not 0 <= self.finalists <= 100:
            raise Skip2BenchError(f"finalists is {self.finalists}; give a number from 0 to 100")
        _ = self.budget_configurations, self.budget_seconds
        self.train_config({})  # raises where a value of `train` is not good
        for name, key in _TRIED.items():
            values = getattr(self, name)
            for value in values:
                try:
                    self.train_config({key: value})
                except Skip2BenchError as error:
                    raise Skip2BenchError(str(error).replace(key, name, 1)) from error

    @property
    def is_of_runs(self) -> bool:
        """True where each configuration is a whole run: no cache serves many at once."""
        return METHODS[self.method].is_top

    def _check_method(self) -> None:
        method = METHODS[self.method]
        beside = ",".join(dict.fromkeys((TRADITIONAL, self.method)))
        if not method.serves_rows and not (method.is_top and method.is_cached):
            raise Skip2BenchError(
                f"method {self.method!r} has no Skip-Cache for many configurations to read "
                f"({list_names('serves_rows')} has); compare runs of it instead: skip2bench "
                f"compare --methods {beside} --learning-rates 3e-4,1e-3,3e-3"
            )
        if not method.is_top:
            if self.top_blocks:
                raise Skip2BenchError(
                    f"top_blocks are of {list_names('is_top')}, and the method is {self.method}; "
                    "leave one of them out"
                )
            for name in LORA_TARGETS:
                if self.train.get(name) is not None:
                    raise Skip2BenchError(
                        f"{name!r} is no option of a sweep of {self.method}; it has no LoRA"
                    )
            return
        if self.budget_seconds is not None:
            raise Skip2BenchError(
                f"budget is {self.budget}, and each configuration of {self.method} is a whole run; "
                "give a number of configurations"
            )
        if self.blocks != DEFAULT_BLOCKS:
            raise Skip2BenchError(
                f"{self.method} adapts the last blocks; give --top-blocks in place of --blocks"
            )

    def _check_tried(self) -> None:
        for count in self.top_blocks:
            check_positive("top_blocks", count)
        _check_distinct("top_blocks", self.top_blocks)
        for name in ("blocks", "ranks", "features"):
            if not getattr(self, name):
                raise Skip2BenchError(
                    f"{name} is empty: there is nothing to try; name at least one"
                )
        for name in ("ranks", "learning_rates", "alphas", "dropouts", "weight_decays", "features"):
            _check_distinct(name, getattr(self, name))
        for rank in self.ranks:
            check_positive("ranks", rank, MAX_RANK)
        for name in self.features:
            check_choice("features", name, get_args(Features))

    @property
    def budget_configurations(self) -> int | None:
        """Configurations to begin with; None where the budget is a time."""
        if not re.fullmatch(r"[0-9]+", self.budget.strip()):
            return None
        number = int(self.budget.strip()[:18])
        if number < 2:
            raise Skip2BenchError(
                f"budget is {self.budget}: there is nothing to choose between; give 2 or more, or "
                "a time such as 5min"
            )
        return min(number, _MAX_CONFIGURATIONS)

    @property
    def budget_seconds(self) -> float | None:
        """Time for the sweep; None where the budget is a number of configurations."""
        if self.budget_configurations is not None:
            return None
        return parse_duration("budget", self.budget)

    def train_config(self, values: dict[str, Any]) -> TrainConfig:
        """A configuration of `train`: what holds for all, and `values` over it."""
        return make_train_config({"method": self.method} | self.train | values)


def _check_distinct(name: str, values: Sequence[Any]) -> None:
    if len(set(values)) < len(values):
        raise Skip2BenchError(f"{name} names a value twice; give each once")


def load_tune_config(flags: dict[str, Any], path: Path | None = None) -> TuneConfig:
    """Resolve the configuration of `tune`.

    Args:
        flags: Values given on the command line or by the caller, by field name; those of `train`
            among them.
        path: A YAML file with keys of `tune` and of `train`, or None.

    Raises:
        Skip2BenchError: the file cannot be read, or a key or value is unknown.
    """
    keys = own_keys(TuneConfig)
    method = METHODS.get(flags.get("method", TuneConfig.method), METHODS[TuneConfig.method])
    given = read_given(flags, path, keys, _TRIED_BY_ITSELF | ({} if method.is_top else _OF_LORA))
    if given.get("learning_rates") == "auto":
        del given["learning_rates"]
    own, train = split_given(given, keys, SET_BY_SWEEP, "is no option of a sweep")
    if name_model(train).get("checkpoint_dir") is None and train.get("data") is None:
        train, own = EMBEDDED_SIZES | train, {"finalists": 1} | own
    return TuneConfig(**coerce(TuneConfig, own), train=train)
