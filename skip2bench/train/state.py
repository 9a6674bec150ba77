"""States of a training run on disk; what of a run is in them is `saving`'s.

    <run folder>/state/step-00000050.safetensors    the last two of them
    <run folder>/state/best-00000030.safetensors    what had the lowest validation loss, see `keep`

One safetensors file holds tensors and, as JSON in its metadata, everything else, with a sha256 over
both. It is written aside, forced to the disk and renamed, so a crash leaves the states before it.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from skip2bench.cache.arrays import raw_bytes
from skip2bench.io.whole import write_bytes


@dataclass(kw_only=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    peak_rate: float = 0.0
    """Learning rate that the run takes, once it is settled."""
    rates_tried: dict[str, float | None] = field(default_factory=dict)
    """By learning rate, the loss that it came to in a search; None where it diverged."""
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    """Step losses since the last evaluation point."""
    val_losses: list[tuple[int, float]] = field(default_factory=list)
    """Every evaluation point: step, validation loss."""
    accuracies: list[tuple[int, float]] = field(default_factory=list)
    """The same points: step, next-token accuracy."""
    saved_bytes: int = 0
    """Bytes that autograd saves for one step's backward."""
    preparation_peak_bytes: int = 0
    """Peak memory before the first step: building a cache."""
    earlier_steps_peak_bytes: int = 0
    """Peak memory of the steps that were taken before the run was resumed."""
    lost_best: bool = False
    """True where the adapter to keep could not be read in the end."""
    resumed_at_steps: list[int] = field(default_factory=list)
    """Steps at which the run went on after it had been stopped."""

    def to_plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Progress":
        """What `to_plain` gave."""
        points = {
            name: [(int(step), float(value)) for step, value in plain[name]]
            for name in ("val_losses", "accuracies")
            if name in plain
        }
        return cls(**{**plain, **points})


@dataclass(frozen=True, kw_only=True)
class State:
    """What a run needs to go on as if it had never stopped."""

    tensors: dict[str, Tensor]
    """On the CPU, by name."""
    values: dict[str, Any]
    """As JSON can hold it."""


class StateFolder:
    """The states of one run, and the best of what it has trained so far."""

    def __init__(self, run_folder: Path) -> None:
        """Nothing is read or made yet."""
        self.path = run_folder / "state"

    def files(self) -> list[Path]:
        """Files of states, the newest first."""
        return sorted(self.path.glob("step-*.safetensors"), reverse=True)

    def save(self, step: int, state: State) -> None:
        """Add a state and drop all but the last two.

        States of later steps go too: a run that is here has found no use in them, and they would
        push out its own.

        Raises:
            OSError: it cannot be written; those before it are untouched then.
        """
        self.path.mkdir(exist_ok=True)
        newest = self.path / f"step-{step:08d}.safetensors"
        if newest.is_dir():
            shutil.rmtree(newest)  # no file of ours, and in its place
        write_bytes(newest, _encode(state))
        files = self.files()
        place = files.index(newest)
        for path in (*files[:place], *files[place + _KEPT :]):
            _remove(path)

    def save_best(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep what was trained until a step.

        Raises:
            OSError: it cannot be written; those of earlier steps are untouched then.
        """
        self.path.mkdir(exist_ok=True)
        write_bytes(self._best(step), _encode(State(tensors=dict(tensors), values={})))

    def read_best(self, step: int) -> dict[str, Tensor]:
        """What `save_best` wrote.

        Raises:
            DamagedStateError: it is not there, or not what was written.
        """
        return read_state(self._best(step)).tensors

    def drop_best_but(self, steps: Iterable[int | None]) -> None:
        """Remove all that `save_best` wrote but for these steps."""
        needed = {self._best(step) for step in steps if step is not None}
        for path in set(self.path.glob("best-*.safetensors")) - needed:
            _remove(path)

    def _best(self, step: int) -> Path:
        return self.path / f"best-{step:08d}.safetensors"

    def clear(self) -> None:
        """Remove all states."""
        shutil.rmtree(self.path, ignore_errors=True)


_FORMAT = 1
_KEPT = 2
"""The newest, and the one before for where that is damaged."""


class DamagedStateError(Exception):
    """A state is not what was written."""


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def read_state(path: Path) -> State:
    """Read a state back.

    Raises:
        DamagedStateError: the file is truncated, changed, or something else.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text, digest = metadata["state"], metadata["sha256"]
        if _digest(text, tensors) != digest:
            raise DamagedStateError("its checksum is not the one that was written down")
        values = json.loads(text)
        if values["format"] != _FORMAT:
            raise DamagedStateError(f"its format is {values['format']}, not {_FORMAT}")
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise DamagedStateError(f"it cannot be read ({error})") from error
    return State(tensors=tensors, values=values)


def _encode(state: State) -> bytes:
    text = json.dumps({"format": _FORMAT, **state.values})
    metadata = {"state": text, "sha256": _digest(text, state.tensors)}
    return save(state.tensors, metadata=metadata)


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(raw_bytes(tensor.contiguous()))
    return digest.hexdigest()
