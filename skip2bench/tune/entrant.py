"""A configuration in the running: what it is, and what it has come to so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from skip2bench.config.tune import TuneConfig
from skip2bench.results.tune_records import Explored
from skip2bench.sweep.trial import Trial
from skip2bench.tune.space import Choice

Origin = Literal["drawn", "guide", "single", "screened", "rate"]
EntrantStatus = Literal["training", "left", "diverged", "finished"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A row of its curve."""

    step: int
    epoch: float
    train_loss: float
    """Mean of the steps' since the last evaluation."""
    val_loss: float
    rung: int


@dataclass(kw_only=True)
class Entrant:
    """A configuration of a sweep."""

    choice: Choice
    origin: Origin
    trainable_parameters: int
    flops_per_position: float
    trial: Trial | None
    """None once it trains no more."""
    curve: list[Evaluation] = field(default_factory=list)
    status: EntrantStatus = "training"

    @property
    def is_training(self) -> bool:
        """True while it may go on."""
        return self.status == "training"

    @property
    def best(self) -> Evaluation | None:
        """The evaluation with the lowest loss, but for the start."""
        trained = [it for it in self.curve if it.step > 0]
        return min(trained, key=lambda it: it.val_loss) if trained else None

    @property
    def best_val_loss(self) -> float:
        """Infinite before its first evaluation."""
        return self.best.val_loss if self.best else float("inf")

    def best_until(self, step: int) -> float:
        """Lowest loss of the evaluations up to a step; infinite without one."""
        losses = [it.val_loss for it in self.curve if 0 < it.step <= step]
        return min(losses, default=float("inf"))

    def stop(self, status: EntrantStatus) -> None:
        """It trains no more; what it held is given back."""
        self.status, self.trial = status, None

    def describe(self, method: str, target: str, *, share_b: bool) -> Explored:
        """As `tune.json` has it."""
        choice, last, best = self.choice, self.curve[-1] if self.curve else None, self.best
        return Explored(
            name=choice.name,
            origin=self.origin,
            status=self.status,
            method=method,
            blocks=choice.blocks,
            rank=choice.rank,
            learning_rate=choice.learning_rate,
            alpha=choice.alpha,
            dropout=choice.dropout,
            weight_decay=choice.weight_decay,
            features=choice.features,
            share_b=share_b,
            target=target,
            trainable_parameters=self.trainable_parameters,
            flops_per_position=self.flops_per_position,
            rung=last.rung if last else 0,
            step=last.step if last else 0,
            val_loss=last.val_loss if last else None,
            best_val_loss=best.val_loss if best else None,
            best_step=best.step if best else None,
        )


def describe_all(config: TuneConfig, entrants: Sequence[Entrant]) -> list[Explored]:
    """What entrants have come to, in their order, as `tune.json` has it."""
    common = config.train_config({})
    return [one.describe(config.method, common.target, share_b=common.share_b) for one in entrants]


def rank(entrants: list[Entrant]) -> list[Entrant]:
    """Those that came furthest first, by their lowest loss; diverged ones last."""

    def order(one: Entrant) -> tuple[bool, int, float]:
        last = one.curve[-1].step if one.curve else 0
        return one.status == "diverged", -last, one.best_val_loss

    return sorted(entrants, key=order)
