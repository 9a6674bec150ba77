"""Whether a cell that ended well still has what it wrote: summary, curves, steps, adapter."""

from pathlib import Path

from skip2bench.cell_process import CellRun
from skip2bench.errors import Skip2BenchError
from skip2bench.result_files import DamagedFileError
from skip2bench.run_folders import Run, find_run


def read_whole(folder: Path) -> CellRun:
    """The run of a cell that ended well.

    A benchmark's or a peer's run is checked as far as its summary.

    Raises:
        DamagedFileError: something is missing or damaged; its text says what, in a few words.
    """
    cell_run = CellRun(run=find_run(folder))
    damage = _find_damage(cell_run)
    if damage is not None:
        raise DamagedFileError(damage)
    return cell_run


def _find_damage(cell_run: CellRun) -> str | None:
    run = cell_run.run
    if run.summary.get("status") != "ok":
        return f"its status is {run.summary.get('status')!r}"
    if run.kind != "train" or run.summary.get("peer"):
        return None
    try:
        if cell_run.curve is None:
            return "metrics.csv is missing, or has no row"
    except Skip2BenchError as error:
        return str(error).partition("; ")[0]
    return _find_lost_steps(run) or _find_lost_adapter(run)


def _find_lost_steps(run: Run) -> str | None:
    path = run.folder / str(run.summary["log_folder"]) / "steps.csv"
    try:
        rows = path.read_bytes().count(b"\n") - 1
    except OSError:
        return "steps.csv is missing"
    steps = run.summary.get("steps")
    return None if rows == steps else f"steps.csv has {rows} rows, for {steps} steps"


def _find_lost_adapter(run: Run) -> str | None:
    wanted = run.summary.get("adapter_bytes")
    sizes = [path.stat().st_size for path in (run.folder / "final").glob("*") if path.is_file()]
    if wanted is None or wanted in sizes:
        return None
    return f"no file in final has the adapter's {wanted:,} bytes"
