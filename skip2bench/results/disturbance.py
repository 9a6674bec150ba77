"""Which figures of a run were measured while something else used the processor.

A time says nothing on a method then. What the system does not say is never called disturbed.
"""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from skip2bench.io.units import format_seconds
from skip2bench.results.figures import OTHERS_CORES_RATIO
from skip2bench.results.reading import BenchRun, TrainRun
from skip2bench.results.run_records import ProcessorUse

_FIGURES = {
    "training": (
        *("train_seconds", "steps_per_second", "tokens_per_second", "time_to_target_seconds"),
        *("reused_train_seconds", "reused_time_to_target_seconds"),
    ),
    "cache_build": ("cache_build_seconds", "reused_cache_build_seconds"),
    "steps": (
        *("data_seconds", "forward_seconds", "backward_seconds", "optimizer_seconds"),
        "epoch_seconds",
    ),
    "validation": ("validation_seconds",),
}
"""By what was looked at, the figures of a cell that rest on its time."""


def is_disturbed(others_cores: float | None, n_cores: int | None) -> bool:
    """True where others kept more than `OTHERS_CORES_RATIO` of the cores busy."""
    return (others_cores or 0.0) > OTHERS_CORES_RATIO * (n_cores or 1)


def find_disturbed(
    processor: Mapping[str, ProcessorUse] | None, n_cores: int | None
) -> dict[str, ProcessorUse]:
    """What of a run was disturbed, by its name in `summary.json`."""
    return {
        name: use
        for name, use in (processor or {}).items()
        if is_disturbed(use.others_cores, n_cores)
    }


def list_disturbed_figures(run: TrainRun, other_cpu_cores: float | None = None) -> tuple[str, ...]:
    """Names of the figures of a cell that were disturbed.

    A part that was too short to tell who used the processor goes by the whole process.

    Args:
        run: The cell's run.
        other_cpu_cores: What others kept busy during the cell's whole process, where that is known.
    """
    n_cores, processor = run.environment.cpu_count, run.summary.processor
    parts = list(find_disturbed(processor, n_cores))
    is_whole = processor is not None and is_disturbed(other_cpu_cores, n_cores)
    if is_whole:
        parts += [name for name, use in (processor or {}).items() if use.others_cores is None]
    names = [name for part in parts for name in _FIGURES.get(part, ())]
    if is_whole:
        names.append("wall_seconds")
    return tuple(dict.fromkeys(names))


def find_disturbed_timing(run: BenchRun) -> dict[str, ProcessorUse]:
    """What of a benchmark was disturbed: `timing`, a round of it, or `inference`."""
    return find_disturbed(run.summary.processor, run.environment.cpu_count)


def repeat_training(folder: Path | str) -> str:
    """The command that repeats a training run, in a new folder."""
    return shlex.join(["skip2bench", "train", "--config", str(Path(folder) / "config.yaml")])


def repeat_comparison(folder: Path | str) -> str:
    """The command that repeats what was disturbed of a comparison, in its folder."""
    config = str(Path(folder) / "config.yaml")
    words = ["--config", config, "--out-dir", str(folder), "--repeat-disturbed"]
    return shlex.join(["skip2bench", "compare", *words])


def repeat_benchmark(command: str | None) -> str:
    """The command that repeats a benchmark; into its own folder where it was given one."""
    words = shlex.split(command or "skip2bench bench")
    has_folder = any(word.split("=")[0] in ("--out-dir", "--out_dir") for word in words)
    return shlex.join([*words, "--force"] if has_folder and "--force" not in words else words)


_WORDS = {"cache_build": "building Skip-Cache", "timing": "the whole timing"}


def describe_disturbed(disturbed: Mapping[str, ProcessorUse], command: str) -> Iterator[str]:
    """For people: what was disturbed by how much, and the command that repeats it; none if none."""
    if not disturbed:
        return
    parts = [
        f"{_WORDS.get(name, name)} ({use.others_cores or 0.0:.1f} cores busy over "
        f"{format_seconds(use.wall_seconds or 0.0)})"
        for name, use in disturbed.items()
    ]
    yield f"something else used the processor during {', '.join(parts)}: these times say little"
    yield f"repeat it with: {command}"
