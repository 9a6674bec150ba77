"""Takes from a run everything that decides how it goes on, and puts it back.

On the CPU a run that was stopped and resumed ends with the same adapter, bit for bit, as one that
never stopped. The order of samples needs no state of its own: it follows from seed and step.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from torch import Tensor

from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import warn
from skip2bench.models.methods import trained_tensors
from skip2bench.models.skip import PROJECTION, RELATIVE_SIZES, SkipGPT
from skip2bench.train.state import Progress, State, StateFolder
from skip2bench.train.training import TrainingRun


def save_state(run: TrainingRun, progress: Progress) -> None:
    """Write a state; where that fails, say so and let the run go on.

    The first rank writes it: weights and optimizer are the same on all of them, and of the others
    it has what is theirs alone, random states and objective.
    """
    attempt, ranks = run.attempt, run.ranks
    random, objectives = _random_states(run.fabric), ranks.gather(run.objective.describe_state())
    for rank, states in enumerate(ranks.gather(random)):
        random |= {_of_rank(name, rank): value for name, value in states.items()}
    if not ranks.is_first:
        return
    values = {
        "identity": attempt.identity,
        "log_folder": attempt.log_folder,
        "domain_loss_before": run.domain_loss_before,
        "progress": progress.to_plain(),
        "clock_seconds": run.clock.seconds,
        "processor": run.clock.meter.to_plain() if run.clock.meter else None,
        "wall_seconds": attempt.wall_seconds,
        "scaler": _scaler_state(run.fabric),
        "objectives": objectives,
    }
    # before the first update, weights and optimizer are what a new run would have
    tensors = _trained_and_optimizer(run) if progress.step else {}
    state = State(tensors=tensors | random, values=values)
    try:
        StateFolder(attempt.place.folder).save(progress.step, state)
    except OSError as error:
        warn(
            f"the state of step {progress.step} could not be saved ({error.strerror}); the run "
            "goes on, but could only be resumed from an earlier step"
        )


def restore_state(run: TrainingRun, state: State) -> None:
    """Bring model, optimizer, clock and random generators to where `save_state` was called.

    Raises:
        Skip2BenchError: the state is of another model.
    """
    if state.values["progress"]["step"]:
        _restore_weights(run, state.tensors)
        restore_optimizer(run.optimizer, state.tensors)
    run.clock.seconds.clear()
    run.clock.seconds.update(state.values["clock_seconds"])
    if run.clock.meter:
        run.clock.meter.restore(state.values.get("processor") or {})
    if state.values["scaler"] is not None:
        _scaler(run.fabric).load_state_dict(state.values["scaler"])
    own = {
        name: state.tensors[_of_rank(name, run.ranks.rank)] for name in _random_states(run.fabric)
    }
    _restore_random_states(run.fabric, own)


def restore_projection(model: SkipGPT, state: State) -> bool:
    """Bring back what the features of a stopped run were projected by, before its caches are made.

    False where the state is of before the first step, which holds nothing that can be found again.
    """
    tensors = _below("trained.adapters.", state.tensors)
    wanted = model.adapters.projection
    projection = tensors.get(PROJECTION)
    if wanted is None or projection is None or projection.shape != wanted.shape:
        return False  # of another model, which `restore_state` says
    model.adapters.set_fixed(tensors.get(RELATIVE_SIZES), projection)
    return True


def _trained_and_optimizer(run: TrainingRun) -> dict[str, Tensor]:
    trained = {f"trained.{k}": v for k, v in trained_tensors(run.model).items()}
    optimizer = optimizer_tensors(run.optimizer)
    # copies, so that none shares memory with another, which safetensors refuses
    return {k: v.detach().to("cpu", copy=True) for k, v in (trained | optimizer).items()}


@torch.no_grad()
def _restore_weights(run: TrainingRun, tensors: Mapping[str, Tensor]) -> None:
    stored = _below("trained.", tensors)
    trained = trained_tensors(run.model)
    shapes, expected = ({k: (v.shape, v.dtype) for k, v in d.items()} for d in (stored, trained))
    if shapes != expected:
        folder = StateFolder(run.attempt.place.folder)
        raise Skip2BenchError(
            f"the state in {str(folder.path)!r} is of another model or method; choose another "
            "--out-dir"
        )
    for name, value in trained.items():
        value.copy_(stored[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer keeps of every parameter, by names of one level."""
    return {
        f"optimizer.{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take up what `optimizer_tensors` gave, among whatever other tensors."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in _below("optimizer.", tensors).items():
        index, _, name = key.partition(".")
        states.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


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
