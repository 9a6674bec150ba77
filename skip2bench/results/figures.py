"""From the runs of a matrix to its figures: best rates, means over seeds, ratios; pure functions.

Each configuration is compared at its own best learning rate: the one with the lowest mean final
validation loss over the seeds, or of the one seed that a search was made with. Ratios to the
baseline are paired by seed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from skip2bench.results.answers import ScoredRun, summarise_scores
from skip2bench.results.comparison_records import (
    ComparedConfiguration,
    ComparedScore,
    ComparisonWarning,
    FigureRatio,
    FigureSummary,
    GridRow,
    Measured,
)
from skip2bench.results.curves import CurvePoint
from skip2bench.results.run_records import TrainSummary
from skip2bench.results.stats import (
    SIGNIFICANCE,
    adjust_p_values,
    paired_ratio,
    student_t_p_value,
    summarise,
)

Figures = dict[str, float]

_FROM_SUMMARY = (
    *("initial_val_loss", "final_val_loss", "best_val_loss"),
    *("train_seconds", "data_seconds", "cache_build_seconds", "forward_seconds"),
    *("backward_seconds", "optimizer_seconds", "validation_seconds"),
    *("steps", "epochs", "tokens", "total_parameters", "trainable_parameters"),
    *("peak_memory_bytes", "steps_peak_memory_bytes", "reserved_memory_bytes"),
    *("saved_for_backward_bytes", "cache_bytes", "adapter_bytes"),
    *("domain_loss_before", "domain_loss_after", "forgetting"),
    *("initial_next_token_accuracy", "final_next_token_accuracy", "score", "score_seconds"),
)
FIGURES = (
    *_FROM_SUMMARY,
    *("loss_change_per_step", "steps_per_second", "tokens_per_second", "wall_seconds"),
    "epoch_seconds",
    *("time_to_target_seconds", "steps_to_target", "samples_to_target"),
    *("reused_train_seconds", "reused_cache_build_seconds", "reused_time_to_target_seconds"),
)
"""Every figure of a cell, in the order of the files; a cell has those that apply to it."""
OTHERS_CORES_RATIO = 0.1
"""A cell during which others used more than this share of the cores is named in a warning."""
FEW_RUNS = 3


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """A cell that has ended, or not begun."""

    name: str
    configuration: str
    role: str
    learning_rate: float
    seed: int
    status: str
    error: str | None = None
    wall_seconds: float | None = None
    other_cpu_cores: float | None = None
    summary: TrainSummary | None
    """Its run's summary; None where there is none."""
    curve: Sequence[CurvePoint] = ()
    """Its evaluation points."""
    decides_rate: bool = False
    """True where the rate of its configuration was searched for with its seed alone."""
    counts: bool = True
    """False for a cell that has helped to choose a rate and is in no figure therefore."""
    disturbed: Sequence[str] = ()
    """Figures that were measured while something else used the processor."""
    scored: ScoredRun | None = None
    """Its answers' scores, where it was asked for answers."""
    host: str | None = None
    """Of the worker that ran it."""
    beside: int | None = None
    """How many other runs had cores of the same machine meanwhile, at the most."""

    @property
    def has_diverged(self) -> bool:
        """True for a run whose loss ended it."""
        return bool(self.summary and self.summary.diverged_at_step is not None)

    @property
    def finished(self) -> TrainSummary:
        """Summary of a cell that ended well."""
        assert self.summary is not None
        return self.summary

    @property
    def final_val_loss(self) -> float:
        """Of a cell that ended well."""
        return _known(self.finished.final_val_loss)

    @property
    def cache_was_kept(self) -> bool:
        """True for a run that found its cache."""
        return bool(self.summary and self.summary.cache_kept)


def find_best_rate(results: Iterable[CellResult]) -> tuple[float | None, list[GridRow]]:
    """The best learning rate of one configuration, and the whole grid.

    Best is the lowest mean final validation loss, among the rates at which most seeds ended well.
    Where cells decide the rate alone, the others count neither for it nor in the grid.

    Returns:
        The rate (None where no cell ended well), and a row a rate.
    """
    by_rate: dict[float, list[CellResult]] = {}
    runs = [result for result in results if result.role == "run"]
    for result in [run for run in runs if run.decides_rate] or runs:
        by_rate.setdefault(result.learning_rate, []).append(result)
    grid: list[GridRow] = []
    for rate in sorted(by_rate):
        losses = [r.final_val_loss for r in by_rate[rate] if r.status == "ok"]
        summary = summarise(losses) if losses else None
        grid.append(
            GridRow(
                learning_rate=rate,
                runs=len(by_rate[rate]),
                ok=len(losses),
                mean_final_val_loss=summary.mean if summary else None,
                std_final_val_loss=summary.std if summary else None,
            )
        )
    usable = [row.learning_rate for row in grid if row.ok]
    if not usable:
        return None, grid
    ended = {
        rate: {r.seed: r.final_val_loss for r in by_rate[rate] if r.status == "ok"}
        for rate in usable
    }
    # seeds that one rate has run and another not yet say nothing on which is better
    common = set.intersection(*(set(losses) for losses in ended.values()))
    failed = {rate: sum(r.status not in _MAY_END_WELL for r in by_rate[rate]) for rate in usable}

    def place(rate: float) -> tuple[int, int, float]:
        losses = ended[rate]
        compared = [losses[seed] for seed in sorted(common)] or [*losses.values()]
        return failed[rate], 0 if common else -len(losses), fmean(compared)

    return min(usable, key=place), grid


_MAY_END_WELL = ("ok", "waiting", "interrupted")


def read_figures(result: CellResult, target_loss: float | None) -> Figures:
    """Every figure of a cell that ended well.

    Args:
        result: The cell.
        target_loss: Validation loss to reach, or None.

    Returns:
        By name, without those that do not apply. `loss_change_per_step` is (final - initial
        validation loss) / steps; `steps_per_second` and `tokens_per_second` are per second of the
        training clock, tokens without padding; `epoch_seconds` is the training clock without
        building a cache / epochs; `*_to_target` are those of the first evaluation point whose
        validation loss is at most `target_loss`.
    """
    summary = result.finished
    found = {name: getattr(summary, name) for name in _FROM_SUMMARY}
    figures = {name: value for name, value in found.items() if value is not None}
    steps, seconds = _known(summary.steps), _known(summary.train_seconds)
    change = result.final_val_loss - _known(summary.initial_val_loss)
    figures["loss_change_per_step"] = change / steps
    figures["steps_per_second"] = steps / seconds
    if summary.epochs:
        figures["epoch_seconds"] = (seconds - (summary.cache_build_seconds or 0.0)) / summary.epochs
    if summary.tokens is not None:
        figures["tokens_per_second"] = summary.tokens / seconds
    if result.wall_seconds is not None:
        figures["wall_seconds"] = result.wall_seconds
    return figures | find_target(result, target_loss)


def find_target(result: CellResult, target_loss: float | None) -> Figures:
    """Time, steps and samples to the first evaluation point at or below a validation loss.

    Empty where it was not reached. A cell whose rate of learning was never evaluated on the way
    (a peer) has its last point alone.
    """
    if target_loss is None:
        return {}
    summary = result.finished
    n_samples, batch = summary.train_samples, summary.global_batch_size
    for point in result.curve:
        if point.val_loss <= target_loss:
            figures = {
                "time_to_target_seconds": point.train_seconds,
                "steps_to_target": point.step,
            }
            if n_samples and batch:
                epochs, steps_left = divmod(point.step, -(-n_samples // batch))
                samples = epochs * n_samples + min(n_samples, steps_left * batch)
                figures["samples_to_target"] = samples
            return figures
    return {}


def find_targets(baseline: Sequence[CellResult], fixed_target: float | None) -> dict[int, float]:
    """By seed, the validation loss to reach: the baseline's final one, unless it is fixed."""
    rate, _ = find_best_rate(baseline)
    return {
        seed: cell.final_val_loss if fixed_target is None else fixed_target
        for seed, cell in _chosen(baseline, rate, "run").items()
    }


def summarise_configuration(
    own: Sequence[CellResult],
    baseline: Sequence[CellResult],
    fixed_target: float | None,
) -> Measured:
    """Figures of one configuration at its best learning rate, beside the baseline's at its own.

    Args:
        own: All cells of the configuration.
        baseline: All cells of the baseline's configuration.
        fixed_target: Validation loss to reach; None for the baseline's final one on the same seed.

    Returns:
        The figures; ratios are those of figures that are positive in both.
    """
    rate, grid = find_best_rate(own)
    base_rate, _ = find_best_rate(baseline)
    base_cells = _chosen(baseline, base_rate, "run")
    targets = find_targets(baseline, fixed_target)
    cells = _chosen(own, rate, "run")
    by_seed = {
        seed: read_figures(cell, targets.get(seed, fixed_target)) for seed, cell in cells.items()
    }
    for seed, cell in _chosen(own, None, "reused").items():
        if seed in by_seed and cell.cache_was_kept:
            by_seed[seed] |= _reused_figures(
                cell, targets.get(seed, fixed_target), is_same=cell.learning_rate == rate
            )
    base_by_seed = {
        seed: read_figures(cell, targets.get(seed)) for seed, cell in base_cells.items()
    }
    rates = [row.learning_rate for row in grid]
    measured = Measured(
        learning_rate=rate,
        learning_rate_at_edge=len(rates) > 1 and rate in (rates[0], rates[-1]),
        grid=tuple(grid),
        seeds=tuple(sorted(cells)),
        failed=tuple(cell.name for cell in own if cell.status != "ok"),
        target_loss=summarise(list(targets.values())).mean if targets else fixed_target,
        target_reached=sum("steps_to_target" in figures for figures in by_seed.values()),
        target_tried=sum(targets.get(seed, fixed_target) is not None for seed in by_seed),
        figures={
            name: FigureSummary(**asdict(summarise(values)))
            for name in FIGURES
            if (values := [f[name] for f in by_seed.values() if name in f])
        },
        against_baseline=_compare(by_seed, base_by_seed),
        **_compare_scores(cells, base_cells),
    )
    reused = _chosen(own, None, "reused")
    return _mark_disturbed(measured, cells.values(), reused.values(), base_cells.values())


def _mark_disturbed(
    measured: Measured,
    own: Iterable[CellResult],
    reused: Iterable[CellResult],
    baseline: Iterable[CellResult],
) -> Measured:
    """The figures and ratios that a disturbed run is in say so."""
    own_names, reused_names, base_names = (
        {name for it in cells for name in it.disturbed} for cells in (own, reused, baseline)
    )
    # a run that found its cache kept gives the clocks of that alone, and no other run gives those
    names = {name for name in own_names if not name.startswith(_OF_REUSED)}
    names |= {name for name in reused_names if name.startswith(_OF_REUSED)}
    names &= measured.figures.keys()
    ratios = {
        name
        for name in measured.against_baseline
        if name in names or _BASELINE_FIGURE.get(name, name) in base_names
    }
    if not names and not ratios:
        return measured
    mark = {"is_disturbed": True}
    figures, compared = dict(measured.figures), dict(measured.against_baseline)
    figures |= {name: figures[name].model_copy(update=mark) for name in names}
    compared |= {name: compared[name].model_copy(update=mark) for name in ratios}
    return measured.model_copy(update={"figures": figures, "against_baseline": compared})


_OF_REUSED = "reused_"


def _compare_scores(
    own: Mapping[int, CellResult], baseline: Mapping[int, CellResult]
) -> dict[str, ComparedScore]:
    """What is known of answers, by the name of its field; nothing where none were asked for."""
    scored, base = (
        {seed: cell.scored for seed, cell in cells.items() if cell.scored}
        for cells in (own, baseline)
    )
    found = summarise_scores(scored, {} if own == baseline else base)
    return {"score": found} if found else {}


def _chosen(results: Iterable[CellResult], rate: float | None, role: str) -> dict[int, CellResult]:
    """By seed, the cells of a role that ended well and count; at one rate, or at any for None."""
    return {
        result.seed: result
        for result in results
        if result.status == "ok"
        and result.counts
        and result.role == role
        and (rate is None or result.learning_rate == rate)
    }


def _reused_figures(cell: CellResult, target: float | None, *, is_same: bool) -> Figures:
    """Clocks of a run that found its cache kept; the way to the target only at the same rate."""
    found = {
        "reused_train_seconds": cell.finished.train_seconds,
        "reused_cache_build_seconds": cell.finished.cache_build_seconds,
    }
    figures = {name: value for name, value in found.items() if value is not None}
    reached = find_target(cell, target) if is_same else {}
    if reached:
        figures["reused_time_to_target_seconds"] = reached["time_to_target_seconds"]
    return figures


_BASELINE_FIGURE = {
    "reused_train_seconds": "train_seconds",
    "reused_time_to_target_seconds": "time_to_target_seconds",
}
"""Against which figure of the baseline one is compared that the baseline does not have."""


def _compare(own: Mapping[int, Figures], baseline: Mapping[int, Figures]) -> dict[str, FigureRatio]:
    compared = {}
    for name in FIGURES:
        base_name = _BASELINE_FIGURE.get(name, name)
        pairs = [
            (own[seed][name], baseline[seed][base_name])
            for seed in sorted(own.keys() & baseline.keys())
            if name in own[seed] and base_name in baseline[seed]
        ]
        if not pairs:
            continue
        values, bases = map(list, zip(*pairs, strict=True))
        if min(*values, *bases) > 0:
            ratio = paired_ratio(values, bases)
            compared[name] = FigureRatio(**asdict(ratio), is_difference=ratio.is_difference)
    return compared


def correct_for_rows(
    entries: Sequence[ComparedConfiguration],
) -> tuple[ComparedConfiguration, ...]:
    """The configurations with their ratios tested together, as they stand in one table.

    Of each figure, the ratios of all but the baseline are one family: Holm's correction keeps the
    chance of calling any of them a difference that is none below SIGNIFICANCE. A ratio of a single
    pair has no test, and is in no family; nor is a control run, which is to raise the alarm.
    """
    changed: dict[tuple[int, str], FigureRatio] = {}
    for name in FIGURES:
        tested = [
            (number, ratio, ratio.paired.p_value)
            for number, entry in enumerate(entries)
            if not (entry.is_baseline or entry.is_aa)
            and (ratio := entry.against_baseline.get(name))
        ]
        family = [(number, ratio, p) for number, ratio, p in tested if p is not None]
        adjusted = adjust_p_values([p for _, _, p in family])
        for (number, ratio, p), corrected in zip(family, adjusted, strict=True):
            changed[number, name] = ratio.model_copy(
                update={
                    "is_difference": corrected < SIGNIFICANCE,
                    "p_value": p,
                    "adjusted_p_value": corrected,
                    "comparisons": len(family),
                    "detectable_ratio": ratio.paired.detectable_ratio,
                }
            )
    return tuple(
        entry.model_copy(
            update={
                "against_baseline": {
                    name: changed.get((number, name), ratio)
                    for name, ratio in entry.against_baseline.items()
                },
                "score": score,
            }
        )
        for number, (entry, score) in enumerate(zip(entries, _correct_scores(entries), strict=True))
    )


def _correct_scores(entries: Sequence[ComparedConfiguration]) -> list[ComparedScore | None]:
    """The same of the differences of scores: those of one table are one family, but a control's."""
    tested = {
        number: student_t_p_value(abs(one.difference) / one.standard_error, one.questions - 1)
        for number, entry in enumerate(entries)
        if not entry.is_aa
        and entry.score
        and (one := entry.score.difference)
        and one.standard_error
    }
    adjusted = dict(zip(tested, adjust_p_values([*tested.values()]), strict=True))
    found = []
    for number, entry in enumerate(entries):
        score = entry.score
        if score is not None and score.difference is not None and number in adjusted:
            told = {"is_difference": adjusted[number] < SIGNIFICANCE}
            score = score.model_copy(
                update={"difference": score.difference.model_copy(update=told)}
            )
        found.append(score)
    return found


def _known(value: float | None) -> float:
    """A figure that every run that ended well has."""
    assert value is not None
    return value


def find_warnings(
    configurations: Sequence[ComparedConfiguration], results: Sequence[CellResult], n_cores: int
) -> tuple[ComparisonWarning, ...]:
    """What a reader must know before believing the figures.

    Args:
        configurations: With their figures.
        results: All cells; those that are in no figure disturb none.
        n_cores: Of the machine.
    """
    warnings: list[ComparisonWarning] = []
    counting = [result for result in results if result.counts]
    busy = [
        result.name
        for result in counting
        if (result.other_cpu_cores or 0.0) > OTHERS_CORES_RATIO * n_cores
    ]
    if busy:
        warnings.append(ComparisonWarning(kind="busy", cells=tuple(busy)))
    disturbed = [result.name for result in counting if result.disturbed]
    if disturbed:
        warnings.append(ComparisonWarning(kind="disturbed", cells=tuple(disturbed)))
    resumed = [it.name for it in results if it.summary and it.summary.resumed_at_steps]
    if resumed:
        warnings.append(ComparisonWarning(kind="resumed", cells=tuple(resumed)))
    beside = [result.name for result in counting if result.beside]
    if beside:
        warnings.append(ComparisonWarning(kind="beside", cells=tuple(beside)))
    for one in configurations:
        label, n, rate = one.label, len(one.seeds), one.learning_rate
        if n < FEW_RUNS:
            warnings.append(ComparisonWarning(kind="few_runs", label=label, n=n))
        if one.learning_rate_at_edge:
            warnings.append(ComparisonWarning(kind="edge", label=label, learning_rate=rate))
        if one.is_aa:
            warnings += [
                ComparisonWarning(kind="aa", label=label, figure=name)
                for name in ("train_seconds", "final_val_loss")
                if (ratio := one.against_baseline.get(name)) and ratio.paired.is_difference
            ]
    return tuple(warnings)
