"""Who is trained again alone, by several seeds, and what is recommended in the end.

The runs are those of a comparison, each a process of its own; they read the sweep's cache. What is
compared with is the guide's preset, at the best that the sweep has found for it.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from skip2bench.compare.run import Within, run_comparison
from skip2bench.config.compare import CompareConfig
from skip2bench.config.options import default_of
from skip2bench.config.train import TrainConfig, make_train_config
from skip2bench.config.tune import TuneConfig
from skip2bench.results.comparison_records import ComparedConfiguration, ComparisonResult
from skip2bench.results.tune_records import GAIN_SHARES, Pick
from skip2bench.tune.entrant import Entrant, rank
from skip2bench.tune.space import Choice

_SAME_COST = 1.1
"""Within this factor of the cheapest, the more accurate one is taken."""
LOSS = "best_val_loss"
"""Of a run: the loss of the adapter that it keeps."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration that may be recommended."""

    entrant: Entrant
    val_loss: float
    cost: float
    """Of a step, in whatever unit all candidates have."""


def pick_by_purpose(candidates: Sequence[Candidate], initial_val_loss: float) -> dict[str, Entrant]:
    """By purpose, the cheapest candidate that has the gain it needs; empty without candidates."""
    if not candidates:
        return {}
    best = min(candidates, key=lambda it: it.val_loss)
    gain = initial_val_loss - best.val_loss
    picks = {}
    for purpose, share in GAIN_SHARES.items():
        needed = initial_val_loss - share * gain if gain > 0 else best.val_loss
        # rounding must not leave out the best one itself
        there = [it for it in candidates if it.val_loss <= needed or it is best]
        limit = _SAME_COST * min(it.cost for it in there)
        as_cheap = [it for it in there if it.cost <= limit]
        picks[purpose] = min(as_cheap, key=lambda it: (it.val_loss, it.cost)).entrant
    return picks | {"accurate": best.entrant}


def choose_finalists(
    entrants: Sequence[Entrant], initial_val_loss: float, most: int, guide: Choice
) -> list[Entrant]:
    """Whom to train again: the guide's preset first, then the picks, the most accurate before all.

    Args:
        entrants: All of the sweep.
        initial_val_loss: Of the base model.
        most: How many at most, the guide's not counted.
        guide: Its choice; of the entrants with its blocks, the best one stands for it.
    """
    finished = [one for one in rank(list(entrants)) if one.status == "finished"]
    candidates = [
        Candidate(entrant=one, val_loss=one.best_val_loss, cost=one.flops_per_position)
        for one in finished
    ]
    picks = pick_by_purpose(candidates, initial_val_loss)
    wanted = [picks[name] for name in ("accurate", "balanced", "fastest") if name in picks]
    chosen: list[Entrant] = []
    for one in [*wanted, *finished]:
        if one not in chosen and len(chosen) < most:
            chosen.append(one)
    of_guide = [
        one
        for one in entrants
        if one.choice.blocks == guide.blocks and one.status != "diverged" and one.curve
    ]
    if chosen and of_guide:
        reference = rank(of_guide)[0]
        chosen = [reference, *(one for one in chosen if one is not reference)]
    return chosen


def run_finalists(
    config: TuneConfig,
    finalists: Sequence[Entrant],
    folder: Path,
    within: Within,
    arguments: Sequence[str],
) -> ComparisonResult:
    """Train finalists as runs of a comparison; the first one is the baseline.

    Raises:
        KeyboardInterrupt: it was interrupted; called again, it goes on.
    """
    # the sweep is about the data that it was given
    shared = {"domain_text": "none"} | {
        key: value
        for key, value in config.train.items()
        if key not in finalists[0].choice.values() and key != "cache_dir"
    }
    entries = []
    for one in finalists:
        values = one.choice.values()
        rate = values.pop("learning_rate")
        entries.append(
            {"method": config.method, "label": one.choice.name, "learning_rates": [rate], **values}
        )
    comparison = CompareConfig(
        methods=(config.method,),
        baseline=config.method,
        bench=False,
        **config.engine_values(),
        seeds=config.seeds,
        configurations=tuple(entries),
        train=shared,
        out_dir=folder,
    )
    result = run_comparison(comparison, arguments, within)
    assert isinstance(result, ComparisonResult)
    return result


def recommend(
    config: TuneConfig,
    entrants: Sequence[Entrant],
    results: Mapping[str, ComparedConfiguration],
    initial_val_loss: float,
) -> tuple[Pick, ...]:
    """What to train for each purpose, and by which command.

    Args:
        config: Of the sweep.
        entrants: All of it.
        results: By entrant's name, what its own runs came to; without any, the sweep's losses of
            those that have finished count.
        initial_val_loss: Of the base model.
    """
    candidates = [
        Candidate(
            entrant=one,
            val_loss=results[one.choice.name].figures[LOSS].mean,
            cost=results[one.choice.name].figures["train_seconds"].median or 0.0,
        )
        for one in entrants
        if one.choice.name in results and LOSS in results[one.choice.name].figures
    ]
    is_tested = bool(candidates)
    if not candidates:
        candidates = [
            Candidate(entrant=one, val_loss=one.best_val_loss, cost=one.flops_per_position)
            for one in entrants
            if one.status == "finished"
        ]
    return tuple(
        Pick(
            purpose=purpose,
            configuration=one.choice.name,
            command=make_command(config, one.choice),
            is_tested=is_tested,
        )
        for purpose, one in pick_by_purpose(candidates, initial_val_loss).items()
    )


def make_command(config: TuneConfig, choice: Choice) -> str:
    """The command that trains a configuration: what was typed for the sweep, and its choices."""
    values = make_train_values(config.train) | choice.values()
    defaults = {item.name: default_of(item) for item in fields(TrainConfig)}
    words = ["skip2bench", "train", "--method", config.method]
    for name, value in values.items():
        is_needed = name in choice.needed or name in config.train
        if is_needed or value != defaults[name]:
            words += _flag(name, value)
    return shlex.join(words)


def make_train_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given of `train`'s options, as its configuration has it, but for nulls."""
    config = make_train_config(given)
    return {name: getattr(config, name) for name, value in given.items() if value is not None}


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    options = {item.name: item for item in fields(TrainConfig)}
    if isinstance(value, bool):
        if not value and options[name].metadata.get("one_way"):
            return []
        return [flag if value else f"--no-{name.replace('_', '-')}"]
    if isinstance(value, tuple):
        if options[name].metadata.get("repeatable"):
            return [word for one in value for word in (flag, str(one))]
        return [flag, ",".join(map(str, value))]
    return [flag, f"{value:.12g}" if isinstance(value, float) else str(value)]
