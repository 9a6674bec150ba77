"""A budget of time: how many configurations a sweep begins with, by what this machine does."""

from collections.abc import Sequence
from functools import partial

from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note
from skip2bench.io.units import format_duration
from skip2bench.machine.clock import time_call
from skip2bench.sweep.folds import count_flops
from skip2bench.tune.explore import RUNGS, Exploration
from skip2bench.tune.space import Choice, Space, single_choices

_TRIED = 4
"""Configurations that are timed together, beside one by itself."""
_MARGIN = 1.3
"""For evaluations, and what joins later."""


def fit_budget(exploration: Exploration, space: Space, seed: int) -> None:
    """Let in as many configurations as the budget has time for.

    Raises:
        Skip2BenchError: it has none for two of them until the first cut.
    """
    budget = exploration.config.budget_seconds
    assert budget is not None
    model_config = exploration.ground.model.config
    seconds = _measure(exploration, space.draw(_TRIED, seed))
    singles = single_choices(space, model_config) if exploration.config.screening else []

    def predict(n: int, extra: Sequence[Choice]) -> float:
        return _MARGIN * _predict(exploration, [*space.draw(n, seed), *extra], seconds)

    fewest = predict(2, ())
    if fewest > budget:
        raise Skip2BenchError(
            f"budget {exploration.config.budget} is too small: two configurations take about "
            f"{format_duration(fewest, 'en')} here; give --budget {int(fewest) + 1}s or more, or "
            "fewer --train-samples or --epochs"
        )
    if singles and predict(2, singles) > budget:
        note("no time for every block alone: no screening")
        singles = []
    n = 2
    while n < space.size and predict(n + 1, singles) <= budget:
        n += 1
    exploration.enter(space.draw(n, seed), "drawn")
    exploration.enter(singles, "single")
    note(
        f"{n} configurations{f' and {len(singles)} single blocks' if singles else ''} for a budget "
        f"of {exploration.config.budget}"
    )


def _measure(exploration: Exploration, choices: Sequence[Choice]) -> tuple[float, float]:
    """Seconds of a step without any configuration, and for each of their FLOPs a position."""
    ground = exploration.ground
    times = []
    for together in (choices[:1], choices):
        group = [
            ground.start(choice.settings(exploration.config), choice.learning_rate)
            for choice in together
        ]
        ground.sweep.take_step(group)  # memory is taken, optimizers get their state
        step = partial(ground.sweep.take_step, group)
        with ground.clock.part("budget"):
            times.append(time_call(step, ground.plan.device))
    costs = [_count(exploration, group) for group in (choices[:1], choices)]
    per_flop = max(0.0, times[1] - times[0]) / max(1.0, costs[1] - costs[0])
    return max(0.0, times[0] - per_flop * costs[0]), per_flop


def _predict(
    exploration: Exploration, choices: Sequence[Choice], seconds: tuple[float, float]
) -> float:
    """Seconds of all rungs; those that are kept are taken to cost what all do on average."""
    of_step, per_flop = seconds
    flops = _count(exploration, choices)
    total, before = 0.0, 0.0
    for number, share in enumerate(RUNGS):
        total += (share - before) * exploration.steps * (of_step + per_flop * flops / 2**number)
        before = share
    return total


def _count(exploration: Exploration, choices: Sequence[Choice]) -> float:
    ground, config = exploration.ground, exploration.config
    positions = ground.sweep.positions_per_step
    return sum(count_flops(ground.model, it.settings(config), positions) for it in choices)
