"""`compare --data-sets`: the same comparison on one data set after the other, and their sum.

The folder holds a comparison for each data set, whole and by itself, and beside them:

    config.yaml      the matrix, with its data sets
    across.json      what they come to together, rewritten after every data set
"""

import itertools
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from skip2bench.compare.folder import find_newest
from skip2bench.compare.plan import resolve_auto_blocks
from skip2bench.compare.run import run_comparison
from skip2bench.config.compare import CompareConfig
from skip2bench.config.methods import TRADITIONAL
from skip2bench.config.options import to_plain
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note
from skip2bench.io.locks import locked_folder
from skip2bench.io.text import check_folder
from skip2bench.io.units import format_duration
from skip2bench.io.whole import utc_now, write_json, write_yaml
from skip2bench.machine.environment_record import DataRecord
from skip2bench.results.across import (
    RESAMPLES,
    AcrossResult,
    AcrossResults,
    read_data_set,
    summarise_across,
)
from skip2bench.results.comparison_records import ComparisonResult, DryRun
from skip2bench.results.plain import DamagedFileError
from skip2bench.results.reading import ACROSS_FILE, SUMMARY_FILE
from skip2bench.results.run_folder import create_run_folder
from skip2bench.results.run_records import SCHEMA_VERSION
from skip2bench.train.plan import TrainingPlan, plan_training


def run_across(config: CompareConfig, arguments: Sequence[str] = ()) -> AcrossResult | DryRun:
    """Compare on every data set, and sum up.

    Args:
        config: The matrix, with two data sets or more.
        arguments: The command line, recorded so that it can be repeated; a program has none.

    Returns:
        What `across.json` holds, and `folder`; after a dry run, `cells` with their folders, and
        `estimated_seconds`.

    Raises:
        Skip2BenchError: bad input of any of them; nothing is written then.
    """
    check_folder("out_dir", config.out_dir)
    plans = {
        data: plan_training(config.cell_config({"method": TRADITIONAL, "data": data}))
        for data in config.data_sets
    }
    asked_for, config = config, resolve_auto_blocks(config, next(iter(plans.values())))
    names = dict(zip(plans, name_folders([plan.data.name for plan in plans.values()]), strict=True))
    if config.dry_run:
        return _try_all(config, names)
    folder = _find_folder(asked_for, next(iter(plans.values())).model_name)
    with locked_folder(folder):
        write_yaml(folder / "config.yaml", to_plain(asked_for))
        errors = []
        known = {names[data]: plan for data, plan in plans.items()}
        content = _write(asked_for, folder, known)
        for number, (data, name) in enumerate(names.items(), start=1):
            note(f"data set {number} of {len(names)}: {plans[data].data.name}")
            try:
                found = run_comparison(config.for_data(data, folder / name), arguments)
            finally:
                content = _write(asked_for, folder, known)
            if isinstance(found, ComparisonResult) and found.error:
                errors.append(f"{name}: {found.error}")
    return AcrossResult.of(content, folder=str(folder), error="; ".join(errors) or None)


def name_folders(names: Sequence[str]) -> list[str]:
    """A folder's name for each data set, all different."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^\w.-]+", "-", Path(name).stem).strip("-.") or "data"
        free = (f"{plain}-{number}" for number in itertools.count(2))
        found.append(next(it for it in itertools.chain((plain,), free) if it not in found))
    return found


def _try_all(config: CompareConfig, names: dict[str, str]) -> DryRun:
    cells: list[str] = []
    seconds = 0.0
    for data, name in names.items():
        found = run_comparison(config.for_data(data, Path(name)))
        assert isinstance(found, DryRun)
        cells += [f"{name}/{cell}" for cell in found.cells]
        seconds += found.estimated_seconds
    note(f"{len(names)} data sets: about {format_duration(seconds, 'en')} in all")
    return DryRun(dry_run=True, cells=tuple(cells), estimated_seconds=seconds)


def _find_folder(config: CompareConfig, model: str) -> Path:
    """The folder to work in: `out_dir`, the newest of the same configuration, or a new one.

    Raises:
        Skip2BenchError: `out_dir` holds a run, or results that are not to be gone on with.
    """
    if config.out_dir is None:
        found = find_newest(config, model) if config.resume else None
        return found or create_run_folder("compare", model, config.flow)
    if (config.out_dir / SUMMARY_FILE).exists():
        raise Skip2BenchError(
            f"{str(config.out_dir)!r} holds a run of its own; choose another --out-dir for several "
            "data sets"
        )
    if (config.out_dir / ACROSS_FILE).exists() and not config.resume:
        raise Skip2BenchError(
            f"{str(config.out_dir)!r} holds a comparison already; choose another --out-dir, or "
            "leave --no-resume out to go on with it"
        )
    return create_run_folder("compare", model, config.flow, config.out_dir)


def _write(config: CompareConfig, folder: Path, plans: dict[str, TrainingPlan]) -> AcrossResults:
    """Rewrite the sum with what there is."""
    found = []
    for name, plan in plans.items():
        with suppress(DamagedFileError):  # it has not begun
            found.append(
                read_data_set(
                    folder / name,
                    DataRecord(name=plan.data.name, samples=len(plan.data.train)),
                )
            )
    data_sets, configurations = summarise_across(found)
    content = AcrossResults(
        schema_version=SCHEMA_VERSION,
        written_at=utc_now(),
        command=found[0].results.command if found else None,
        config=to_plain(config),
        data_sets=data_sets,
        configurations=configurations,
        resamples=RESAMPLES,
    )
    write_json(folder / ACROSS_FILE, content)
    return content
