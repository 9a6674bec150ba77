"""The guide's claims, and the paper's, each beside the figure found here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skip2bench.config.methods import find_method
from skip2bench.io.units import Language
from skip2bench.report.verdicts import Entry, centre_of, compare_entries, list_skip2, name_preset
from skip2bench.results.comparison_records import ComparisonResults, FigureRatio
from skip2bench.results.stats import Ratio

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
    skip2 = list(list_skip2(content)) if content else []
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
        rival = min(others, key=lambda e, figure=figure: centre_of(e, figure))  # type: ignore[misc]
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


def _find_baseline(content: ComparisonResults | None) -> Entry | None:
    entries = content.configurations if content else ()
    return next((entry for entry in entries if entry.is_baseline), None)
