"""`compare --lm-eval`: each configuration's model, exported, asked by lm-evaluation-harness.

The harness is the users' own (`pip install 'skip2bench[eval]'`), and so are the tasks and their
data: it runs in a process of its own, offline, on the model in Hugging Face's form, which is
removed again. What was asked before is not asked again.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from skip2bench.config.compare import CompareConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.export.run import run_export
from skip2bench.io.console import Waiting, note, warn
from skip2bench.io.units import format_duration
from skip2bench.io.whole import hash_file, write_json
from skip2bench.results.comparison_records import ComparedConfiguration, ComparisonResults
from skip2bench.results.harness import (
    HARNESS_FILE,
    HarnessEntry,
    HarnessMetric,
    HarnessResults,
    read_harness,
)
from skip2bench.results.plain import DamagedFileError
from skip2bench.results.run_records import SCHEMA_VERSION

_MODULE = "lm_eval"
_FOLDER = "lm_eval"
"""Below the comparison's: logs, and a model while it is asked."""


def check_harness(config: CompareConfig) -> None:
    """See that the harness is there and knows the tasks, before hours of runs.

    Raises:
        Skip2BenchError: it is not, or does not.
    """
    folder = config.lm_eval_tasks
    if folder is not None and not folder.is_dir():
        raise Skip2BenchError(f"lm_eval_tasks is {str(folder)!r}, which is no folder")
    if importlib.util.find_spec(_MODULE) is None:
        raise Skip2BenchError(
            "--lm-eval needs lm-evaluation-harness; install it with: pip install 'skip2bench[eval]'"
        )
    command = [sys.executable, "-c", _LIST_TASKS, str(folder or ""), *config.lm_eval]
    with Waiting("looking for the tasks of lm-eval"):
        ended = subprocess.run(command, capture_output=True, text=True, env=_offline(), check=False)
    unknown = ended.stdout.split("\n")[:-1]
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or ["no message"]
        raise Skip2BenchError(f"lm-eval cannot list its tasks: {lines[-1]}")
    if unknown:
        raise Skip2BenchError(
            f"lm-eval knows no task {', '.join(unknown)}; check the name, or give the folder of "
            "its YAML file as --lm-eval-tasks"
        )


_LIST_TASKS = """
import sys
from lm_eval.tasks import TaskManager
known = set(TaskManager(include_path=sys.argv[1] or None).all_tasks)
print(*(f"{name}\\n" for name in sys.argv[2:] if name not in known), sep="", end="")
"""


def run_harness(
    config: CompareConfig, folder: Path, results: ComparisonResults, device: str
) -> HarnessResults:
    """Ask every configuration's model that was not asked yet, and write what was found.

    Args:
        config: Of the comparison, with its tasks.
        folder: Of the comparison.
        results: What it found.
        device: cpu, cuda or mps.

    Raises:
        Skip2BenchError: the harness fails; what was found before is kept.
    """
    known: dict[str, HarnessEntry] = {}
    with suppress(DamagedFileError):  # it is written anew
        stored = read_harness(folder)
        known = dict(stored.configurations) if stored else {}
    found: dict[str, HarnessEntry] = {}
    left_out: dict[str, str] = {}
    for entry, run in _list_runs(results):
        if entry.peer is not None:
            left_out[entry.name] = "another program's run"
            continue
        key = _make_key(config, folder / "cells" / run)
        if entry.name in known and known[entry.name].key == key:
            found[entry.name] = known[entry.name]
            continue
        try:
            found[entry.name] = _ask(config, folder, entry, run, key, device)
        except _CannotExportError as error:
            warn(f"{entry.label} is not asked: {error}")
            left_out[entry.name] = str(error)
        write_json(folder / HARNESS_FILE, _collect(config, found, left_out))
    content = _collect(config, found, left_out)
    write_json(folder / HARNESS_FILE, content)
    return content


class _CannotExportError(Exception):
    """A model that has no ordinary form; its text says why."""


def _collect(
    config: CompareConfig, found: dict[str, HarnessEntry], left_out: dict[str, str]
) -> HarnessResults:
    return HarnessResults(
        schema_version=SCHEMA_VERSION,
        tasks=config.lm_eval,
        limit=config.lm_eval_limit,
        version=importlib.metadata.version(_MODULE),
        configurations=dict(found),
        left_out=dict(left_out),
    )


def _list_runs(results: ComparisonResults) -> Iterator[tuple[ComparedConfiguration, str]]:
    """Each configuration, and the run of its first seed at its best learning rate."""
    for entry in results.configurations:
        own = {cell.seed: name for name, cell in results.cells_of(entry)}
        if own and not entry.is_aa:
            yield entry, own[min(own)]


def _make_key(config: CompareConfig, run: Path) -> str:
    """Hash of what decides the figures."""
    files = sorted(config.lm_eval_tasks.rglob("*")) if config.lm_eval_tasks else []
    content = {
        "tasks": config.lm_eval,
        "limit": config.lm_eval_limit,
        "version": importlib.metadata.version(_MODULE),
        "files": {str(path): hash_file(path) for path in files if path.is_file()},
        "run": json.loads((run.parent / f"{run.name}.json").read_text(encoding="utf-8"))["key"],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _ask(
    config: CompareConfig,
    folder: Path,
    entry: ComparedConfiguration,
    run: str,
    key: str,
    device: str,
) -> HarnessEntry:
    place = folder / _FOLDER
    place.mkdir(exist_ok=True)
    model, output = place / f"{entry.name}.model", place / f"{entry.name}.found"
    for path in (model, output):  # left by a call that was killed
        shutil.rmtree(path, ignore_errors=True)
    try:
        try:
            run_export(folder / "cells" / run, "hf", model)
        except Skip2BenchError as error:
            raise _CannotExportError(str(error)) from error
        began = time.monotonic()
        with Waiting(f"lm-eval: {entry.label}"):
            _run_process(config, model, output, place / f"{entry.name}.log", device)
        seconds = time.monotonic() - began
        metrics = read_metrics(output)
    finally:
        for path in (model, output):
            shutil.rmtree(path, ignore_errors=True)
    shown = ", ".join(f"{it.task} {it.metric} {it.value:.3g}" for it in metrics)
    note(f"lm-eval, {entry.label}: {shown} ({format_duration(seconds, 'en')})")
    return HarnessEntry(run=run, key=key, seconds=seconds, metrics=metrics)


def _run_process(
    config: CompareConfig, model: Path, output: Path, log_file: Path, device: str
) -> None:
    command = [
        *(sys.executable, "-m", _MODULE, "--model", "hf"),
        *(
            "--model_args",
            f"pretrained={model},dtype=float32" if device == "cpu" else f"pretrained={model}",
        ),
        *("--tasks", ",".join(config.lm_eval), "--output_path", str(output), "--device", device),
    ]
    if config.lm_eval_tasks is not None:
        command += ["--include_path", str(config.lm_eval_tasks)]
    if config.lm_eval_limit is not None:
        command += ["--limit", str(config.lm_eval_limit)]
    if config.lm_eval_chat:
        command.append("--apply_chat_template")
    with log_file.open("w", encoding="utf-8") as log:
        ended = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, env=_offline(), check=False
        )
    if ended.returncode:
        text = log_file.read_text(encoding="utf-8", errors="replace").strip()
        last = text.splitlines()[-1] if text else f"exit status {ended.returncode}"
        raise Skip2BenchError(f"lm-eval failed: {last}; see {log_file}")


def _offline() -> dict[str, str]:
    """The environment: nothing is fetched unless the user has said so."""
    return {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", **os.environ}


def read_metrics(output: Path) -> tuple[HarnessMetric, ...]:
    """What the harness wrote below its output folder.

    Raises:
        Skip2BenchError: it wrote nothing that can be read.
    """
    files = sorted(output.rglob("results*.json"))
    try:
        content: Any = json.loads(files[-1].read_text(encoding="utf-8"))
        samples = content.get("n-samples", {})
        return tuple(
            HarnessMetric(
                task=task,
                metric=name,
                value=float(value),
                standard_error=_find_error(figures, name),
                samples=samples.get(task, {}).get("effective"),
            )
            for task, figures in content["results"].items()
            for name, value in figures.items()
            if "," in name and "_stderr," not in name and isinstance(value, int | float)
        )
    except (IndexError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Skip2BenchError(
            f"lm-eval left no results that can be read in {str(output)!r} ({error})"
        ) from error


def _find_error(figures: dict[str, Any], name: str) -> float | None:
    metric, _, own_filter = name.partition(",")
    value = figures.get(f"{metric}_stderr,{own_filter}")
    return float(value) if isinstance(value, int | float) else None
