"""What a comparison was made equal in: what each was given for it, and how close it came."""

from collections.abc import Iterable
from typing import Any

from skip2bench.io import units
from skip2bench.report.tables.cells import COUNT, DISTURBED_SIGN, LABEL, Output, own, show_closeness
from skip2bench.results.comparison_records import (
    ComparedConfiguration,
    ComparisonResults,
    Matched,
)

EQUAL_IN = {
    "memory": {"en": "at equal memory", "ja": "メモリを揃えた場合"},
    "time": {"en": "at equal time", "ja": "学習時間を揃えた場合"},
}
"""In the words of the headings; ranks of equal parameters are said below them."""
_FIGURES = {
    "params": "trainable_parameters",
    "memory": "peak_memory_bytes",
    "time": "train_seconds",
}
"""What tells how equal they came out."""
_LIMITS = {
    "baseline": {"en": "baseline", "ja": "基準"},
    "peer": {"en": "another's program, as it is", "ja": "他の実装（そのまま）"},
    "no_rank": {"en": "no rank to set, as it is", "ja": "設定できるランクなし（そのまま）"},
    "lowest": {"en": "not reached: more at the least", "ja": "未達（最小でも基準を超える）"},
    "highest": {"en": "not reached: less at the most", "ja": "未達（上限でも基準に届かない）"},
    "failed": {"en": "unknown: its first run failed", "ja": "不明（最初の実行が失敗）"},
    "unknown": {"en": "unknown", "ja": "不明"},
}


def _show_expected(matched: Matched, _: Output) -> str:
    if matched.ratio is None:
        return "-"
    sign = f" {DISTURBED_SIGN}" if matched.is_disturbed else ""
    return f"{units.format_significant(matched.ratio)}{sign}"


COLUMNS = (
    LABEL,
    own("rank", "Rank", "ランク", COUNT, is_optional=True),
    own("epochs", "Epochs", "エポック", COUNT, is_optional=True),
    own("train_samples", "Training samples", "学習サンプル", COUNT, is_optional=True),
    own("expected", "Expected ratio", "予測比", _show_expected, short="Expected ×"),
    own(
        *("measured", "Measured ratio [95 % interval]", "実測比 [95 % 区間]", show_closeness),
        short="Measured ×",
    ),
    own(
        *("limit", "Remark", "備考"),
        lambda limit, output: _LIMITS[limit]["ja" if output == "ja" else "en"],
        is_text=True,
    ),
)


def list_given_samples(entries: Iterable[ComparedConfiguration]) -> set[int]:
    """The numbers of training samples that were given to be equal in time; none where none were."""
    matched = (entry.matched for entry in entries if entry.matched)
    return {one.train_samples for one in matched if one.train_samples is not None}


def build_matching(results: ComparisonResults) -> list[dict[str, Any]]:
    """A row a configuration: what it was given, expected and measured; none where nothing was."""
    matched = results.matched
    return [
        {
            **dict.fromkeys(("rank", "epochs", "train_samples", "ratio", "limit")),
            **entry.matched.to_plain(),
            "expected": entry.matched,
            "label": entry.label,
            "measured": None
            if entry.is_baseline
            else entry.against_baseline.get(_FIGURES[matched]),
        }
        for entry in results.configurations
        if matched and entry.matched
    ]
