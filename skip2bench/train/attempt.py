"""What one process has of a run from when the run's folder is open: nothing of its model yet."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from skip2bench.io.console import note
from skip2bench.machine.environment_record import Environment
from skip2bench.machine.signals import StopRequest, stop_on_signals
from skip2bench.train.plan import TrainingPlan
from skip2bench.train.ranks.ranks import Ranks, RankStop
from skip2bench.train.resume import RunPlace, identify, open_place

SCRATCH = ".cache"
"""Below the run folder: a cache on disk that ends with the run, and is found when it is resumed."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A process's attempt at a run: not the first where it is resumed, nor alone among ranks."""

    plan: TrainingPlan
    place: RunPlace
    ranks: Ranks
    fabric: Fabric
    stop: StopRequest
    environment: Environment
    """Content of `environment.json`."""
    identity: dict[str, Any]
    """What a state must have been made with, see `resume`."""
    started: float
    """`time.monotonic()` when the command began."""

    @property
    def scratch(self) -> Path:
        """Where the run puts what ends with it."""
        return self.place.folder / SCRATCH

    @property
    def log_folder(self) -> str:
        """Of the run's logs, as its files name it."""
        return self.place.log_folder.relative_to(self.place.folder).as_posix()

    @property
    def wall_seconds(self) -> float:
        """What the run has taken so far, earlier processes included."""
        return self.place.earlier_seconds + time.monotonic() - self.started

    @property
    def objective_state(self) -> dict[str, Any] | None:
        """What this rank's objective said of itself in the state; None where it starts anew."""
        return self.place.objective_state(self.ranks.rank)


@contextmanager
def open_attempt(
    plan: TrainingPlan,
    ranks: Ranks,
    fabric: Fabric | None,
    arguments: Sequence[str],
    started: float,
) -> Iterator[Attempt]:
    """Open the run's folder, which the first rank does for all; within, signals are wishes.

    Args:
        plan: Of the run.
        ranks: Those of the run.
        fabric: That of the ranks; None for one process.
        arguments: The command line.
        started: See `Attempt`.

    Raises:
        Skip2BenchError: another process works there, or it holds another run.
    """
    config = plan.config
    note(
        f"{plan.settings.label}{plan.settings.describe_blocks(plan.model_config.n_layer)}: "
        f"{plan.model_name}, {config.data}, {plan.device}, {plan.precision}"
        + ("" if ranks.is_alone else f", {ranks.size} ranks")
    )
    environment = ranks.together(lambda: plan.describe_environment(arguments))
    if not ranks.is_alone:
        environment = environment.joined(Environment(ranks=ranks.size, nodes=config.num_nodes))
    identity = identify(plan, environment)
    with stop_on_signals() as wish, _open_place(plan, identity, ranks) as place:
        if place.state is not None:
            earlier = Environment(earlier_sessions=place.earlier_sessions)
            environment = environment.joined(earlier)
        yield Attempt(
            plan=plan,
            place=place,
            ranks=ranks,
            fabric=fabric
            or Fabric(accelerator=plan.device.type, devices=1, precision=plan.precision),
            stop=wish if ranks.is_alone else RankStop(wish),
            environment=environment,
            identity=identity,
            started=started,
        )


@contextmanager
def _open_place(plan: TrainingPlan, identity: dict[str, Any], ranks: Ranks) -> Iterator[RunPlace]:
    """The run's folder, which the first rank opens and locks for all."""
    with ExitStack() as stack:
        opened = ranks.together(
            lambda: stack.enter_context(open_place(plan, identity)) if ranks.is_first else None
        )
        place = ranks.broadcast(opened)
        assert place is not None
        yield place
