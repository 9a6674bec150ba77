"""Records for tests: what a test does not speak of is filled in, and nothing is checked twice."""

import json
from pathlib import Path
from typing import Any

from skip2bench.io.whole import to_json
from skip2bench.machine.environment_record import Environment
from skip2bench.results.comparison_records import (
    ComparedCell,
    ComparedConfiguration,
    ComparisonResults,
    FigureRatio,
    FigureSummary,
)
from skip2bench.results.reading import Run
from skip2bench.results.run_records import TrainSummary


def plain(content: Any) -> Any:
    """A record, or what is made of records, as its file has it."""
    return json.loads(to_json(content))


def make_summary(**figures: Any) -> TrainSummary:
    """Summary of a training run that ended well."""
    return TrainSummary(**{"schema_version": 1, "kind": "train", "status": "ok"} | figures)


def make_run(
    folder: Path = Path(), config: dict[str, Any] | None = None, **figures: Any
) -> Run[TrainSummary]:
    """A training run as it is read back, with nothing known of its machine."""
    summary = make_summary(**figures)
    return Run(folder=folder, summary=summary, environment=Environment(), config=config or {})


Parts = dict[str, dict[str, Any]]


def make_configuration(
    *, figures: Parts | None = None, against_baseline: Parts | None = None, **own: Any
) -> ComparedConfiguration:
    """A configuration; its figures and ratios may lack what records always have."""
    known = {
        **{"name": "x", "label": "x", "method": "skip2", "blocks": None, "rank": None},
        **{"target": None, "peer": None, "is_aa": False, "is_baseline": False},
        **{"trainable_parameters": None, "learning_rate": 1e-3, "learning_rate_at_edge": False},
        **{"grid": (), "seeds": (1, 2, 3), "target_reached": 0, "differences": ()},
    }
    none = {"low": None, "high": None, "is_difference": False}
    return ComparedConfiguration.model_construct(
        **known | own,
        figures={
            name: FigureSummary.model_construct(**{"n": 3} | figure)
            for name, figure in (figures or {}).items()
        },
        against_baseline={
            name: FigureRatio.model_construct(**none | ratio)
            for name, ratio in (against_baseline or {}).items()
        },
    )


def make_results(
    configurations: list[ComparedConfiguration], cells: dict[str, dict[str, Any]]
) -> ComparisonResults:
    """A comparison of these configurations."""
    return ComparisonResults(
        schema_version=1,
        config={"seeds": 3, "match_params": False, "target_loss": None},
        learning_rates="fixed",
        warnings=(),
        configurations=tuple(configurations),
        cells={name: ComparedCell(**{"error": None} | cell) for name, cell in cells.items()},
    )
