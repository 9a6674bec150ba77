"""Skip-Caches kept across runs: a folder of entries, each with a manifest that is written last.

    <cache folder>/<entry>/manifest.json    what it is, sizes and checksums of its files
    <cache folder>/<entry>/<array>.bin      see `arrays`
    <cache folder>/<entry>.lock             held while the entry is built, by .lock.pid

An entry serves every run with the same key (weights, precision, versions) whose samples and blocks
are among its own, whatever the run's learning rate, rank, seed or number of epochs. It is built
aside and renamed into place; its files are checked against the manifest, and one that is damaged is
never used.
"""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from torch import Tensor

from skip2bench.cache.arrays import Layout, Tier, map_files, raw_bytes, read_files
from skip2bench.cache.checksums import Checksum, read_file
from skip2bench.cache.skip_cache import SampleIndex, SkipCache, stored_counts
from skip2bench.data.samples import Samples
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note
from skip2bench.io.locks import ProcessLock
from skip2bench.io.whole import sync, utc_now, write_json


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A cache on disk."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.name

    @property
    def layout(self) -> Layout:
        """Of its arrays."""
        stored = self.manifest["layout"]
        return Layout(
            blocks=tuple(stored["blocks"]),
            n_embd=stored["n_embd"],
            dtype=getattr(torch, stored["dtype"]),
            compute_dtype=getattr(torch, stored["compute_dtype"]),
            n_logits=stored["n_logits"],
            # not in those of runs without a projection
            projected=stored.get("projected", 0),
            projected_blocks=tuple(stored.get("projected_blocks", ())),
            whole_samples=stored.get("whole_samples", False),
        )

    @property
    def rows(self) -> int:
        """Positions."""
        return sum(self.manifest["counts"])

    @property
    def nbytes(self) -> int:
        """Bytes of its files."""
        return sum(file["bytes"] for file in self.manifest["files"].values())

    def verify(self) -> None:
        """Check sizes and checksums.

        Raises:
            DamagedError: which file is not as it was written.
        """
        self._check_sizes()
        for name in self.layout.specs:
            self._check_sum(name, read_file(self.folder / f"{name}.bin"))

    def open(
        self, wanted: Layout, samples: Samples, ids: Sequence[int], tier: Tier, device: torch.device
    ) -> SkipCache:
        """The cache of the given samples with the arrays of `wanted`, its files verified.

        Raises:
            DamagedError: see `verify`.
        """
        layout = replace(self.layout, n_logits=wanted.n_logits)
        if tier == "disk":
            self.verify()
            arrays = map_files(self.folder, layout, self.rows)
        else:
            self._check_sizes()
            arrays, checksums = read_files(self.folder, layout, self.rows)
            for name, found in checksums.items():
                self._check_sum(name, found)
            if tier == "device":
                arrays = arrays.to(device)
        columns = tuple(layout.blocks.index(block) for block in wanted.blocks)
        return SkipCache(
            layout=layout,
            arrays=arrays,
            index=self._index(samples, ids),
            columns=None if wanted.blocks == layout.blocks else columns,
            is_kept=True,
        )

    def discard(self) -> None:
        """Make sure that nobody takes this entry for a good one; its space is reused by the next.

        Nothing happens where the folder cannot be written.
        """
        with contextlib.suppress(OSError):
            (self.folder / MANIFEST).unlink()

    def _index(self, samples: Samples, ids: Sequence[int]) -> SampleIndex:
        """Where the samples of this run lie in the entry, found by what they are made of."""
        places, row = {}, 0
        for sample_hash, count in zip(
            self.manifest["samples"], self.manifest["counts"], strict=True
        ):
            places[sample_hash] = (row, count)
            row += count
        starts = torch.zeros(len(samples), dtype=torch.long)
        counts = torch.zeros(len(samples), dtype=torch.long)
        for i in ids:
            starts[i], counts[i] = places[hash_sample(samples, i)]
        return SampleIndex(starts=starts, counts=counts)

    def _check_sizes(self) -> None:
        for name, (shape, dtype) in self.layout.specs.items():
            path = self.folder / f"{name}.bin"
            expected = self.rows * torch.Size(shape).numel() * dtype.itemsize
            found = path.stat().st_size if path.is_file() else None
            if found != expected or self.manifest["files"][name]["bytes"] != expected:
                raise DamagedError(f"{path.name} has {found} bytes instead of {expected}")

    def _check_sum(self, name: str, found: str) -> None:
        if found != self.manifest["files"][name]["checksum"]:
            raise DamagedError(f"{name}.bin does not have the checksum that was written down")


class CacheFolder:
    """A folder of entries."""

    def __init__(self, root: Path) -> None:
        """Nothing is read or made yet."""
        self.root = root

    def entries(self) -> list[Entry]:
        """All entries with a readable manifest, by name."""
        found = []
        for path in sorted(self.root.glob(f"*/{MANIFEST}")):
            try:
                manifest = json.loads(path.read_text(encoding="utf-8"))
                entry = Entry(folder=path.parent, manifest=manifest)
                is_whole = manifest["format"] == FORMAT and entry.nbytes >= 0
                is_whole = is_whole and len(manifest["samples"]) == len(manifest["counts"])
                if is_whole and entry.layout.specs and {"key", "about"} <= manifest.keys():
                    found.append(entry)
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                continue  # of another version, or no manifest at all
        return found

    def select(self, names: Sequence[str] | None) -> list[Entry]:
        """The entries of these names; all of them where none is given.

        Raises:
            Skip2BenchError: there is no such folder, or no entry of a name.
        """
        if not self.root.is_dir():
            raise Skip2BenchError(f"cache folder {str(self.root)!r} does not exist")
        entries = {entry.name: entry for entry in self.entries()}
        for name in names or ():
            if name not in entries:
                raise Skip2BenchError(
                    f"{str(self.root)!r} has no cache {name!r}; see "
                    + shlex.join(["skip2bench", "cache", "list", "--cache-dir", str(self.root)])
                )
        return [entries[name] for name in names or entries]

    def find(
        self, key: dict[str, Any], layout: Layout, samples: Samples, ids: Sequence[int]
    ) -> Entry | None:
        """The smallest entry that serves these samples with these blocks; None where none does."""
        wanted = {hash_sample(samples, i) for i in ids}
        fitting = [
            entry
            for entry in self.entries()
            if entry.manifest["key"] == _whole_key(key, layout)
            and set(layout.blocks) <= set(entry.layout.blocks)
            and layout.projected_blocks == entry.layout.projected_blocks
            and layout.whole_samples == entry.layout.whole_samples
            and (not layout.n_logits or entry.layout.n_logits)
            and wanted <= set(entry.manifest["samples"])
        ]
        return min(fitting, key=lambda entry: entry.nbytes, default=None)

    def lock(self, name: str) -> ProcessLock:
        """The lock under which entry `name` is built, acquired; waiting is said to the user.

        Raises:
            Skip2BenchError: the folder cannot be written.
        """
        lock = self._lock(name)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout_seconds=0)
            except Timeout:
                note(f"{lock.holder} builds the cache {name}; waiting for it")
                lock.acquire()
        except OSError as error:
            raise Skip2BenchError(
                f"cannot write to cache folder {str(self.root)!r} ({error.strerror}); choose "
                "another --cache-dir"
            ) from error
        return lock

    @contextmanager
    def building(self, name: str) -> Iterator[Path]:
        """An empty folder to build entry `name` in, under its lock; removed where that fails.

        So are those that killed processes left, whichever entries they were building.
        """
        for path, other in self._list_asides():
            if other == name or self._is_free(other):
                shutil.rmtree(path, ignore_errors=True)
        folder = self.find_aside(name)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # it is in its place, or of no use

    def find_aside(self, name: str) -> Path:
        """Where `build` has an entry made."""
        return self.root / f".{name}.part"

    def commit(
        self,
        name: str,
        content: dict[str, Any],
        checksums: dict[str, str],
        about: dict[str, Any],
    ) -> Entry:
        """Write the manifest of what was put into `building(name)` and move it into place.

        Args:
            name: Of the entry.
            content: See `describe_content`.
            checksums: Of each array's file.
            about: For people only.
        """
        folder = self.find_aside(name)
        for path in folder.glob("*.bin"):
            sync(path)
        manifest = {
            "format": FORMAT,
            "created_at": utc_now(),
            "about": about,
            "files": {
                array: {"bytes": (folder / f"{array}.bin").stat().st_size, "checksum": checksum}
                for array, checksum in checksums.items()
            },
            **content,
        }
        write_json(folder / MANIFEST, manifest)
        target = self.root / name
        shutil.rmtree(target, ignore_errors=True)  # a damaged one
        os.rename(folder, target)
        sync(self.root)
        return Entry(folder=target, manifest=manifest)

    def remove(self, name: str) -> None:
        """Remove an entry that `select` gave.

        Raises:
            Skip2BenchError: it is being built.
        """
        folder, lock = self.root / name, self._lock(name)
        try:
            lock.acquire(timeout_seconds=0)
        except Timeout as error:
            raise Skip2BenchError(
                f"cache {name!r} is being built by {lock.holder}; wait for it"
            ) from error
        try:
            (folder / MANIFEST).unlink()  # first, so that what remains is never taken for one
            shutil.rmtree(folder)
        finally:
            lock.release()

    def clear_left_over(self) -> int:
        """Remove what killed builds and damaged entries have left; returns its bytes."""
        freed = 0
        husks = [(path, path.name) for path in sorted(self.root.iterdir()) if _is_husk(path)]
        for path, name in (*self._list_asides(), *husks):
            if self._is_free(name):
                freed += sum(it.stat().st_size for it in path.glob("*"))
                shutil.rmtree(path, ignore_errors=True)
        return freed

    def _list_asides(self) -> list[tuple[Path, str]]:
        """Folders in which entries are being made, or were, and the entries' names."""
        found = sorted(self.root.glob(".*.part"))
        return [(path, path.name.removeprefix(".").removesuffix(".part")) for path in found]

    def _lock(self, name: str) -> ProcessLock:
        return ProcessLock(self.root / f"{name}.lock")

    def _is_free(self, name: str) -> bool:
        """True where nobody builds entry `name`."""
        lock = self._lock(name)
        try:
            lock.acquire(timeout_seconds=0)
        except (Timeout, OSError):
            return False
        lock.release()
        return True


def describe_content(
    key: dict[str, Any], layout: Layout, samples: Samples, order: Sequence[int]
) -> dict[str, Any]:
    """What the manifest says of an entry's rows.

    Args:
        key: What they depend on, see `CacheFolder.find`.
        layout: Of the arrays.
        samples: All samples of the side.
        order: Those that are stored, in the order of their rows.
    """
    counts = stored_counts(samples, layout)
    projected = {
        "projected": layout.projected,
        "projected_blocks": list(layout.projected_blocks),
    }
    return {
        "key": _whole_key(key, layout),
        "layout": {
            "blocks": list(layout.blocks),
            "n_embd": layout.n_embd,
            "dtype": _dtype_name(layout.dtype),
            "compute_dtype": _dtype_name(layout.compute_dtype),
            "n_logits": layout.n_logits,
            **(projected if layout.projected else {}),
            **({"whole_samples": True} if layout.whole_samples else {}),
        },
        "samples": [hash_sample(samples, i) for i in order],
        "counts": [counts[i] for i in order],
    }


def entry_name(key: dict[str, Any], layout: Layout, samples: Samples, order: Sequence[int]) -> str:
    """Name of the entry that holds exactly these samples and blocks."""
    parts = [_whole_key(key, layout), list(layout.blocks), layout.n_logits]
    parts += ["whole samples"] if layout.whole_samples else []
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for i in sorted(order):
        digest.update(hash_sample(samples, i).encode())
    return digest.hexdigest()[:16]


def write_arrays(arrays: dict[str, Tensor], folder: Path, layout: Layout) -> dict[str, str]:
    """Write a cache that is in memory as `FileWriter` would; checksum of each file."""
    checksums = {}
    for name in layout.specs:
        content = raw_bytes(arrays[name].cpu())
        (folder / f"{name}.bin").write_bytes(content)
        checksum = Checksum()
        checksum.update(content)
        checksums[name] = checksum.hexdigest()
    return checksums


def _whole_key(key: dict[str, Any], layout: Layout) -> dict[str, Any]:
    return {**key, "dtype": _dtype_name(layout.dtype), "n_embd": layout.n_embd}


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


FORMAT = 1
MANIFEST = "manifest.json"


class DamagedError(Exception):
    """An entry's files are not what its manifest says."""


def hash_sample(samples: Samples, i: int) -> str:
    """Identity of a sample: its token ids and labels."""
    digest = hashlib.sha256()
    for tensor in (samples.input_ids[i], samples.labels[i]):
        digest.update(tensor.numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:32]


def _is_husk(path: Path) -> bool:
    """True for an entry without its manifest: arrays, and nothing else."""
    files = [*path.glob("*")] if path.is_dir() and not path.name.startswith(".") else []
    return bool(files) and all(it.suffix == ".bin" for it in files)
