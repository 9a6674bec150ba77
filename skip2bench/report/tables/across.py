"""The table over several data sets."""

from collections.abc import Mapping
from typing import Any

from skip2bench.io import units
from skip2bench.report.tables.cells import (
    COUNT,
    DISTURBED_SIGN,
    LABEL,
    Column,
    Format,
    Output,
    Row,
    Table,
    own,
    read,
    show_label,
)
from skip2bench.results.across import AcrossFigure, AcrossResults


def _with_interval(render: Any) -> Format:
    def show(it: AcrossFigure, _: Output) -> str:
        if it.low is None or it.high is None:
            return str(render(it.value))
        return f"{render(it.value)} [{render(it.low)}, {render(it.high)}]"

    return show


def _show_gains(gains: Mapping[str, float], output: Output) -> str:
    return ", ".join(f"{show_label(name, output)} {gain:.2f}" for name, gain in gains.items())


def _find_time(row: Row) -> Any:
    ratio = read(row, "time_ratio")
    return None if ratio is None else {"ratio": ratio, "is_disturbed": read(row, "is_disturbed")}


def _show_time(it: Mapping[str, Any], output: Output) -> str:
    text = _with_interval(units.format_significant)(it["ratio"], output)
    return f"{text} {DISTURBED_SIGN}" if it["is_disturbed"] else text


_GAIN, _SCORE = _with_interval("{:.2f}".format), _with_interval("{:.3f}".format)
ACROSS_COLUMNS = (
    LABEL,
    own("runs", "n", "n", COUNT),
    own("gain", "Share of the baseline's gain", "基準の改善幅に対する比", _GAIN, short="Gain"),
    own(
        *("improvement", "Probability of improvement", "改善確率", _GAIN),
        short="P(improves)",
    ),
    Column(
        key="time_ratio",
        en="Training time ÷ baseline's",
        ja="学習時間 ÷ 基準",
        figure=_find_time,
        show=_show_time,
        short="Time ×",
    ),
    own("score", "Score", "得点", _SCORE, is_optional=True),
    own(
        *("by_data", "Gain by data set", "データセット別", _show_gains),
        short="By data set",
        is_text=True,
    ),
)


def _list_rows(data: Mapping[str, Any]) -> list[Row]:
    across: AcrossResults | None = data["across"]
    return [*across.configurations] if across else []


ACROSS_TABLE = Table(columns=ACROSS_COLUMNS, rows=_list_rows)
