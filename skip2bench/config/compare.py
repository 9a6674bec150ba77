"""What `skip2bench compare` runs: flows, flags and YAML files of a matrix.

Values come from: defaults < the flow < a YAML file < flags. A key that is none of the comparison's
own is one of `train`, and holds for every cell.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from skip2bench.config.engine import EngineConfig
from skip2bench.config.matrix import own_keys, read_given, split_given
from skip2bench.config.methods import METHODS, TRADITIONAL, MethodName
from skip2bench.config.options import (
    check_choice,
    check_positive,
    coerce,
    option,
    option_names,
    refuse_unknown,
)
from skip2bench.config.peers import PeerName
from skip2bench.config.train import TrainConfig, make_train_config
from skip2bench.errors import Skip2BenchError
from skip2bench.io.units import parse_bytes

Flow = Literal["minimal", "small", "detailed"]
Match = Literal["params", "memory", "time"]
TimeFor = Literal["epochs", "samples"]

OWN_TRAIN_KEYS: dict[str, str] = {
    item.name: item.metadata["set_by_matrix"]
    for item in fields(TrainConfig)
    if "set_by_matrix" in item.metadata
}
"""Fields of `train` that the matrix sets for each cell, and what to do instead."""
_UNMATCHED = {
    "memory": ("gradient_checkpointing", "quantize", "compile", "stream_blocks"),
    "time": ("patience", "compile"),
}
"""Options of `train` with which the projection of memory is another, or a run ends before."""
_MAX_SEEDS = 1000
FEW_SEEDS, MANY_SEEDS = 3, 10
"""What `seeds` auto gives each configuration, and those whose runs are short."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(EngineConfig):
    """Which cells a comparison has: configurations × learning rates × seeds."""

    flow: Flow = option(
        "small",
        "Size of the matrix: minimal (minutes), small (about an hour) or detailed (hours).",
        role="matrix",
    )
    methods: tuple[str, ...] = option(
        ("lora", "lora-all", "skip2"), "Methods to compare, comma-separated.", role="matrix"
    )
    blocks: tuple[str, ...] = option(
        ("fast", "balanced", "accurate", "all"),
        "Blocks of the Skip methods, as train takes them; repeat the flag for several.",
        repeatable=True,
        role="matrix",
    )
    top_blocks: tuple[int, ...] = option(
        (),
        "How many of the last blocks LoRA-Top adapts; several with commas (default: a quarter).",
        role="matrix",
    )
    data_sets: tuple[str, ...] = option(
        (),
        "Compare on several data sets, each as --data takes it, and sum up over them; repeat the "
        "flag.",
        repeatable=True,
        role="matrix",
    )
    seeds: int | Literal["auto"] = option(
        3,
        "Runs of each configuration: with --seed, the one after it, and so on; auto: 3, and 10 "
        "where they are short.",
        role="matrix",
    )
    learning_rates: tuple[float, ...] | Literal["auto"] = option(
        (),
        "Grid for every method, comma-separated; the best of each is compared. auto: around each "
        "one's default, and beyond while the best is at an edge, by one seed.",
        role="matrix",
    )
    match_params: bool = option(
        False,
        "The same as --match params.",
        role="matrix",
        one_way=True,
    )
    match: Match | None = option(
        None,
        "Make all equal the baseline in one thing: params or memory by each adapter's rank, time "
        "by the number of epochs, or of samples.",
        role="matrix",
    )
    time_for: TimeFor = option(
        "epochs",
        "What --match time gives each as much of as the baseline's time holds: epochs, or training "
        "samples, of which the baseline has --train-samples.",
        role="matrix",
    )
    baseline: MethodName = option(
        TRADITIONAL, "Method that the others are compared with.", role="matrix"
    )
    target_loss: float | None = option(
        None,
        "Validation loss to reach (default: the baseline's final one on the same seed).",
        role="matrix",
    )
    peers: tuple[str, ...] = option(
        (),
        "LoRA that others wrote, on the same data: litgpt; and with the extra 'peers' peft, "
        "peft-dora, peft-rslora.",
        role="matrix",
    )
    bench: bool = option(
        True, "Run the micro-benchmark of the same configurations first.", role="matrix"
    )
    aa: bool = option(
        False, "Run the baseline once more under another name.", role="matrix", one_way=True
    )
    best_batch: bool = option(
        False,
        "With --micro-batch-size auto: run each at its own largest micro-batch too.",
        role="matrix",
        one_way=True,
    )
    max_memory: str | None = option(
        None,
        "Cap on the memory of each cell, such as 8GiB (Linux): beyond it, the cell is oom.",
        role="matrix",
    )
    configurations: tuple[dict[str, Any], ...] = field(
        default=(), metadata={"help": "", "role": "matrix"}
    )
    """From YAML alone, in place of methods × blocks: `method`, and `label`, `blocks`,
    `learning_rates`, `max_memory` or any key of `train`."""
    train: dict[str, Any] = field(default_factory=dict, metadata={"help": "", "role": "matrix"})
    """Values of `train` for every cell, by field name."""
    resume: bool = option(
        True, "Go on with the newest comparison of the same configuration.", role="call"
    )
    force: bool = option(
        False,
        "Replace runs in the folder that were made with another configuration.",
        role="call",
        one_way=True,
    )
    repeat_disturbed: bool = option(
        False,
        "Run those runs again whose times something else disturbed.",
        role="call",
        one_way=True,
    )
    register: bool = option(
        False,
        "Before the first run, write down what will run and be compared, to be checked later.",
        role="call",
        one_way=True,
    )
    lm_eval: tuple[str, ...] = option(
        (),
        "Tasks of lm-evaluation-harness, comma-separated, that each configuration's exported model "
        "is asked after the runs; with the extra 'eval'.",
        role="call",
    )
    lm_eval_tasks: Path | None = option(
        None, "Folder with YAML files of tasks of your own for --lm-eval.", role="call"
    )
    lm_eval_limit: int | None = option(
        None, "Samples of each task that --lm-eval asks, at most.", role="call"
    )
    lm_eval_chat: bool = option(
        True, "Put the prompts of --lm-eval into the prompt style of the runs.", role="call"
    )
    dry_run: bool = option(
        False, "Say what would run and how long it would take, and stop.", role="call", one_way=True
    )
    out_dir: Path | None = option(
        None, "Folder of the comparison (default: below results).", role="call"
    )

    def __post_init__(self) -> None:
        self._check_engine()
        check_choice("flow", self.flow, get_args(Flow))
        for name in self.methods:
            check_choice("methods", name, get_args(MethodName))
        check_choice("baseline", self.baseline, get_args(MethodName))
        for name in self.peers:
            check_choice("peers", name, get_args(PeerName))
        if self.seeds != "auto":
            check_positive("seeds", self.seeds, _MAX_SEEDS)
        self._check_match()
        self._check_data_sets()
        self._check_lm_eval()
        if self.target_loss is not None and not 0 < self.target_loss < math.inf:
            raise Skip2BenchError(f"target_loss is {self.target_loss}; give a number above 0")
        _check_max_memory(self.max_memory)
        if self.best_batch and self.train.get("micro_batch_size") != "auto":
            raise Skip2BenchError(
                "best_batch runs the largest micro-batches that fit; add --micro-batch-size auto"
            )
        first_seed = self.cell_config({}).seed  # raises where a value of `train` is not good
        most_seeds = MANY_SEEDS if self.seeds == "auto" else self.seeds
        if first_seed + most_seeds > 2**32:
            raise Skip2BenchError(
                f"seed {first_seed} and the {most_seeds - 1} after it go beyond {2**32 - 1}; "
                "give a smaller --seed"
            )
        if self.learning_rates != "auto":
            self._check_rates("", self.learning_rates)
        for number, entry in enumerate(self.configurations, start=1):
            _check_configuration(entry, number)
            where = f"of configuration {number}"
            if entry.get("learning_rates") != "auto":
                self._check_rates(where, entry.get("learning_rates") or ())
            own = {key: value for key, value in entry.items() if key not in _CONFIGURATION_KEYS}
            self._check_matched(self.cell_config(own))

    @property
    def matched(self) -> Match | None:
        """In what all are made equal to the baseline; None where they run as they are."""
        return "params" if self.match_params else self.match

    def _check_match(self) -> None:
        if self.match is not None:
            check_choice("match", self.match, get_args(Match))
        check_choice("time_for", self.time_for, get_args(TimeFor))
        if self.time_for == "samples" and self.match != "time":
            raise Skip2BenchError("--time-for samples is of --match time; add it")
        if self.match_params and self.match not in (None, "params"):
            raise Skip2BenchError(
                f"match is {self.match!r} and match_params asks for params; leave one of them out"
            )
        if self.match not in ("memory", "time"):
            return
        if self.best_batch:
            raise Skip2BenchError(
                f"--match {self.match} compares at one micro-batch; leave --best-batch out"
            )
        if self.time_for == "samples" and self.cell_config({}).train_samples is None:
            raise Skip2BenchError(
                "--time-for samples gives each more samples than the baseline has, or fewer; say "
                "how many that has with --train-samples"
            )
        self._check_matched(self.cell_config({}))

    def _check_matched(self, cell: TrainConfig) -> None:
        """Check that what is to be made equal can be told of a configuration's runs."""
        if self.match not in ("memory", "time"):
            return
        if self.match == "time" and cell.max_steps is not None:
            raise Skip2BenchError(
                "--match time sets the number of epochs, and max_steps ends runs before; give "
                "--epochs in place of --max-steps"
            )
        for name in _UNMATCHED[self.match]:
            if getattr(cell, name):
                raise Skip2BenchError(
                    f"--match {self.match} cannot tell what runs with {name} take; leave one of "
                    "them out"
                )

    def _check_lm_eval(self) -> None:
        if self.lm_eval_limit is not None:
            check_positive("lm_eval_limit", self.lm_eval_limit)
        given = [
            name for name in ("lm_eval_tasks", "lm_eval_limit") if getattr(self, name) is not None
        ]
        if given and not self.lm_eval:
            raise Skip2BenchError(f"{given[0]} is of --lm-eval, which names no task; add it")

    def _check_data_sets(self) -> None:
        if not self.data_sets:
            return
        if "data" in self.train:
            raise Skip2BenchError(
                f"data is {self.train['data']!r} beside data_sets; give all of them as --data-sets"
            )
        if len(self.data_sets) == 1:
            raise Skip2BenchError(
                f"data_sets names {self.data_sets[0]!r} alone; give it as --data, or a second one"
            )
        if len(set(self.data_sets)) < len(self.data_sets):
            raise Skip2BenchError("data_sets names a data set twice; give each once")
        if self.target_loss is not None:
            raise Skip2BenchError(
                f"target_loss {self.target_loss} is of one data set; leave it out beside data_sets"
            )
        if any("data" in entry for entry in self.configurations):
            raise Skip2BenchError(
                "a configuration has data of its own beside data_sets; leave one of them out"
            )

    def for_data(self, data: str, folder: Path) -> "CompareConfig":
        """The comparison on one data set, in a folder of its own."""
        train = self.train | {"data": data}
        return replace(self, data_sets=(), train=train, out_dir=folder)

    def _check_rates(self, where: str, rates: Collection[Any]) -> None:
        for rate in rates:
            if rate == "auto":
                raise Skip2BenchError(
                    f"learning_rates {where} has auto among its rates; write auto alone, or numbers"
                )
            self.cell_config({"learning_rate": rate})
        if len(set(map(float, rates))) < len(rates):
            raise Skip2BenchError(
                f"learning_rates {where}".rstrip() + " names a rate twice; give each once"
            )

    def cell_config(self, values: dict[str, Any]) -> TrainConfig:
        """A cell's configuration: what holds for all, and `values` over it."""
        return make_train_config(self.train | values)


_FLOWS: dict[str, dict[str, Any]] = {
    "minimal": {
        # LoRA on every layer costs as much as LoRA again, which its minutes do not hold
        "methods": ("lora", "skip2"),
        "blocks": ("fast", "balanced"),
        **{"train_samples": 80, "max_steps": 20, "eval_interval": 10},
    },
    "small": {},
    "detailed": {
        "methods": tuple(name for name, it in METHODS.items() if not it.is_top or it.is_cached),
        **{"learning_rates": "auto", "seeds": 5, "aa": True},
    },
}
_MINIMAL_EPOCHS = 4
"""As many as the steps of flow minimal are, at the usual global batch."""
_OWN_KEYS = own_keys(CompareConfig)


def load_compare_config(flags: dict[str, Any], path: Path | None = None) -> CompareConfig:
    """Resolve the configuration of `compare`.

    Args:
        flags: Values given on the command line or by the caller, by field name; those of `train`
            among them.
        path: A YAML file with keys of `compare` and of `train`, or None.

    Raises:
        Skip2BenchError: the file cannot be read, or a key or value is unknown.
    """
    given = read_given(flags, path, _OWN_KEYS)
    flow = given.get("flow", CompareConfig.flow)
    check_choice("flow", flow, get_args(Flow))
    says = "is set for each cell by the matrix"
    own, train = split_given(_list_values(flow, given) | given, _OWN_KEYS, OWN_TRAIN_KEYS, says)
    listed = own.pop("configurations", None) or ()
    if not isinstance(listed, list | tuple) or not all(isinstance(e, dict) for e in listed):
        raise Skip2BenchError("configurations is no list of mappings; write '- method: lora'")
    return CompareConfig(**coerce(CompareConfig, own), configurations=tuple(listed), train=train)


def _list_values(flow: Flow, given: dict[str, Any]) -> dict[str, Any]:
    """What a flow sets; where epochs are to be chosen, its runs are measured in epochs too."""
    values = dict(_FLOWS[flow])
    if given.get("match") == "time" and "max_steps" in values:
        del values["max_steps"]
        values["epochs"] = _MINIMAL_EPOCHS
    return values


_CONFIGURATION_KEYS = frozenset(("label", "learning_rates", "max_memory"))
_NOT_ITS_OWN = {*OWN_TRAIN_KEYS, *option_names(TrainConfig, "call", "repetition")}
"""Fields of `train` that a configuration does not choose, but for its method."""


def _check_configuration(entry: dict[str, Any], number: int) -> None:
    known = {
        "method",
        *(item.name for item in fields(TrainConfig) if item.name not in _NOT_ITS_OWN),
    }
    if "method" not in entry:
        raise Skip2BenchError(f"configuration {number} has no method; add one")
    refuse_unknown(entry, known | _CONFIGURATION_KEYS)
    if "checkpoint_dir" in entry:
        raise Skip2BenchError(
            f"configuration {number} has a checkpoint_dir of its own; all are compared on one "
            "model, so set it once, outside configurations"
        )
    rates = entry.get("learning_rates", [])
    if rates != "auto" and not isinstance(rates, list | tuple):
        raise Skip2BenchError(
            f"learning_rates of configuration {number} is {rates!r}; write a list such as [3e-3]"
        )
    label = entry.get("label", "-")
    if not isinstance(label, str) or not label.strip() or not label.isprintable():
        raise Skip2BenchError(f"label of configuration {number} is {label!r}; give a line of text")
    _check_max_memory(entry.get("max_memory"))


def _check_max_memory(value: Any) -> None:
    if value is not None and not parse_bytes("max_memory", str(value)):
        raise Skip2BenchError("max_memory is 0; give a size such as 8GiB, or leave it out")
