"""`--learning-rate auto`: which rate a run takes, found before its first step.

Every rate has the same short schedule, a part of the run's steps with a warm-up and a cosine of its
own, from the same initial values. With Skip-Cache all rates train at once (see `sweep`), and the
validation loss at the end decides. Without one, each is a short run, and the loss decides of the
batches that come next, which none of them has seen. The lowest loss wins; while it is at an edge of
the rates that were tried, those beyond are tried too.
"""

import math
from collections.abc import Callable, Sequence

import torch

from skip2bench.config.rates import beyond_edges, rates_around
from skip2bench.config.train import usual_learning_rate
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note
from skip2bench.models.methods import trained_tensors
from skip2bench.models.optimizer import scale_warmup
from skip2bench.models.skip import SkipGPT
from skip2bench.sweep.engine import Schedule, Sweep
from skip2bench.sweep.trial import Recipe, Trial, start_trial
from skip2bench.train.state import Progress
from skip2bench.train.step import evaluate_batch, take_step
from skip2bench.train.training import RATE_SEARCH, TrainingRun

_CACHED_SHARE, _UNCACHED_SHARE = 1 / 4, 1 / 20
"""Of the run's steps, in a short schedule."""
_FEWEST_STEPS = {"cached": 20, "uncached": 8}
_MOST_UNCACHED_STEPS = 40
_EVALUATED_BATCHES = 2

Losses = dict[float, float]
"""By learning rate; infinite where it diverged."""


def settle_rate(run: TrainingRun, progress: Progress) -> None:
    """Write down which learning rate the run takes: the given one, or the best that is found.

    Raises:
        Skip2BenchError: every rate diverges.
    """
    if run.config.learning_rate != "auto":
        progress.peak_rate = run.config.learning_rate
        return
    if progress.peak_rate:  # of a run that goes on
        return
    device = run.fabric.device
    devices = [device] if device.type == "cuda" else []
    before = dict(run.clock.seconds)
    with run.clock.part(RATE_SEARCH), torch.random.fork_rng(devices=devices):
        plan = run.attempt.plan
        # 16-mixed scales the gradients of one run
        are_beside = plan.settings.method.serves_rows and plan.precision != "16-mixed"
        try_rates = _CachedTrials(run) if are_beside else _ShortRuns(run)
        losses = search(try_rates, usual_learning_rate(run.config))
    seconds = run.clock.seconds  # the steps of short runs have counted as steps of the run
    spent = seconds[RATE_SEARCH]
    seconds.clear()
    seconds.update(before | {RATE_SEARCH: spent})
    best = min(losses, key=losses.__getitem__)
    if not math.isfinite(losses[best]):
        tried = ", ".join(f"{rate:g}" for rate in sorted(losses))
        raise Skip2BenchError(
            f"every learning rate diverged ({tried}); give a lower --learning-rate, or raise "
            "--lr-warmup-steps"
        )
    progress.peak_rate = best
    finite = {rate: loss if math.isfinite(loss) else None for rate, loss in losses.items()}
    progress.rates_tried = {f"{rate:g}": finite[rate] for rate in sorted(finite)}
    note(f"learning rate {best:g}: the best of {progress_text(progress)}, in {spent:.1f} s")


def progress_text(progress: Progress) -> str:
    """The rates that were tried and their losses, in one line."""
    return ", ".join(
        f"{rate} ({'diverged' if loss is None else f'{loss:.4f}'})"
        for rate, loss in progress.rates_tried.items()
    )


def search(try_rates: Callable[[Sequence[float]], list[float]], middle: float) -> Losses:
    """Losses of rates around a middle one, and beyond while the best is at an edge.

    Args:
        try_rates: Gives the loss of each rate; infinite where it diverges.
        middle: Where to begin.
    """
    rates = rates_around(middle)
    losses: Losses = dict(zip(rates, try_rates(rates), strict=True))
    while True:
        further = beyond_edges(min(losses, key=losses.__getitem__), losses)
        if not further:
            return losses
        losses |= zip(further, try_rates(further), strict=True)


class _CachedTrials:
    """Rates side by side, on what the run's cache serves."""

    def __init__(self, run: TrainingRun) -> None:
        assert isinstance(run.model, SkipGPT)
        assert run.caches is not None
        steps = min(
            run.total_steps,
            max(_FEWEST_STEPS["cached"], math.ceil(_CACHED_SHARE * run.total_steps)),
        )
        schedule = Schedule(
            batches=run.batches[:steps],
            warmup_steps=scale_warmup(run.attempt.plan.warmup_steps, run.total_steps, steps),
            seed=run.config.seed,
        )
        self._run, self._model, self._steps = run, run.model, steps
        self._sweep = Sweep(run.fabric, run.model, run.data, run.caches.sides, schedule)

    def __call__(self, rates: Sequence[float]) -> list[float]:
        trials = [self._start(rate) for rate in rates]
        for _ in range(self._steps):
            training = [trial for trial in trials if trial.diverged_at_step is None]
            if not training:
                break
            self._sweep.take_step(training)
        going = [trial for trial in trials if trial.diverged_at_step is None]
        losses = iter(self._sweep.validation_losses(going) if going else ())
        found = [math.inf if it.diverged_at_step is not None else next(losses) for it in trials]
        return [loss if math.isfinite(loss) else math.inf for loss in found]

    def _start(self, rate: float) -> Trial:
        config = self._run.config
        recipe = Recipe(
            settings=self._model.settings,
            learning_rate=rate,
            weight_decay=config.weight_decay,
            betas=(config.adam_beta1, config.adam_beta2),
            max_norm=config.max_norm,
        )
        dtype = self._model.adapters.lora_A.dtype
        return start_trial(self._model, recipe, config.seed, dtype)


class _ShortRuns:
    """One rate after the other, by the steps of the run itself; it is left as it was."""

    def __init__(self, run: TrainingRun) -> None:
        wanted = max(_FEWEST_STEPS["uncached"], math.ceil(_UNCACHED_SHARE * run.total_steps))
        self._steps = min(run.total_steps, wanted, _MOST_UNCACHED_STEPS)
        following = run.batches[self._steps : self._steps + _EVALUATED_BATCHES]
        self._run, self._evaluated = run, following or run.batches[-1:]
        self._initial = {k: v.clone() for k, v in trained_tensors(run.model).items()}

    def __call__(self, rates: Sequence[float]) -> list[float]:
        return [self._try_rate(rate) for rate in rates]

    def _try_rate(self, rate: float) -> float:
        run = self._run
        torch.manual_seed(run.config.seed)
        try:
            for step in range(self._steps):
                run.stop.check()
                loss, _ = take_step(run, step, rate, self._steps)
                if not math.isfinite(loss):
                    return math.inf
            losses = [evaluate_batch(run, batch) for batch in self._evaluated]
        finally:
            self._restore()
        mean = sum(losses) / len(losses)
        return mean if math.isfinite(mean) else math.inf

    @torch.no_grad()
    def _restore(self) -> None:
        for name, value in trained_tensors(self._run.model).items():
            value.copy_(self._initial[name])
        optimizer = self._run.optimizer
        getattr(optimizer, "optimizer", optimizer).state.clear()  # below Fabric's wrapper
