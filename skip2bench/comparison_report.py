"""A comparison's results as the report reads them back."""

import json
from typing import Any

from skip2bench.errors import Skip2BenchError
from skip2bench.results import Run

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
