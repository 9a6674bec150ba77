"""Everything that decides how a training run goes on, taken from it and put back.

On the CPU a run that was stopped and resumed ends with the same adapter, bit for bit, as one that
never stopped. The order of samples needs no state of its own: it follows from seed and step.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from skip2bench.building import trained_tensors
from skip2bench.console import warn
from skip2bench.errors import Skip2BenchError
from skip2bench.measure import Clock
from skip2bench.progress import Progress
from skip2bench.ranks import Ranks
from skip2bench.state_files import State, StateFolder


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
