"""The table of what lm-evaluation-harness found."""

from collections.abc import Mapping
from typing import Any

from skip2bench.report.selection import Selection
from skip2bench.report.tables.cells import COUNT, LABEL, Output, Row, Table, own, show_label


def _show_value(it: tuple[float, float | None], _: Output) -> str:
    value, error = it
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


HARNESS_COLUMNS = (
    LABEL,
    own("task", "Task", "タスク", show_label, is_text=True),
    own("metric", "Metric", "指標", show_label, is_text=True),
    own("samples", "Questions", "問題数", COUNT),
    own("value", "Value ± standard error", "値 ± 標準誤差", _show_value, short="Value ± SE"),
)


def list_harness(selection: Selection) -> list[dict[str, Any]]:
    """A row a configuration and metric."""
    results, found = selection.results, selection.harness
    labels = {it.name: it.label for it in (results.configurations if results else ())}
    return [
        {
            "label": labels[name],
            "task": it.task,
            "metric": it.metric,
            "samples": it.samples,
            "value": (it.value, it.standard_error),
        }
        for name, entry in (found.configurations.items() if found else ())
        for it in entry.metrics
        if name in labels
    ]


def _list_rows(data: Mapping[str, Any]) -> list[Row]:
    return list(data["harness"])


HARNESS_TABLE = Table(columns=HARNESS_COLUMNS, rows=_list_rows)
