"""Everything that decides how a training run goes on, taken from it, kept on disk and put back.

    <run folder>/state/step-00000050.safetensors    the last two of them

One safetensors file holds tensors and, as JSON in its metadata, everything else, with a sha256 over
both. It is written aside, forced to the disk and renamed, so a crash leaves the states before it.
On the CPU a run that was stopped and resumed ends with the same adapter, bit for bit, as one that
never stopped. The order of samples needs no state of its own: it follows from seed and step.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from skip2bench.cache.arrays import raw_bytes
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import warn
from skip2bench.io.whole import write_bytes
from skip2bench.machine.clock import Clock
from skip2bench.models.methods import trained_tensors
from skip2bench.train.ranks.ranks import Ranks


@dataclass(kw_only=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    """Step losses since the last evaluation point."""
    val_losses: list[tuple[int, float]] = field(default_factory=list)
    """Every evaluation point: step, validation loss."""
    saved_bytes: int = 0
    """Bytes that autograd saves for one step's backward."""
    preparation_peak_bytes: int = 0
    """Peak memory before the first step: building a cache."""
    earlier_steps_peak_bytes: int = 0
    """Peak memory of the steps that were taken before the run was resumed."""
    resumed_at_steps: list[int] = field(default_factory=list)
    """Steps at which the run went on after it had been stopped."""

    def to_plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Progress":
        """What `to_plain` gave."""
        points = [(int(step), float(loss)) for step, loss in plain["val_losses"]]
        return cls(**{**plain, "val_losses": points})


@dataclass(frozen=True, kw_only=True)
class State:
    """What a run needs to go on as if it had never stopped."""

    tensors: dict[str, Tensor]
    """On the CPU, by name."""
    values: dict[str, Any]
    """As JSON can hold it."""


class StateFolder:
    """The states of one run."""

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

    def clear(self) -> None:
        """Remove all states."""
        shutil.rmtree(self.path, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """The parts of a run that change, and where their states go."""

    folder: StateFolder
    fabric: Fabric
    model: nn.Module
    optimizer: torch.optim.Optimizer
    clock: Clock
    started: float
    """`time.monotonic()` when this process began the run, less what earlier ones took."""
    constants: dict[str, Any] = field(default_factory=dict)
    """What every state says of its run, see `resume`."""
    describe: Callable[[], dict[str, Any] | None] = lambda: None
    """What the objective needs to be made again as it was."""
    ranks: Ranks = field(default_factory=Ranks)

    def save(self, progress: Progress) -> None:
        """Write a state; where that fails, say so and let the run go on.

        The first rank writes it: weights and optimizer are the same on all of them, and of the
        others it has what is theirs alone, random states and objective.
        """
        random, objectives = _random_states(self.fabric), self.ranks.gather(self.describe())
        for rank, states in enumerate(self.ranks.gather(random)):
            random |= {_of_rank(name, rank): value for name, value in states.items()}
        if not self.ranks.is_first:
            return
        values = {
            **self.constants,
            "progress": progress.to_plain(),
            "clock_seconds": self.clock.seconds,
            "wall_seconds": time.monotonic() - self.started,
            "scaler": _scaler_state(self.fabric),
            "objective": objectives[0],
            "objectives": objectives,
        }
        # before the first update, weights and optimizer are what a new run would have
        tensors = self._tensors() if progress.step else {}
        try:
            self.folder.save(progress.step, State(tensors=tensors | random, values=values))
        except OSError as error:
            warn(
                f"the state of step {progress.step} could not be saved ({error.strerror}); the run "
                "goes on, but could only be resumed from an earlier step"
            )

    def restore(self, state: State) -> None:
        """Bring model, optimizer, clock and random generators to where `save` was called.

        Raises:
            Skip2BenchError: the state is of another model.
        """
        if state.values["progress"]["step"]:
            self._restore_weights(state.tensors)
            self._restore_optimizer(state.tensors)
        self.clock.seconds.clear()
        self.clock.seconds |= state.values["clock_seconds"]
        if state.values["scaler"] is not None:
            _scaler(self.fabric).load_state_dict(state.values["scaler"])
        own = {
            name: state.tensors[_of_rank(name, self.ranks.rank)]
            for name in _random_states(self.fabric)
        }
        _restore_random_states(self.fabric, own)

    def _tensors(self) -> dict[str, Tensor]:
        trained = {f"trained.{k}": v for k, v in trained_tensors(self.model).items()}
        optimizer = {
            f"optimizer.{index}.{name}": value
            for index, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        # copies, so that none shares memory with another, which safetensors refuses
        return {k: v.detach().to("cpu", copy=True) for k, v in (trained | optimizer).items()}

    @torch.no_grad()
    def _restore_weights(self, tensors: Mapping[str, Tensor]) -> None:
        stored = _below("trained.", tensors)
        trained = trained_tensors(self.model)
        shapes, expected = (
            {k: (v.shape, v.dtype) for k, v in d.items()} for d in (stored, trained)
        )
        if shapes != expected:
            raise Skip2BenchError(
                f"the state in {str(self.folder.path)!r} is of another model or method; choose "
                "another --out-dir"
            )
        for name, value in trained.items():
            value.copy_(stored[name])

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in _below("optimizer.", tensors).items():
            index, _, name = key.partition(".")
            states.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})


def _of_rank(name: str, rank: int) -> str:
    """Name of a random state in the file; those of the first rank have no number."""
    return name if rank == 0 else f"{name}.rank{rank}"


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _random_states(fabric: Fabric) -> dict[str, Tensor]:
    """Of the generators that a step draws from; `dropout` seeds numpy's from torch's."""
    states = {"random.cpu": torch.get_rng_state()}
    if fabric.device.type == "cuda":
        states["random.device"] = torch.cuda.get_rng_state(fabric.device)
    elif fabric.device.type == "mps":
        states["random.device"] = torch.mps.get_rng_state()
    return states


def _restore_random_states(fabric: Fabric, tensors: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(tensors["random.cpu"])
    if fabric.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.device"], fabric.device)
    elif fabric.device.type == "mps":
        torch.mps.set_rng_state(tensors["random.device"])


def _scaler(fabric: Fabric) -> Any:
    """The gradient scaler of 16-mixed; None for other precisions."""
    return getattr(fabric.strategy.precision, "scaler", None)


def _scaler_state(fabric: Fabric) -> dict[str, Any] | None:
    scaler = _scaler(fabric)
    return None if scaler is None else cast(dict[str, Any], scaler.state_dict())


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
