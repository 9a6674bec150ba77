"""Whether a cell that ended well still has what it wrote: summary, curves, steps, adapter."""

from pathlib import Path

from skip2bench.curves import read_loss_curve
from skip2bench.errors import Skip2BenchError
from skip2bench.result_files import DamagedFileError
from skip2bench.run_folders import Run, find_run


def find_damage(folder: Path) -> str | None:
    """What is missing or damaged in a finished run's folder, in a few words; None where nothing is.

    A benchmark's or a peer's run is checked as far as its summary.
    """
    try:
        run = find_run(folder)
        if run.summary.get("status") != "ok":
            return f"its status is {run.summary.get('status')!r}"
        if run.kind != "train" or run.summary.get("peer"):
            return None
        if read_loss_curve(run) is None:
            return "metrics.csv is missing, or has no row"
    except DamagedFileError as error:
        return str(error)
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
