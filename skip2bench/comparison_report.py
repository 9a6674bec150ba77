"""A comparison's results as the report reads them back."""

import json
from dataclasses import replace
from typing import Any

from skip2bench.errors import Skip2BenchError
from skip2bench.results import Run, read_run

RESULTS_FILE = "comparison_results.json"


def read_comparison(run: Run) -> dict[str, Any]:
    """Content of the results file of a comparison's folder.

    Raises:
        Skip2BenchError: it is missing or cannot be read.
    """
    path = run.folder / RESULTS_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not content["configurations"]:
            raise ValueError("no configurations")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Skip2BenchError(
            f"the comparison in {str(run.folder)!r} cannot be read ({error}); call "
            "'skip2bench compare' again with its --out-dir, or move it away"
        ) from error
    return content


def list_curves(run: Run, content: dict[str, Any]) -> list[Run]:
    """One run of each configuration, for the plots: the first seed at the best learning rate.

    Left out are the baseline's repetition and configurations of which no run ended well.
    """
    chosen = []
    for entry in content["configurations"]:
        cells = [
            name
            for name, cell in content["cells"].items()
            if cell["configuration"] == entry["name"]
            and cell["role"] == "run"
            and cell["status"] == "ok"
            and cell["learning_rate"] == entry["learning_rate"]
        ]
        if cells and not entry["is_aa"]:
            cell = read_run(run.folder / "cells" / cells[0])
            chosen.append(replace(cell, summary=cell.summary | {"label": entry["label"]}))
    return chosen
