"""What makes all equal the baseline in one thing: ranks, or numbers of epochs or of samples.

At equal parameters and at equal memory each adapter gets a rank: from the count of parameters,
which is `matrix`'s business, or the largest whose peak, as `doctor` projects it, is not above the
baseline's. At equal time each gets as many epochs as the baseline's training clock holds: its own
first run gives the baseline's seconds, and a short run of each other gives the seconds of an epoch,
building a cache counted once. Or it keeps the epochs, and gets as many training samples as that
clock holds, each of which costs its share of building and of every epoch. What was decided is kept
in the comparison's folder, so that one that goes on keeps it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from litgpt.config import Config
from pydantic import ValidationError

from skip2bench.cache.arrays import Tier
from skip2bench.cache.plan import measure_free
from skip2bench.compare.folder import describe_cell, make_key
from skip2bench.compare.matrix import (
    Cell,
    Configuration,
    Role,
    change_values,
    find_baseline,
    make_cell,
)
from skip2bench.compare.plan import ComparisonPlan
from skip2bench.config.compare import CompareConfig
from skip2bench.io.console import Waiting, note, warn
from skip2bench.io.whole import write_json
from skip2bench.projection.methods import Projector, prepare_projection
from skip2bench.projection.sizes import MethodProjection
from skip2bench.projection.subject import Subject
from skip2bench.results.comparison_records import Limit, Matched, Matching
from skip2bench.results.figures import CellResult, read_figures

FILE = "matching.json"
"""In the comparison's folder: what each configuration was given."""
MOST_EPOCHS = 200
"""No run gets more to fill the baseline's time."""
PACE_EPOCHS = 2
"""Of the short run that gives the seconds of an epoch, at most."""

Matches = dict[str, Matched]
"""By the name of a configuration."""


def settle_matches(plan: ComparisonPlan, matches: Mapping[str, Matched]) -> ComparisonPlan:
    """The comparison with the ranks, epochs or samples that were decided."""
    config, model = plan.config, plan.training.model_config
    settled = [_settle(config, one, matches.get(one.name), model) for one in plan.configurations]
    return replace(plan, configurations=settled, matches=dict(matches))


def _settle(
    config: CompareConfig, one: Configuration, match: Matched | None, model: Config
) -> Configuration:
    rank_name = one.settings.method.rank_name
    if match is None:
        return one
    if config.matched == "time":  # peers and controls too
        given = {"epochs": match.epochs, "train_samples": match.train_samples}
        changes = {name: number for name, number in given.items() if number is not None}
        return replace(one, values=one.values | changes)
    if rank_name is None or match.rank == one.settings.rank:
        return one
    return change_values(config, one, {rank_name: match.rank}, model)


def match_key(plan: ComparisonPlan) -> str:
    """Hash of all that the decisions follow from."""
    cells = [_first_cell(plan.config, one) for one in plan.configurations]
    described = [describe_cell(cell, plan.training.data.sha256) for cell in cells]
    matched = {"match": plan.config.matched, "time_for": plan.config.time_for}
    return make_key(matched | {"cells": described}, plan.environment)


def read_matches(folder: Path, key: str) -> Matches | None:
    """What was decided under a key; None where nothing was, or from a run that failed."""
    kept = _read_kept(folder)
    if kept is None or kept.key != key or _list_failed(kept):
        return None
    return dict(kept.configurations)


def list_undecided(folder: Path) -> list[str]:
    """Configurations that ran as they were, as the run that was to decide had failed."""
    kept = _read_kept(folder)
    return _list_failed(kept) if kept is not None else []


def _list_failed(kept: Matching) -> list[str]:
    return [name for name, one in kept.configurations.items() if one.limit == "failed"]


def _read_kept(folder: Path) -> Matching | None:
    try:
        return Matching.read(json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None  # never decided, half of it, or another version's


def write_matches(folder: Path, match: str, key: str, matches: Mapping[str, Matched]) -> None:
    """Keep what was decided for when the comparison goes on."""
    content = Matching(match=match, key=key, configurations=dict(matches))
    write_json(folder / FILE, content)


# equal parameters


def describe_parameters(plan: ComparisonPlan) -> Matches:
    """Ranks that `matrix` has set already, and how close they come."""
    baseline = find_baseline(plan.config, plan.configurations)
    return {
        one.name: Matched(
            rank=one.settings.rank,
            ratio=one.trainable_parameters / baseline.trainable_parameters,
            limit=None if _has_free_rank(one, baseline) else _why_fixed(one, baseline),
        )
        for one in plan.configurations
    }


# equal memory


def match_memory(plan: ComparisonPlan) -> Matches:
    """For each configuration the largest rank whose projected peak is not above the baseline's.

    The rank is at most the model's width: no product of two matrices gains by more.
    """
    baseline = find_baseline(plan.config, plan.configurations)
    with Waiting("ranks of equal memory"):
        first = _make_projector(plan, baseline).project(baseline.settings)
        found = {}
        for one in plan.configurations:
            if not _has_free_rank(one, baseline):
                found[one.name] = _compare_peak(plan, one, first, _why_fixed(one, baseline))
            elif first.peak_bytes is None:
                found[one.name] = Matched(rank=one.settings.rank, ratio=None, limit="unknown")
            else:
                found[one.name] = _match_peak(plan, one, first)
    for one in plan.configurations:
        note(f"  {one.label}: {_say(found[one.name], 'rank')} of the baseline's projected peak")
    return found


def _match_peak(plan: ComparisonPlan, one: Configuration, first: MethodProjection) -> Matched:
    config, model = plan.config, plan.training.model_config
    rank_name, most = one.settings.method.rank_name, model.n_embd
    assert rank_name is not None
    projector = _make_projector(plan, one)
    ratios: dict[int, float] = {}

    def fits(rank: int) -> bool:
        changed = change_values(config, one, {rank_name: rank}, model)
        ratio = _peak_ratio(projector.project(changed.settings), first)
        if ratio is None:  # shapes that depend on values, as in mixtures of experts
            return False
        ratios[rank] = ratio
        return ratio <= 1

    rank = find_largest(fits, most)
    if rank not in ratios:
        return Matched(rank=one.settings.rank, ratio=None, limit="unknown")
    limit: Limit | None = "lowest" if ratios[rank] > 1 else "highest" if rank == most else None
    return Matched(rank=rank, ratio=ratios[rank], limit=limit)


def _compare_peak(
    plan: ComparisonPlan, one: Configuration, first: MethodProjection, why: Limit
) -> Matched:
    """Of a configuration whose rank is what it is; a peer's peak cannot be projected."""
    ratio = None
    if not one.peer:
        ratio = _peak_ratio(_make_projector(plan, one).project(one.settings), first)
    return Matched(rank=one.settings.rank, ratio=ratio, limit=why)


def _peak_ratio(own: MethodProjection, first: MethodProjection) -> float | None:
    """Peak / the baseline's; what the process itself takes is the same for both."""
    if own.peak_bytes is None or first.peak_bytes is None:
        return None
    return (own.peak_bytes - own.process_bytes + first.process_bytes) / first.peak_bytes


def find_largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that fits, where all below one that fits do; or 1."""
    low, high = 1, 2
    if not fits(1):
        return 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    if low < most < high and fits(most):
        return most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _make_projector(plan: ComparisonPlan, one: Configuration) -> Projector:
    """What projects runs of a configuration at any rank, on the data and device of all."""
    training, cell = plan.training, plan.config.cell_config(one.values)
    free: dict[Tier, int | None] = {**measure_free(training.device, cell.cache_dir or Path())}
    size = cell.micro_batch_size
    return prepare_projection(
        Subject(
            name=training.model_name,
            model_config=training.model_config,
            training=cell,
            has_tokenizer=True,
            data=training.data,
        ),
        training.device,
        training.precision,
        size if isinstance(size, int) else training.micro_batch_size or 1,
        free,
    )


# equal time


def list_pace_cells(config: CompareConfig, configurations: Sequence[Configuration]) -> list[Cell]:
    """A short run of every configuration whose epochs or samples are to be found.

    The baseline needs none: its own first run counts.
    """
    baseline = find_baseline(config, configurations)
    cells = []
    for one in configurations:
        if one is baseline or one.is_aa:
            continue
        epochs = min(config.cell_config(one.values).epochs, PACE_EPOCHS)
        short = replace(one, values=one.values | {"epochs": epochs})
        cell = _first_cell(config, short, "pace")
        cells.append(replace(cell, name=f"{one.name}-pace"))
    return cells


def find_first_cell(plan: ComparisonPlan) -> Cell:
    """The baseline's run whose training clock the others are to take."""
    return _first_cell(plan.config, find_baseline(plan.config, plan.configurations))


def match_time(plan: ComparisonPlan, results: Mapping[str, CellResult]) -> Matches:
    """For each configuration the epochs, or samples, that the baseline's training clock holds.

    One epoch at least, or one global batch.

    Args:
        plan: The comparison.
        results: Of the baseline's first run, which has ended well, and of the short ones, by cell.
    """
    disturbed = [name for name, it in results.items() if "train_seconds" in it.disturbed]
    if disturbed:
        warn(
            f"the {plan.config.time_for} of equal time rest on {', '.join(disturbed)}, which "
            "something else disturbed: they may be too many or too few; start anew on a quiet "
            "machine"
        )
    baseline = find_baseline(plan.config, plan.configurations)
    clock = find_first_cell(plan).name
    seconds = read_figures(results[clock], None)["train_seconds"]
    name = "epochs" if plan.config.time_for == "epochs" else "train_samples"
    found = {}
    for one in plan.configurations:
        pace = results.get(f"{one.name}-pace")
        own = {name: getattr(plan.config.cell_config(one.values), name)}
        if one is baseline or one.is_aa:
            found[one.name] = Matched(**own, ratio=1.0, limit="baseline")
        elif pace is None or pace.status != "ok":
            found[one.name] = Matched(**own, ratio=None, limit="failed")
        elif plan.config.time_for == "epochs":
            found[one.name] = _fill_with_epochs(_read_pace(pace), seconds)
        else:
            found[one.name] = _fill_with_samples(plan, one, _read_pace(pace), seconds)
        if {clock, f"{one.name}-pace"} & set(disturbed) and found[one.name].limit != "baseline":
            found[one.name] = found[one.name].model_copy(update={"is_disturbed": True})
        said = _say(found[one.name], name)
        note(f"  {one.label}: {said} of the baseline's training time")
    return found


@dataclass(frozen=True, kw_only=True)
class _Pace:
    """The clock of a short run, in seconds."""

    build: float
    """Building its cache."""
    calibration: float
    """A part of the clock that no epoch repeats, and no sample more makes longer."""
    epoch: float
    samples: int
    """Training samples of an epoch."""


def _read_pace(result: CellResult) -> _Pace:
    figures, summary = read_figures(result, None), result.finished
    build = figures.get("cache_build_seconds", 0.0)
    calibration = summary.calibration_seconds or 0.0
    return _Pace(
        build=build,
        calibration=calibration,
        epoch=(figures["train_seconds"] - build - calibration) / figures["epochs"],
        samples=summary.train_samples or 0,
    )


def _fill_with_epochs(pace: _Pace, wanted_seconds: float) -> Matched:
    once = pace.build + pace.calibration
    epochs = int((wanted_seconds - once) / pace.epoch)
    given = min(max(epochs, 1), MOST_EPOCHS)
    limit: Limit | None = "lowest" if epochs < 1 else "highest" if epochs > given else None
    return Matched(epochs=given, ratio=(once + given * pace.epoch) / wanted_seconds, limit=limit)


def _fill_with_samples(
    plan: ComparisonPlan, one: Configuration, pace: _Pace, wanted_seconds: float
) -> Matched:
    """Whole batches, of the records that the data have."""
    cell = plan.config.cell_config(one.values)
    a_sample = (pace.build + cell.epochs * pace.epoch) / pace.samples
    batch, most = cell.global_batch_size, plan.training.data.train_records
    samples = int((wanted_seconds - pace.calibration) / a_sample) // batch * batch
    given = min(max(samples, batch), most)
    limit: Limit | None = "lowest" if samples < batch else "highest" if samples > given else None
    ratio = (pace.calibration + given * a_sample) / wanted_seconds
    return Matched(train_samples=given, ratio=ratio, limit=limit)


def expect_equal_time(
    plan: ComparisonPlan, cells: Sequence[Cell], seconds: Mapping[str, float]
) -> dict[str, float]:
    """An estimate in which no run is shorter than the baseline's first, before that is decided."""
    first = seconds[find_first_cell(plan).name]
    runs = {cell.name for cell in cells if cell.role == "run"}
    return {name: max(it, first) if name in runs else it for name, it in seconds.items()}


# what they share


def _has_free_rank(one: Configuration, baseline: Configuration) -> bool:
    """True where a rank may be set: adapters alone train, and it is nobody else's program."""
    method = one.settings.method
    is_fixed = one is baseline or one.is_aa or one.peer is not None
    return not is_fixed and method.rank_name is not None and method.weights is None


def _why_fixed(one: Configuration, baseline: Configuration) -> Limit:
    if one is baseline or one.is_aa:
        return "baseline"
    return "peer" if one.peer else "no_rank"


def _first_cell(config: CompareConfig, one: Configuration, role: Role = "run") -> Cell:
    return make_cell(config, one, one.learning_rates[0], config.cell_config({}).seed, role)


def _say(match: Matched, name: str) -> str:
    given, words = getattr(match, name), name.replace("_", " ")
    ratio = "?" if match.ratio is None else f"{match.ratio:.3g}"
    return f"{'no ' + words if given is None else f'{words} {given}'}, {ratio}"
