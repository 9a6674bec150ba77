"""What follows from a comparison's figures: conclusion, presets, the guide's claims, a diagnosis.

Nothing is called better inside the noise: two configurations differ only where the p-value of their
paired ratio is below 0.05, corrected for how many are tested beside one another. The diagnosis is
section 10 of the guide: rules that speak when they apply. Words are the claims' alone: a finding
names its rule, and the templates say the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from skip2bench.config.blocks import BLOCK_PRESETS
from skip2bench.config.methods import find_method
from skip2bench.io.units import Language
from skip2bench.report.cells import centre
from skip2bench.results.comparison_records import (
    ComparedConfiguration,
    ComparisonResults,
    FigureRatio,
)
from skip2bench.results.stats import SIGNIFICANCE, Ratio, adjust_p_values, paired_ratio

Entry = ComparedConfiguration

EQUAL_PARAMETERS_RATIO = 0.02
"""Configurations whose trainable parameters differ by less are taken as equal in them."""
UNCHANGED_RATIO = 0.05
"""A forward time within this share of the baseline's counts as unchanged."""

EXACT_LOGITS, ROUNDED_LOGITS = 1e-3, 5e-2
"""Logits that differ by no more of the largest are the same, in float32 and in less."""

CLAIMS: dict[str, dict[Language, str]] = {
    "fast_parameters": {
        "en": "4 blocks train 75 % fewer parameters",
        "ja": "4 ブロックで学習パラメータ 75 % 減",
    },
    "balanced_parameters": {
        "en": "6 blocks train 62 % fewer parameters",
        "ja": "6 ブロックで学習パラメータ 62 % 減",
    },
    "backward": {
        "en": "Backward is faster",
        "ja": "Backward が高速になる",
    },
    "memory": {
        "en": "60 to 70 % less memory (increase in a step)",
        "ja": "メモリ 60〜70 % 減（step 中の増加）",
    },
    "eight_accuracy": {
        "en": "8 blocks are the most accurate (loss against the next best)",
        "ja": "8 ブロックが最高精度（次点に対する損失の差）",
    },
    "eight_memory": {
        "en": "8 blocks save the most memory (peak against the next lowest)",
        "ja": "8 ブロックが最大のメモリ削減（次点に対するピークの差）",
    },
    "forward": {
        "en": "Forward is unchanged",
        "ja": "Forward は変わらない",
    },
    "training_time": {
        "en": "Fine-tuning time −90 % at equal trainable parameters (the paper)",
        "ja": "学習パラメータ数が等しいとき微調整の時間 −90 %（論文）",
    },
    "inference": {
        "en": "Cannot be merged, so not compatible with ordinary LoRA at inference",
        "ja": "推論時には通常の LoRA と互換でない（マージ不可）",
    },
}
"""The guide's claims, and the paper's, in the words of the report; `check_claims` judges them."""


@dataclass(frozen=True, kw_only=True)
class Pick:
    """What is recommended for one purpose."""

    purpose: Literal["speed", "balance", "accuracy"]
    entry: Entry
    tied: Sequence[Entry]
    """Others that cannot be told from it in what the purpose asks for."""

    @property
    def is_tested(self) -> bool:
        """False where one run of it is all there is."""
        return len(self.entry.seeds) > 1


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of the guide or the paper beside what was measured."""

    name: str
    label: str | None
    """The configuration it was tested on."""
    found: float | None
    low: float | None = None
    high: float | None = None
    holds: bool | None
    """None where it was not measured, in one run alone, or while something else ran; or where the
    interval has both what it says and what contradicts it."""
    is_disturbed: bool = False

    @property
    def is_undecided(self) -> bool:
        """True where it was tested, and the runs are too few, or too far apart, to tell."""
        return self.holds is None and self.low is not None and not self.is_disturbed


def find_conclusion(content: ComparisonResults) -> Entry | None:
    """The Skip2-LoRA configuration to speak of first, or None without one to compare.

    The fastest of those whose final loss is not above the baseline's beyond the noise; where all
    are, or were timed while something else ran, or took the same time, the one with the lowest
    loss.
    """
    entries = [entry for entry in _skip2(content) if entry.against_baseline]
    good = [e for e in entries if not _is_worse(e) and is_measured(e, "train_seconds")]
    if good and content.matched != "time":
        return min(good, key=lambda entry: _centre(entry, "train_seconds"))
    return min(entries, key=lambda entry: _centre(entry, "final_val_loss"), default=None)


def find_lowest(content: ComparisonResults) -> Entry | None:
    """The configuration with the lowest final validation loss; None where none has one."""
    entries = [entry for entry in content.configurations if "final_val_loss" in entry.figures]
    return min(entries, key=lambda entry: _centre(entry, "final_val_loss"), default=None)


def is_measured(entry: Entry, figure: str) -> bool:
    """True for a figure that is there, and in which nothing that was disturbed is."""
    return figure in entry.figures and not entry.figures[figure].is_disturbed


def _is_worse(entry: Entry) -> bool:
    ratio = entry.against_baseline.get("final_val_loss")
    if not ratio:
        return False
    return ratio.ratio > 1 and (ratio.is_difference or ratio.low is None)


def pick_presets(content: ComparisonResults) -> list[Pick]:
    """The configuration of Skip2-LoRA for speed, for balance and for accuracy.

    Speed: the shortest training clock. Accuracy: the lowest final loss. Balance: the fastest of
    those whose loss cannot be told from the lowest. Accuracy alone where all took the same time, or
    the time of one was disturbed. Empty with fewer than two to choose from.
    """
    entries = [entry for entry in _skip2(content) if entry.figures]
    if len(entries) < 2:
        return []
    best = min(entries, key=lambda entry: _centre(entry, "final_val_loss"))
    as_good = [best, *_find_tied(content, best, entries, "final_val_loss")]
    accurate = Pick(purpose="accuracy", entry=best, tied=as_good[1:])
    timed = [entry for entry in entries if is_measured(entry, "train_seconds")]
    # the fastest may be one of those whose time nobody knows
    if content.matched == "time" or len(timed) < len(entries):
        return [accurate]
    fastest = min(entries, key=lambda entry: _centre(entry, "train_seconds"))
    balanced = min(as_good, key=lambda entry: _centre(entry, "train_seconds"))
    return [
        Pick(
            purpose="speed",
            entry=fastest,
            tied=_find_tied(content, fastest, entries, "train_seconds"),
        ),
        Pick(purpose="balance", entry=balanced, tied=()),
        accurate,
    ]


def name_preset(entry: Entry) -> str | None:
    """The preset that an entry's blocks are, where they are the first ones."""
    blocks = list(entry.blocks or ())
    found = [name for name, count in BLOCK_PRESETS.items() if blocks == list(range(count))]
    return found[0] if found else None


def compare_entries(
    content: ComparisonResults, one: Entry, other: Entry, figure: str
) -> Ratio | None:
    """Ratio of a figure of two configurations, paired by seed; None without a common seed."""
    own, others = (_by_seed(content, entry, figure) for entry in (one, other))
    seeds = sorted(own.keys() & others.keys())
    if not seeds or min(*own.values(), *others.values()) <= 0:
        return None
    return paired_ratio([own[seed] for seed in seeds], [others[seed] for seed in seeds])


def _find_tied(
    content: ComparisonResults, chosen: Entry, entries: Sequence[Entry], figure: str
) -> list[Entry]:
    tested = [
        (entry, p)
        for entry in entries
        if entry is not chosen
        and (ratio := compare_entries(content, entry, chosen, figure)) is not None
        and (p := ratio.p_value) is not None
    ]
    adjusted = adjust_p_values([p for _, p in tested])
    pairs = zip(tested, adjusted, strict=True)
    return [entry for (entry, _), p in pairs if p >= SIGNIFICANCE]


def _by_seed(content: ComparisonResults, entry: Entry, figure: str) -> dict[int, float]:
    return {
        cell.seed: cell.figures[figure]
        for cell in content.cells.values()
        if cell.configuration == entry.name
        and cell.role == "run"
        and cell.status == "ok"
        and cell.learning_rate == entry.learning_rate
        and cell.seed in entry.seeds
        and figure in cell.figures
    }


def check_claims(
    content: ComparisonResults | None,
    bench_rows: Sequence[Mapping[str, Any]],
    inference_rows: Sequence[Mapping[str, Any]] = (),
) -> list[Claim]:
    """The guide's claims, and the paper's, each with the figure found here.

    Figures are reductions against the baseline, 1 for 100 %, but for the loss, which is a ratio,
    and for inference: how far the logits of the exported model lie from those of the adapters, as a
    share of the largest. What a comparison made equal, it cannot judge.
    """
    skip2 = list(_skip2(content)) if content else []
    baseline = _find_baseline(content)
    matched = content.matched if content else None
    # at ranks that nobody has set so that something else is equal
    counted = [] if matched in ("memory", "params") else skip2
    return [
        _parameters("fast_parameters", 0.75, counted, baseline, blocks=4),
        _parameters("balanced_parameters", 0.625, counted, baseline, blocks=6),
        *_backward(bench_rows),
        *_memory(bench_rows),
        *_eight_blocks(content, skip2),
        *_forward(bench_rows),
        *_training_time([] if matched == "time" else skip2, baseline),
        *_inference(inference_rows),
    ]


def _parameters(
    name: str, expected: float, skip2: Sequence[Entry], baseline: Entry | None, *, blocks: int
) -> Claim:
    entry = next((e for e in skip2 if len(e.blocks or ()) == blocks), None)
    share = _share(entry, baseline)
    if entry is None or share is None:
        return Claim(name=name, label=None, found=None, holds=None)
    found = 1 - share
    return Claim(name=name, label=entry.label, found=found, holds=abs(found - expected) < 0.005)


def _backward(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    measured = [(row, row["backward_reduction"]) for row in rows if row["backward_reduction"]]
    if not measured:
        return [Claim(name="backward", label=None, found=None, holds=None)]
    return [
        Claim(
            name="backward",
            label=row["label"],
            found=it.value,
            low=it.low,
            high=it.high,
            holds=None if row["is_disturbed"] else it.is_difference and it.value > 0,
            is_disturbed=row["is_disturbed"],
        )
        for row, it in measured
        if find_method(row["method"]).serves_rows
    ]


def _memory(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Of a step's own memory: the model at rest is the same for both."""
    found = [
        (row["label"], row["memory"]["step_reduction"])
        for row in rows
        if find_method(row["method"]).serves_rows and row["memory"]["step_reduction"] is not None
    ]
    if not found:
        return [Claim(name="memory", label=None, found=None, holds=None)]
    return [Claim(name="memory", label=label, found=it, holds=it >= 0.6) for label, it in found]


def _eight_blocks(content: ComparisonResults | None, skip2: Sequence[Entry]) -> list[Claim]:
    # the guide's are the first ones
    eight = next((e for e in skip2 if name_preset(e) == "accurate" and e.figures), None)
    claims = []
    for name, figure in (
        ("eight_accuracy", "final_val_loss"),
        ("eight_memory", "peak_memory_bytes"),
    ):
        others = [e for e in skip2 if e is not eight and figure in e.figures]
        if content and content.matched == "memory" and figure == "peak_memory_bytes":
            others = []
        if content is None or eight is None or figure not in eight.figures or not others:
            claims.append(Claim(name=name, label=None, found=None, holds=None))
            continue
        rival = min(others, key=lambda e, figure=figure: _centre(e, figure))  # type: ignore[misc]
        ratio = compare_entries(content, eight, rival, figure)
        claims.append(
            Claim(
                name=name,
                label=rival.label,
                found=ratio.ratio if ratio else None,
                low=ratio.low if ratio else None,
                high=ratio.high if ratio else None,
                holds=_judge_below(ratio, 1 - _ROUNDING),
            )
        )
    return claims


def _forward(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    base = next(
        (row["forward_seconds"] for row in rows if find_method(row["method"]).is_traditional), None
    )
    found = [
        (row, 1 - row["forward_seconds"] / base)
        for row in rows
        if find_method(row["method"]).serves_rows and row["forward_seconds"] and base
    ]
    if not found:
        return [Claim(name="forward", label=None, found=None, holds=None)]
    return [
        Claim(
            name="forward",
            label=row["label"],
            found=it,
            holds=None if row["is_disturbed"] else abs(it) <= UNCHANGED_RATIO,
            is_disturbed=row["is_disturbed"],
        )
        for row, it in found
    ]


def _training_time(skip2: Sequence[Entry], baseline: Entry | None) -> list[Claim]:
    claims = []
    for entry in skip2:
        ratio = entry.against_baseline.get("train_seconds")
        share = _share(entry, baseline)
        if not ratio or share is None or abs(share - 1) > EQUAL_PARAMETERS_RATIO:
            continue
        claims.append(
            Claim(
                name="training_time",
                label=entry.label,
                found=1 - ratio.ratio,
                low=None if ratio.high is None else 1 - ratio.high,
                high=None if ratio.low is None else 1 - ratio.low,
                holds=None if ratio.is_disturbed else _judge_below(ratio, 0.1 + _ROUNDING),
                is_disturbed=bool(ratio.is_disturbed),
            )
        )
    return claims or [Claim(name="training_time", label=None, found=None, holds=None)]


def _judge_below(ratio: Ratio | FigureRatio | None, limit: float) -> bool | None:
    """Whether a ratio is below a limit: told where the whole interval lies on one side of it."""
    if ratio is None or ratio.low is None or ratio.high is None:
        return None
    if ratio.high <= limit:
        return True
    return False if ratio.low > limit else None


_ROUNDING = 1e-9


def _inference(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """An ordinary model that says the same refutes that none can."""
    return [
        Claim(
            name="inference",
            label=row["label"],
            found=row["relative_difference"],
            holds=row["relative_difference"]
            > (EXACT_LOGITS if row["precision"] == "32-true" else ROUNDED_LOGITS),
        )
        for row in rows
        if row["form"] == "exported" and row["relative_difference"] is not None
    ] or [Claim(name="inference", label=None, found=None, holds=None)]


def _share(entry: Entry | None, baseline: Entry | None) -> float | None:
    """Trainable parameters of an entry / the baseline's."""
    own, base = (it.trainable_parameters if it else None for it in (entry, baseline))
    return None if own is None or not base else float(own / base)


def _skip2(content: ComparisonResults) -> Sequence[Entry]:
    return [e for e in content.configurations if find_method(e.method).serves_rows]


def _find_baseline(content: ComparisonResults | None) -> Entry | None:
    entries = content.configurations if content else ()
    return next((entry for entry in entries if entry.is_baseline), None)


def _centre(entry: Entry, figure: str) -> float:
    return centre(entry.figures[figure], figure)


Row = Mapping[str, Any]
Subject = TypeVar("Subject")

WORSE_LOSS_RATIO = 0.05
"""A final loss above the baseline's by more than this share calls for advice."""
OVERFITTING_RATIO = 0.02
"""A final loss above the lowest on the way by more than this share calls for advice."""
SPEED_GAP_RATIO = 0.1
"""A measured reduction this far below the one by FLOPs calls for advice."""
UNSTABLE_RATIO = 0.1
"""A standard deviation above this share of the mean is called unstable."""
DOMINATED_RATIO = 0.5
"""A part of a cached run's steps beyond this share dominates them."""
SMALL_STEP_SECONDS = 2e-3
"""A backward phase shorter than this is mostly overhead: the batch is too small to compare."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A rule that applies, the configurations it applies to, and the figures it rests on."""

    rule: str
    labels: Sequence[str]
    figures: Mapping[str, Any] = field(default_factory=dict)


def diagnose(
    bench_rows: Sequence[Row],
    entries: Sequence[ComparedConfiguration],
    highest_load: float | None,
    n_cores: int,
) -> list[Finding]:
    """All findings, in the order of the guide: memory, loss, speed, then how far to trust it.

    Args:
        bench_rows: Rows of `tables.build_bench_rows`.
        entries: Configurations of a comparison.
        highest_load: Highest load of the machine when a run began.
        n_cores: Cores of the machine.
    """
    found = [
        _find("memory", bench_rows, _saves_no_memory),
        _find("accuracy", [e for e in entries if _is_skip(e)], _loses_accuracy),
        _find("accuracy_of_others", [e for e in entries if not _is_skip(e)], _loses_accuracy),
        _find("above_start", entries, _ends_above_its_start),
        _find("overfits", entries, has_overfitted),
        _find("edge", entries, lambda e: e.learning_rate_at_edge),
        _find("speed", bench_rows, _is_slower_than_flops),
        _find("small_batch", bench_rows, _has_small_steps),
        _find("uncached", entries, _needs_a_cache),
        _find("overhead", entries, _is_dominated_by_overhead),
        _find("unstable", entries, _is_unstable),
        _find("few_runs", entries, lambda e: 0 < len(e.seeds) < 3),
    ]
    if highest_load is not None and highest_load > 1.5 * n_cores:
        found.append(Finding(rule="busy", labels=(), figures={"load": highest_load}))
    return [finding for finding in found if finding is not None]


def _find(
    rule: str, subjects: Sequence[Subject], applies: Callable[[Subject], bool]
) -> Finding | None:
    found: list[Any] = [it for it in subjects if applies(it)]
    labels = [it.label if isinstance(it, ComparedConfiguration) else it["label"] for it in found]
    return Finding(rule=rule, labels=labels) if labels else None


def _saves_no_memory(row: Row) -> bool:
    saved = row["memory"]["saved_reduction"]
    return find_method(row["method"]).is_skip and saved is not None and saved <= 0


def _loses_accuracy(entry: ComparedConfiguration) -> bool:
    ratio = entry.against_baseline.get("final_val_loss")
    return ratio is not None and ratio.ratio > 1 + WORSE_LOSS_RATIO


def has_overfitted(entry: ComparedConfiguration) -> bool:
    """True where the mean validation loss ends clearly above the mean of its lowest."""
    lowest, last = (entry.figures.get(name) for name in ("best_val_loss", "final_val_loss"))
    if lowest is None or last is None:
        return False
    return bool(last.mean > (1 + OVERFITTING_RATIO) * lowest.mean)


def _is_skip(entry: ComparedConfiguration) -> bool:
    return find_method(entry.method).is_skip


def _ends_above_its_start(entry: ComparedConfiguration) -> bool:
    """The mean validation loss is higher at the end than before the first step."""
    first, last = (entry.figures.get(name) for name in ("initial_val_loss", "final_val_loss"))
    return first is not None and last is not None and last.mean > first.mean


def _is_slower_than_flops(row: Row) -> bool:
    measured, by_flops = row["backward_reduction"], row["backward_flops_reduction"]
    if not measured or by_flops is None or row["is_disturbed"]:
        return False
    # a shortfall is claimed only where even the best end of the interval falls short
    best = measured.value if measured.high is None else measured.high
    return bool(by_flops - best > SPEED_GAP_RATIO)


def _has_small_steps(row: Row) -> bool:
    seconds = row["backward_seconds"]
    is_small = seconds is not None and seconds < SMALL_STEP_SECONDS and not row["is_disturbed"]
    return find_method(row["method"]).is_traditional and is_small


def _needs_a_cache(entry: Entry) -> bool:
    method = find_method(entry.method)
    return method.is_skip and not method.serves_rows


def _is_dominated_by_overhead(entry: ComparedConfiguration) -> bool:
    """Data and optimizer take more than half of a cached run's steps."""
    figures = entry.figures
    names = ("data_seconds", "forward_seconds", "backward_seconds", "optimizer_seconds")
    is_cached = find_method(entry.method).serves_rows
    if not is_cached or not all(is_measured(entry, name) for name in names):
        return False
    means = {name: figures[name].mean for name in names}
    overhead = means["data_seconds"] + means["optimizer_seconds"]
    return bool(overhead > DOMINATED_RATIO * sum(means.values()))


def _is_unstable(entry: ComparedConfiguration) -> bool:
    figure = entry.figures.get("train_seconds")
    is_known = figure is not None and not figure.is_disturbed
    return figure is not None and is_known and figure.std > UNSTABLE_RATIO * figure.mean
