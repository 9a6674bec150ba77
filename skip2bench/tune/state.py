"""A sweep on disk, as it is after a rung: what is lost by a crash is the rung that was on its way.

The state is one file, checked when it is read, with every configuration that trains; `tune.csv` and
`tune.json` are written anew beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from skip2bench.config.tune import TuneConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import warn
from skip2bench.io.whole import write_csv
from skip2bench.results.tune_records import TUNE_COLUMNS, Rung
from skip2bench.sweep.trial import Trial
from skip2bench.train.saving import optimizer_tensors, restore_optimizer
from skip2bench.train.state import DamagedStateError, State, StateFolder, read_state
from skip2bench.tune.entrant import Entrant, Evaluation, describe_all
from skip2bench.tune.explore import Exploration
from skip2bench.tune.space import Choice

CSV_FILE = "tune.csv"


def save(exploration: Exploration, folder: Path, key: str, wall_seconds: float) -> None:
    """Write the state of a sweep that has come to a rung; where that fails, say so and go on.

    Args:
        exploration: The sweep.
        folder: Its run folder.
        key: Of all that decides its figures; a state is of use under the same one alone.
        wall_seconds: What the sweep has taken so far.
    """
    tensors: dict[str, Tensor] = {}
    described = []
    for number, one in enumerate(exploration.entrants):
        if one.trial is not None:
            own = {f"{number}.{name}": value for name, value in _trial_tensors(one.trial).items()}
            tensors |= own
        described.append(
            {
                "choice": asdict(one.choice),
                "origin": one.origin,
                "status": one.status,
                "curve": [asdict(it) for it in one.curve],
                "step": None if one.trial is None else one.trial.step,
            }
        )
    ground = exploration.ground
    values: dict[str, Any] = {
        "key": key,
        "entrants": described,
        "rungs": [rung.to_plain() for rung in exploration.rungs],
        "initial_val_loss": exploration.initial_val_loss,
        "clock_seconds": ground.clock.seconds,
        "wall_seconds": wall_seconds,
    }
    try:
        StateFolder(folder).save(len(exploration.rungs), State(tensors=tensors, values=values))
    except OSError as error:
        warn(f"the state of the sweep could not be saved ({error.strerror}); it goes on")


def read_wall_seconds(folder: Path) -> float:
    """What a sweep in a folder had taken when its state was saved; 0 without one."""
    for path in StateFolder(folder).files():
        try:
            return float(read_state(path).values.get("wall_seconds", 0.0))
        except DamagedStateError:
            continue
    return 0.0


def restore(exploration: Exploration, folder: Path, key: str) -> bool:
    """Bring a sweep to where `save` was called; False where there is nothing of use.

    Raises:
        Skip2BenchError: a state is of a sweep of something else.
    """
    for path in StateFolder(folder).files():
        try:
            state = read_state(path)
        except DamagedStateError as error:
            warn(f"{path.name} is not used: {error}")
            continue
        if state.values.get("key") != key:
            raise Skip2BenchError(
                f"{str(folder)!r} holds a sweep of another configuration, model, data or version; "
                "choose another --out-dir, or add --force to replace it"
            )
        _restore(exploration, state)
        return True
    return False


def _restore(exploration: Exploration, state: State) -> None:
    values = state.values
    exploration.initial_val_loss = values["initial_val_loss"]
    exploration.rungs = [Rung(**rung) for rung in values["rungs"]]
    seconds = exploration.ground.clock.seconds
    for name in ("cache_build", "calibration", "budget", "sweep", "validation"):
        seconds[name] = seconds.get(name, 0.0) + values["clock_seconds"].get(name, 0.0)
    for number, described in enumerate(values["entrants"]):
        (one,) = exploration.enter([_choice(described["choice"])], described["origin"])
        one.curve = [Evaluation(**row) for row in described["curve"]]
        if described["step"] is None:
            one.stop(described["status"])
            continue
        assert one.trial is not None
        prefix = f"{number}."
        _fill(
            one.trial,
            {k.removeprefix(prefix): v for k, v in state.tensors.items() if k.startswith(prefix)},
        )
        one.trial.step = described["step"]
        one.trial.losses = [0.0] * described["step"]  # the curve has their means


def _choice(plain: Mapping[str, Any]) -> Choice:
    return Choice(**{**plain, "blocks": tuple(plain["blocks"])})


def _trial_tensors(trial: Trial) -> dict[str, Tensor]:
    found = {name: p.detach() for name, p in trial.adapters.named_parameters()}
    found |= optimizer_tensors(trial.optimizer)
    return {name: value.to("cpu", copy=True) for name, value in found.items()}


def _fill(trial: Trial, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in trial.adapters.named_parameters():
        parameter.data.copy_(tensors[name])
    restore_optimizer(trial.optimizer, tensors)


def write_curves(config: TuneConfig, entrants: Sequence[Entrant], folder: Path) -> None:
    """Write `tune.csv`, whole or not at all."""
    rows = []
    for one, described in zip(entrants, describe_all(config, entrants), strict=True):
        known = described.to_plain()
        known |= {"configuration": one.choice.name, "blocks": " ".join(map(str, one.choice.blocks))}
        rows += [{**known, **asdict(it)} for it in one.curve]
    kept = [{name: row[name] for name in TUNE_COLUMNS} for row in rows]
    write_csv(folder / CSV_FILE, TUNE_COLUMNS, kept)
