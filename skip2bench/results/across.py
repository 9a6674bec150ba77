"""`across.json`: one comparison on several data sets, summed up over them.

A run's gain is the share it reached of what the baseline gained on the same data: its fall of the
validation loss / the mean fall of the baseline's runs, so that losses of any size compare. Runs of
all data sets together are summed up by the interquartile mean, each data set with the same weight
however many runs it has, with intervals of a bootstrap that draws runs anew within each data set,
the baseline's among them, and compared by the probability of improvement (Agarwal et al., "Deep
Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021).
"""

import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from skip2bench.io.record import (
    Count,
    Flag,
    Record,
    SignedNumber,
    Text,
    Texts,
    sentence,
)
from skip2bench.machine.environment_record import DataRecord
from skip2bench.results.comparison_records import ComparedConfiguration, ComparisonResults
from skip2bench.results.plain import DamagedFileError, read_optional
from skip2bench.results.reading import ACROSS_FILE, find_run, is_comparison, read_comparison
from skip2bench.results.run_records import Versioned

RESAMPLES = 2000
"""Of the bootstrap; drawn from one fixed seed, so that the same runs give the same interval."""
_FEWEST_RUNS = 2
"""Of a data set, below which drawing anew changes nothing and no interval is given."""

ByData = Mapping[str, Sequence[float]]
"""By data set, a value a run."""


class AcrossFigure(Record):
    """A figure over all data sets, with the 95 % interval of the bootstrap."""

    value: SignedNumber
    low: SignedNumber | None
    """None where a data set has a single run."""
    high: SignedNumber | None


class AcrossConfiguration(Record):
    """A configuration over the data sets."""

    name: Text
    label: Text
    method: Text | None
    is_baseline: Flag
    data_sets: Texts
    """Those on which it has runs that can be summed up, by name."""
    runs: Count
    gain: AcrossFigure | None
    """Interquartile mean of its runs' gains; None without a run."""
    by_data: dict[str, SignedNumber]
    """By data set, the mean gain."""
    improvement: AcrossFigure | None = None
    """The probability that a run of it ends at a lower validation loss than one of the baseline's,
    averaged over the data sets; None for the baseline."""
    time_ratio: AcrossFigure | None = None
    """Its training clock over the baseline's, paired by seed: the geometric mean over data sets."""
    is_disturbed: Flag = False
    """True where something else used the processor during a run whose time is in it."""
    score: AcrossFigure | None = None
    """Interquartile mean of its runs' scores; None where no answers were asked for."""


class AcrossData(Record):
    """A data set, and the comparison on it."""

    name: Text
    folder: Text
    """Beside this file."""
    samples: Count | None
    baseline_gain: SignedNumber | None
    """Mean fall of the baseline's validation loss; None where it has no run."""
    is_summed_up: Flag
    """False where the baseline did not gain, so that there is nothing to measure gains by."""


def _check_names(data_sets: tuple[AcrossData, ...]) -> tuple[AcrossData, ...]:
    for one in data_sets:
        if one.folder in ("", ".", "..") or any(letter in one.folder for letter in "/\\\0"):
            raise sentence(f"the folder {one.folder!r} is not below the one of this file")
    return data_sets


class AcrossResults(Versioned):
    """What a comparison on several data sets found so far."""

    written_at: Text | None = None
    command: Text | None = None
    config: dict[str, Any]
    """As in `config.yaml`."""
    data_sets: Annotated[tuple[AcrossData, ...], AfterValidator(_check_names)]
    configurations: tuple[AcrossConfiguration, ...]
    resamples: Count


class AcrossResult(AcrossResults):
    """What `compare` prints of several data sets: the results, and where they lie."""

    folder: Text
    error: Text | None = None


@dataclass(frozen=True, kw_only=True)
class DataSetResults:
    """What was found on one data set."""

    name: str
    folder: str
    samples: int | None
    results: ComparisonResults


def read_across(folder: Path) -> AcrossResults | None:
    """What the folder above a comparison's says of several data sets; None where it says nothing.

    Raises:
        DamagedFileError: the file cannot be read or trusted.
    """
    return read_optional(AcrossResults, folder / ACROSS_FILE)


def read_data_set(folder: Path, data: DataRecord) -> DataSetResults:
    """What was found on one data set.

    Raises:
        DamagedFileError: there is no comparison in the folder, or it cannot be read.
    """
    run = find_run(folder)
    if not is_comparison(run):
        raise DamagedFileError(f"it holds a {run.kind} run, where a comparison was expected")
    return DataSetResults(
        name=data.name or "-",
        folder=folder.name,
        samples=data.samples,
        results=read_comparison(run),
    )


def summarise_across(
    found: Sequence[DataSetResults],
) -> tuple[tuple[AcrossData, ...], tuple[AcrossConfiguration, ...]]:
    """What configurations come to over several data sets.

    Args:
        found: Comparisons of the same configurations; one that lacks some counts for the others.
    """
    data_sets, measured = [], []
    found = _name_apart(found)
    for one in found:
        runs = _read_baseline(one.results)
        unit = statistics.fmean(run["gain"] for run in runs.values()) if runs else None
        is_summed_up = unit is not None and unit > 0
        data_sets.append(
            AcrossData(
                name=one.name,
                folder=one.folder,
                samples=one.samples,
                baseline_gain=unit,
                is_summed_up=is_summed_up,
            )
        )
        if is_summed_up:
            measured.append(one)
    entries: dict[str, ComparedConfiguration] = {}
    for one in found:
        for entry in one.results.configurations:
            entries.setdefault(entry.name, entry)
    return tuple(data_sets), tuple(
        _summarise(entry, [(one.name, one.results) for one in measured])
        for entry in entries.values()
    )


def _name_apart(found: Sequence[DataSetResults]) -> list[DataSetResults]:
    """The same, those of one name with their folder behind it."""
    shared = Counter(one.name for one in found)
    return [
        replace(one, name=f"{one.name} ({one.folder})") if shared[one.name] > 1 else one
        for one in found
    ]


Runs = Mapping[int, Mapping[str, float]]
"""By seed, a run's `gain` (a fall of the loss, in nats), `loss`, `seconds`, and `score`."""


def _read_baseline(results: ComparisonResults) -> Runs:
    baseline = [entry for entry in results.configurations if entry.is_baseline]
    return _read_runs(results, baseline[0]) if baseline else {}


def _read_runs(results: ComparisonResults, entry: ComparedConfiguration) -> Runs:
    """The runs of a configuration that its figures are of."""
    found = {}
    for _, cell in results.cells_of(entry):
        figures = cell.figures
        if {"initial_val_loss", "final_val_loss"} <= figures.keys():
            loss = figures["final_val_loss"]
            run = {"loss": loss, "gain": figures["initial_val_loss"] - loss}
            known = {"seconds": "train_seconds", "score": "score"}
            run |= {name: figures[key] for name, key in known.items() if key in figures}
            found[cell.seed] = run
    return found


@dataclass(frozen=True, kw_only=True)
class _Sides:
    """Runs of a configuration and of the baseline on one data set."""

    own: Runs
    base: Runs
    is_disturbed: bool
    """True where their times are."""

    def list_pair(self, name: str) -> tuple[list[float], list[float]]:
        """A figure of the runs of both sides."""
        own, base = ([run[name] for run in side.values()] for side in (self.own, self.base))
        return own, base

    def list_ratios(self) -> list[float]:
        """Logarithms of ratios of training times, paired by seed."""
        own, base = self.own, self.base
        return [
            math.log(own[seed]["seconds"] / base[seed]["seconds"])
            for seed in sorted(own.keys() & base.keys())
            if min(own[seed].get("seconds", 0.0), base[seed].get("seconds", 0.0)) > 0
        ]


def _read_sides(entry: ComparedConfiguration, results: ComparisonResults) -> _Sides | None:
    """What a configuration of the same name has there; None where nothing counts."""
    own = next((it for it in results.configurations if it.name == entry.name), None)
    runs = _read_runs(results, own) if own else {}
    if own is None or not runs:
        return None
    ratio = own.against_baseline.get("train_seconds")
    is_disturbed = bool(ratio and ratio.is_disturbed)
    return _Sides(own=runs, base=_read_baseline(results), is_disturbed=is_disturbed)


def _summarise(
    entry: ComparedConfiguration, measured: Sequence[tuple[str, ComparisonResults]]
) -> AcrossConfiguration:
    found = {name: _read_sides(entry, results) for name, results in measured}
    sides = {name: it for name, it in found.items() if it is not None}
    gains = {name: it.list_pair("gain") for name, it in sides.items()}
    losses = {name: it.list_pair("loss") for name, it in sides.items()}
    scores = {
        name: [run["score"] for run in it.own.values()]
        for name, it in sides.items()
        if all("score" in run for run in it.own.values())
    }
    ratios = {name: paired for name, it in sides.items() if (paired := it.list_ratios())}
    is_other = not entry.is_baseline
    return AcrossConfiguration(
        name=entry.name,
        label=entry.label,
        method=entry.method,
        is_baseline=entry.is_baseline,
        data_sets=tuple(gains),
        runs=sum(len(own) for own, _ in gains.values()),
        gain=_estimate_gain(gains, is_baseline=entry.is_baseline) if gains else None,
        by_data={
            name: statistics.fmean(own) / statistics.fmean(base)
            for name, (own, base) in gains.items()
        },
        improvement=_estimate_improvement(losses) if losses and is_other else None,
        time_ratio=estimate(ratios, _geometric_mean) if ratios and is_other else None,
        is_disturbed=any(sides[name].is_disturbed for name in ratios),
        score=estimate(scores, _interquartile_mean_of_all) if scores else None,
    )


def interquartile_mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """The mean of the middle half.

    Where a quarter of the values is no whole number, those at the ends of the middle half count
    with the part of them that lies in it.

    Args:
        values: At least one.
        weights: Of each; None for all alike.
    """
    pairs = sorted(zip(values, weights or [1.0] * len(values), strict=True))
    total = sum(weight for _, weight in pairs)
    inside, begin = [], 0.0
    for _, weight in pairs:
        end = begin + weight
        inside.append(max(0.0, min(end, 0.75 * total) - max(begin, 0.25 * total)))
        begin = end
    return sum(w * value for w, (value, _) in zip(inside, pairs, strict=True)) / sum(inside)


def probability_of_improvement(own: Sequence[float], baseline: Sequence[float]) -> float:
    """The share of pairs in which the first has the lower value; of equal ones, half."""
    wins = sum((x < y) + 0.5 * (x == y) for x in own for y in baseline)
    return wins / (len(own) * len(baseline))


def estimate(by_data: ByData, figure: Callable[[ByData], float]) -> AcrossFigure:
    """A figure over data sets, and its interval: runs are drawn anew within each data set.

    Args:
        by_data: At least one value each.
        figure: Of values by data set.
    """
    return _bootstrap(
        figure(by_data),
        [*by_data.values()],
        lambda drawn: figure(dict(zip(by_data, drawn, strict=True))),
    )


def _estimate_gain(
    gains: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, is_baseline: bool
) -> AcrossFigure:
    """Of falls of the loss, a configuration's own and the baseline's by data set."""
    units = [statistics.fmean(base) for _, base in gains.values()]

    def share(sides: Sequence[Sequence[float]]) -> float:
        owns = sides if is_baseline else sides[::2]
        bases = sides if is_baseline else sides[1::2]
        drawn = [statistics.fmean(base) for base in bases]
        return _interquartile_mean_of_all(
            {
                number: [gain / (unit if unit > 0 else known) for gain in own]
                for number, (own, unit, known) in enumerate(zip(owns, drawn, units, strict=True))
            }
        )

    if is_baseline:
        sides = [own for own, _ in gains.values()]
    else:
        sides = [side for pair in gains.values() for side in pair]
    return _bootstrap(share(sides), sides, share)


def _estimate_improvement(
    losses: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> AcrossFigure:
    def average(sides: Sequence[Sequence[float]]) -> float:
        pairs = zip(sides[::2], sides[1::2], strict=True)
        return statistics.fmean(probability_of_improvement(*pair) for pair in pairs)

    sides = [side for pair in losses.values() for side in pair]
    return _bootstrap(average(sides), sides, average)


def _bootstrap(
    value: float,
    strata: Sequence[Sequence[float]],
    figure: Callable[[list[list[float]]], float],
) -> AcrossFigure:
    if min(map(len, strata)) < _FEWEST_RUNS:
        return AcrossFigure(value=value, low=None, high=None)
    draw = random.Random(0).choices
    found = sorted(
        figure([draw(values, k=len(values)) for values in strata]) for _ in range(RESAMPLES)
    )
    edge = round(0.025 * RESAMPLES)
    return AcrossFigure(value=value, low=found[edge], high=found[-1 - edge])


def _interquartile_mean_of_all(by_data: Mapping[Any, Sequence[float]]) -> float:
    """Over all runs, each data set with the same weight."""
    return interquartile_mean(
        [value for values in by_data.values() for value in values],
        [1 / len(values) for values in by_data.values() for _ in values],
    )


def _geometric_mean(logs: ByData) -> float:
    return math.exp(statistics.fmean(statistics.fmean(values) for values in logs.values()))
