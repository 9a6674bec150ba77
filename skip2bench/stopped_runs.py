"""Which run `train --resume` means: where it lies, and whether anything can go on with it."""

from pathlib import Path
from typing import Any

from skip2bench.config import TrainConfig, to_plain
from skip2bench.console import note
from skip2bench.errors import Skip2BenchError
from skip2bench.results import RESULTS, holds_run
from skip2bench.run_folders import Run, read_run

FREE_KEYS = frozenset(("save_interval",))
"""Of a configuration: what may differ when a run goes on."""


def find_stopped(config: TrainConfig) -> Path | None:
    """The folder with the run to go on with; None where there is none, which is said."""
    if config.out_dir is not None:
        if holds_run(config.out_dir):
            check_resumable(config.out_dir)
            return config.out_dir
        note(f"{config.out_dir} holds no run to go on with: a new one starts")
        return None
    for path in sorted((RESULTS / "train").glob("*/summary.json"), reverse=True):
        try:
            run = read_run(path.parent)
        except Skip2BenchError:
            continue  # half of one, from which nothing can go on
        if run.summary.get("status") != "ok" and not find_differences(run, config):
            return run.folder
    note(f"no stopped run of this configuration below {RESULTS / 'train'}: a new one starts")
    return None


def check_resumable(folder: Path) -> Run:
    """The run in a folder, where something can go on with it.

    Raises:
        Skip2BenchError: files are missing or damaged, it is of another kind, or it would diverge
            again.
    """
    for name in ("summary.json", "config.yaml"):
        if not (folder / name).is_file():
            raise Skip2BenchError(
                f"{name} of the run in {str(folder)!r} is missing; bring it back, or start anew "
                "with --force or another --out-dir"
            )
    run = read_run(folder)
    if run.kind != "train" or run.summary.get("peer"):
        raise Skip2BenchError(
            f"{str(folder)!r} holds no run of skip2bench train; choose another --out-dir"
        )
    if (step := run.summary.get("diverged_at_step")) is not None:
        raise Skip2BenchError(
            f"the run in {str(folder)!r} diverged at step {step} and would do so again; start a "
            "new one with a lower --learning-rate"
        )
    return run


def check_is_same(run: Run, config: TrainConfig) -> None:
    """Raise a Skip2BenchError that names the first difference to another configuration."""
    folder = str(run.folder)
    if lost := [name for name in to_plain(config) if name not in run.config]:
        raise Skip2BenchError(
            f"config.yaml of the run in {folder!r} has no {lost[0]}: it is damaged or another "
            "version's; bring it back, or start anew with --force or another --out-dir"
        )
    if differences := find_differences(run, config):
        name, (stored, own) = next(iter(differences.items()))
        raise Skip2BenchError(
            f"the run in {folder!r} has {name} {stored!r}, not {own!r}; leave the flags out to go "
            "on with it as it was, or choose another --out-dir"
        )


def find_differences(run: Run, config: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """By name what a run has and what a configuration says, where these differ."""
    own = to_plain(config)
    return {
        name: (run.config.get(name), value)
        for name, value in own.items()
        if name not in FREE_KEYS and run.config.get(name) != value
    }
