"""Successive halving over one cache: all train side by side, half of them is cut at every rung.

Rungs are synchronous: whoever is compared has made the same updates of the same schedule. What
joins later, because earlier losses ask for it (the best single blocks together, a learning rate
beyond those that were tried), first catches up. Source: Jamieson & Talwalkar, arXiv:1502.07943.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from skip2bench.cache.algebra import Sizes, Use, count_costs
from skip2bench.cache.plan import measure_free
from skip2bench.config.rates import beyond_edges
from skip2bench.config.tune import TuneConfig
from skip2bench.io.console import Bar, note, warn
from skip2bench.io.units import format_amount
from skip2bench.results.tune_records import Rung
from skip2bench.sweep.room import pack, trial_bytes
from skip2bench.sweep.trial import Trial
from skip2bench.tune.entrant import Entrant, Evaluation, Origin
from skip2bench.tune.ground import Ground
from skip2bench.tune.space import Choice

RUNGS = (1 / 4, 1 / 2, 1.0)
"""Of a whole run's updates, when those behind are cut. At an earlier rung, high rates that a whole
schedule would bring down look worse than they are."""
_KEPT = 1 / 2
_EVALUATIONS = 12
"""Of a whole run, where nobody has asked for another number."""
_SHARE_OF_FREE = 0.5
_CHEAP = 0.5
"""A configuration of so many parameters, by the leader's, is cheap; the best of them goes on."""
_SCREENED = (4, 8)
"""How many of the best single blocks are tried together, half of all blocks at most."""


@dataclass(kw_only=True)
class Exploration:
    """A sweep on its way."""

    config: TuneConfig
    ground: Ground
    entrants: list[Entrant] = field(default_factory=list)
    rungs: list[Rung] = field(default_factory=list)
    initial_val_loss: float | None = None

    @property
    def steps(self) -> int:
        """Updates of a whole run."""
        return len(self.ground.schedule.batches)

    @property
    def rung_steps(self) -> list[int]:
        """Updates at every rung, ascending and distinct."""
        return sorted({max(1, round(share * self.steps)) for share in RUNGS})

    @property
    def evaluation_steps(self) -> set[int]:
        """After which updates everybody is evaluated."""
        asked_for = self.config.train.get("eval_interval")
        every = int(asked_for) if asked_for else max(1, self.steps // _EVALUATIONS)
        return {*range(every, self.steps + 1, every), *self.rung_steps}

    def enter(self, choices: Sequence[Choice], origin: Origin) -> list[Entrant]:
        """Let configurations in that are not there yet; those that are new."""
        known = {one.choice.key for one in self.entrants}
        new = []
        for choice in choices:
            if choice.key in known:
                continue
            known.add(choice.key)
            trial = self._start(choice)
            entrant = Entrant(
                choice=choice,
                origin=origin,
                trainable_parameters=sum(p.numel() for p in trial.adapters.parameters()),
                flops_per_position=self.count_flops(choice),
                trial=trial,
            )
            new.append(entrant)
        self.entrants += new
        return new

    def run(self, after_rung: Callable[[], None]) -> None:
        """Go through the rungs that are not done yet.

        Args:
            after_rung: Called when one is done, to save what there is.

        Raises:
            KeyboardInterrupt: somebody asked to stop.
        """
        for number in range(len(self.rungs), len(self.rung_steps)):
            self._climb(number)
            after_rung()

    def count_flops(self, choice: Choice) -> float:
        """FLOPs of a supervised position in a cached step of this configuration alone."""
        config, settings = self.ground.model.config, choice.settings(self.config)
        costs = count_costs(
            Sizes(
                n_adapters=len(settings.blocks),
                rank=settings.r,
                width=settings.width,
                n_embd=config.n_embd,
                vocabulary=config.padded_vocab_size,
                stored_blocks=len(settings.blocks) + 1,
                feature_bytes=4,
                logit_bytes=4,
                adds_to_logits=settings.target == "logits",
            ),
            Use(positions_per_step=self.ground.sweep.positions_per_step, passes=1),
        )
        return costs["head"].flops_per_position

    def _start(self, choice: Choice) -> Trial:
        return self.ground.start(
            choice.settings(self.config), choice.learning_rate, weight_decay=choice.weight_decay
        )

    def _climb(self, number: int) -> None:
        """Bring all to a rung, let in whom the losses there ask for, and cut."""
        step, began = self.rung_steps[number], self._spent_seconds
        updates = sum(_known(one).step for one in self.entrants if one.is_training)
        self._advance(number, [one for one in self.entrants if one.is_training])
        if number == 0 and self.config.screening:
            self._advance(number, self._enter_screened(step))
        self._extend_rates(number, step)
        training = [one for one in self.entrants if one.is_training]
        is_last = number == len(self.rung_steps) - 1
        updates = sum(_known(one).step for one in training) - updates
        affordable = self._count_affordable((self._spent_seconds - began) / max(1, updates), step)
        kept = training if is_last else self._choose_kept(training, step)[:affordable]
        for one in training:
            if is_last:
                one.stop("finished")
            elif one not in kept:
                one.stop("left")
        diverged = sum(one.status == "diverged" for one in self.entrants)
        earlier = sum(rung.diverged for rung in self.rungs)
        self.rungs.append(
            Rung(
                rung=number,
                step=step,
                configurations=len(training) + diverged - earlier,
                kept=0 if is_last else len(kept),
                diverged=diverged - earlier,
            )
        )
        leader = min(kept, key=lambda one: one.best_val_loss, default=None)
        if leader is not None:
            end = "all done" if is_last else f"{len(kept)} go on"
            note(
                f"rung {number + 1} of {len(self.rung_steps)}: "
                f"{format_amount(len(training), 'configuration')} at step {step}, {end}; lowest "
                f"validation loss {leader.best_val_loss:.4f} ({leader.choice.name})"
            )

    @property
    def _spent_seconds(self) -> float:
        seconds = self.ground.clock.seconds
        return sum(seconds.get(part, 0.0) for part in ("budget", "sweep", "validation"))

    def _count_affordable(self, seconds_per_update: float, step: int) -> int | None:
        """How many can go on to the end in what is left of a budget of time; None for all."""
        budget = self.config.budget_seconds
        if budget is None:
            return None
        left = max(0.0, budget - self._spent_seconds)
        needed = seconds_per_update * (self.steps - step)
        if needed <= 0:
            return None if left else 1
        return max(1, int(left / needed))

    def _choose_kept(self, training: Sequence[Entrant], step: int) -> list[Entrant]:
        """Half of them by loss, and the best of those that are cheap beside the leader."""
        ranked = sorted(training, key=lambda one: one.best_until(step))
        kept = ranked[: max(1, math.ceil(len(ranked) * _KEPT))]
        if ranked:
            limit = _CHEAP * ranked[0].trainable_parameters
            cheap = [one for one in ranked if one.trainable_parameters <= limit]
            kept += [one for one in cheap[:1] if one not in kept]
        return kept

    def _enter_screened(self, step: int) -> list[Entrant]:
        """The best single blocks together, at what suits the leader."""
        singles = [one for one in self.entrants if one.origin == "single" and one.is_training]
        others = [one for one in self.entrants if one.origin != "single" and one.is_training]
        if len(singles) < 2 or not others:
            return []
        ranked = sorted(singles, key=lambda one: one.best_until(step))
        leader = min(others, key=lambda one: one.best_until(step)).choice
        choices = []
        for n in sorted({min(n, max(1, len(ranked) // 2)) for n in _SCREENED}):
            blocks = tuple(sorted(one.choice.blocks[0] for one in ranked[:n]))
            text = ",".join(map(str, blocks))
            choices.append(replace(leader, blocks_text=text, blocks=blocks))
        named = ", ".join(str(one.choice.blocks[0]) for one in ranked[: _SCREENED[-1]])
        note(f"best single blocks: {named}")
        return self.enter(choices, "screened")

    def _extend_rates(self, number: int, step: int) -> None:
        """Try the leader at neighbouring rates, further while it is best at the edge of them."""
        if self.config.learning_rates:
            return  # the user's own grid
        while True:
            training = [one for one in self.entrants if one.is_training]
            leader = min(training, key=lambda one: one.best_until(step), default=None)
            if leader is None:
                return
            rate = leader.choice.learning_rate
            choices = [
                replace(leader.choice, learning_rate=it) for it in beyond_edges(rate, [rate])
            ]
            new = self.enter(choices, "rate")
            if not new:
                return
            self._advance(number, new)
            if all(one.best_until(step) > leader.best_until(step) for one in new):
                return

    def _advance(self, number: int, entrants: Sequence[Entrant]) -> None:
        """Train some until a rung, as many at once as there is room for."""
        target = self.rung_steps[number]
        by_step: dict[int, list[Entrant]] = {}
        for one in entrants:
            assert one.trial is not None
            if one.trial.step < target:
                by_step.setdefault(one.trial.step, []).append(one)
        for group in by_step.values():
            for together in self._pack(group):
                self._train(number, together, target)

    def _pack(self, group: Sequence[Entrant]) -> list[list[Entrant]]:
        ground = self.ground
        positions = ground.sweep.positions_per_step
        sizes = [trial_bytes(ground.model, _known(one), positions) for one in group]
        free = measure_free(ground.plan.device, Path())
        room = int(_SHARE_OF_FREE * free.get("device", free["ram"]))
        packed = pack(group, sizes, room)
        if len(packed) > 1:
            note(f"{len(group)} configurations in {len(packed)} groups: no room for all at once")
        return packed

    def _train(self, number: int, group: list[Entrant], target: int) -> None:
        ground, evaluated = self.ground, self.evaluation_steps
        step = _known(group[0]).step
        title = f"rung {number + 1}: {format_amount(len(group), 'configuration')}"
        with Bar(title, target - step, "steps") as bar:
            while step < target and group:
                if step == 0:
                    self._evaluate(number, group, 0)
                trials = [_known(one) for one in group]
                with ground.clock.part("sweep"):
                    ground.sweep.take_step(trials)
                step += 1
                group = self._without_diverged(group)
                if step in evaluated and group:
                    self._evaluate(number, group, step)
                    group = self._without_diverged(group)
                ground.stop.check()
                best = min((one.best_val_loss for one in group), default=math.inf)
                bar.advance(1, "" if math.isinf(best) else f"best val {best:.3f}")

    def _evaluate(self, number: int, group: Sequence[Entrant], step: int) -> None:
        ground, trials = self.ground, [_known(one) for one in group]
        if step == 0 and self.initial_val_loss is not None:
            val_losses = [self.initial_val_loss] * len(group)  # no adapter adds anything yet
        else:
            with ground.clock.part("validation"):
                val_losses = ground.sweep.validation_losses(trials if step else trials[:1])
            if step == 0:
                self.initial_val_loss = val_losses[0]
                val_losses *= len(group)
        per_epoch = math.ceil(len(ground.plan.data.train) / ground.plan.config.global_batch_size)
        for one, trial, val_loss in zip(group, trials, val_losses, strict=True):
            since = trial.losses[one.curve[-1].step if one.curve else 0 :]
            train_loss = sum(since) / len(since) if since else val_loss
            one.curve.append(
                Evaluation(
                    step=step,
                    epoch=round(step / per_epoch, 4),
                    train_loss=train_loss,
                    val_loss=val_loss,
                    rung=number,
                )
            )

    def _without_diverged(self, group: Sequence[Entrant]) -> list[Entrant]:
        left = []
        for one in group:
            losses = [it.val_loss for it in one.curve]
            if _known(one).diverged_at_step is None and all(map(math.isfinite, losses)):
                left.append(one)
                continue
            warn(f"{one.choice.name} has diverged and leaves the sweep")
            one.curve = [it for it in one.curve if math.isfinite(it.val_loss)]
            one.stop("diverged")
        return left


def _known(one: Entrant) -> Trial:
    assert one.trial is not None
    return one.trial
