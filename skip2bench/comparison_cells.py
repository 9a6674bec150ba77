"""The runs of a comparison's cells, as far as the report shows them: curves and training set-up."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skip2bench.curves import LossCurve, find_curve
from skip2bench.result_files import DamagedFileError
from skip2bench.run_folders import Run, find_run


@dataclass(frozen=True, kw_only=True)
class ShownCells:
    """Cells at the best learning rate of their configuration, by the name of the cell."""

    runs: dict[str, Run] = field(default_factory=dict)
    curves: dict[str, LossCurve] = field(default_factory=dict)
    damaged: dict[Path, str] = field(default_factory=dict)
    """By folder, why a cell's files cannot be read; its figures are in the results file."""


def read_cells(folder: Path, results: Mapping[str, Any]) -> ShownCells:
    """Read what the report shows of a comparison's cells; cells without a run folder are skipped.

    Args:
        folder: The comparison's folder.
        results: Content of its results file, checked.
    """
    found = ShownCells()
    for entry in results["configurations"]:
        for name in list_shown(results, entry):
            cell = folder / "cells" / name
            if not cell.is_dir():
                continue
            try:
                run = find_run(cell)
                curve = find_curve(run)
            except DamagedFileError as error:
                found.damaged[cell] = str(error)
                continue
            found.runs[name] = run
            if curve:
                found.curves[name] = curve
    return found


def list_shown(results: Mapping[str, Any], entry: Mapping[str, Any]) -> Iterator[str]:
    """Names of a configuration's cells whose curves are shown; none of a control run."""
    for name, cell in results["cells"].items():
        is_own = cell["configuration"] == entry["name"] and not entry["is_aa"]
        is_shown = cell["role"] == "run" and cell["status"] == "ok"
        if is_own and is_shown and cell["learning_rate"] == entry["learning_rate"]:
            yield name
