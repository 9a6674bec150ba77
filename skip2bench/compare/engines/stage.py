"""What cells read, copied once to a worker's own disk: checkpoint, data, kept caches.

A shared file system serves all workers at once, and slowly. The copy lies under the hash of its
path, size and time of change, is compared with what was read by sha256, and is made by one worker
of a machine while the others wait.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from skip2bench.config.train import INPUT_PATHS, TrainConfig
from skip2bench.data.files import is_place, list_inputs
from skip2bench.errors import Skip2BenchError
from skip2bench.io.units import format_bytes
from skip2bench.io.whole import hash_file

_CHECKPOINT, _CACHE = "checkpoint_dir", "cache_dir"


def stage_spec(spec: dict[str, Any], stage: Path, *, reads_cache: bool) -> dict[str, Any]:
    """A cell's spec in which what it reads lies below `stage`; what it writes stays where it was.

    Args:
        spec: As the cell's process takes it.
        stage: A folder of this machine's own.
        reads_cache: Whether its kept cache is among what it reads.

    Raises:
        Skip2BenchError: a file is not here, or the disk has too little room.
    """
    config = dict(spec["config"])
    for name in (_CHECKPOINT, *INPUT_PATHS, *((_CACHE,) if reads_cache else ())):
        value = config.get(name)
        if not value or not Path(str(value)).exists():
            continue
        if name in INPUT_PATHS and not is_place(name, str(value)):
            continue
        config[name] = str(stage_path(Path(str(value)), stage))
    return spec | {"config": config}


def list_read(configs: Iterable[TrainConfig]) -> tuple[str, ...]:
    """Paths of what runs of those configurations read, of those that are files or folders here."""
    found: dict[str, None] = {}
    for config in configs:
        checkpoint = config.checkpoint_dir
        own = [str(checkpoint)] if checkpoint is not None and checkpoint.exists() else []
        found |= dict.fromkeys((*own, *list_inputs(config).values()))
    return tuple(found)


def stage_path(source: Path, stage: Path) -> Path:
    """The copy of a file or folder below `stage`, made where it is not there yet.

    Raises:
        Skip2BenchError: it cannot be made.
    """
    files = dict(_list_files(source))
    target = stage / _name(source, files) / source.resolve().name
    done = target.parent / "whole"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / "lock"):
            if not done.exists():
                _copy(source, target, files)
                done.touch()
    except OSError as error:
        raise Skip2BenchError(
            f"cannot copy {str(source)!r} to {str(stage)!r} ({error.strerror}); choose another "
            "--stage, or leave it out"
        ) from error
    return target


def _list_files(source: Path) -> Iterator[tuple[Path, os.stat_result]]:
    paths = sorted(source.rglob("*")) if source.is_dir() else [source]
    yield from ((path, path.stat()) for path in paths if path.is_file())


def _name(source: Path, files: dict[Path, os.stat_result]) -> str:
    seen = [str(source.resolve())]
    seen += [f"{path}:{stat.st_size}:{stat.st_mtime_ns}" for path, stat in files.items()]
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()[:16]


def _copy(source: Path, target: Path, files: dict[Path, os.stat_result]) -> None:
    needed = sum(stat.st_size for stat in files.values())
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise Skip2BenchError(
            f"{str(source)!r} takes {format_bytes(needed)}, and {str(target.parent.parent)!r} has "
            f"{format_bytes(free)} free; choose another --stage"
        )
    for path in files:
        copy = target / path.relative_to(source) if source.is_dir() else target
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        if hash_file(copy) != hash_file(path):
            raise Skip2BenchError(
                f"the copy of {str(path)!r} in {str(target.parent)!r} differs from it; check that "
                "disk, or choose another --stage"
            )
