"""`tune` from its configuration to its run folder.

config.yaml, environment.json, summary.json     as every run has them
tune.csv                                        every configuration's curve
tune.json                                       the ranking, the finalists, what is recommended
frontier.svg                                    losses against parameters and FLOPs
finalists/                                      a comparison: the finalists, each by several seeds
exploration/                                    the same of all, where each is a run (`runs`)
state/, .cache/                                 while it goes on: the last rung, and Skip-Cache
"""

import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from skip2bench import STARTED
from skip2bench.compare.run import Within
from skip2bench.config.blocks import count_auto
from skip2bench.config.options import to_plain
from skip2bench.config.tune import TuneConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note
from skip2bench.io.locks import locked_folder
from skip2bench.io.units import format_amount
from skip2bench.io.whole import utc_now, write_bytes, write_json
from skip2bench.machine.environment_record import Environment
from skip2bench.machine.memory import read_peak_memory
from skip2bench.machine.signals import StopRequest, interrupted_by_sigterm, stop_on_signals
from skip2bench.models.methods import resolve_method
from skip2bench.report.charts.drawing import on_paper
from skip2bench.report.charts.sweep import draw_frontier
from skip2bench.results.comparison_records import ComparedConfiguration
from skip2bench.results.plain import DamagedFileError, read_json
from skip2bench.results.run_folder import (
    RESULTS,
    Recording,
    create_run_folder,
    holds_run,
    record_run,
)
from skip2bench.results.run_records import SCHEMA_VERSION
from skip2bench.results.tune_records import (
    EXPLORATION,
    FINALISTS,
    FRONTIER_FILE,
    TUNE_FILE,
    Rung,
    Sensitivity,
    TuneFigures,
    TuneResult,
    TuneResults,
    TuneStart,
    TuneSummary,
)
from skip2bench.train.attempt import SCRATCH
from skip2bench.train.block_choice import choose_blocks, rank_blocks
from skip2bench.train.plan import TrainingPlan, plan_training
from skip2bench.train.state import StateFolder
from skip2bench.tune import state
from skip2bench.tune.budget import fit_budget
from skip2bench.tune.entrant import Entrant, describe_all, rank
from skip2bench.tune.explore import Exploration
from skip2bench.tune.finalists import choose_finalists, recommend, run_finalists
from skip2bench.tune.ground import lay_ground
from skip2bench.tune.runs import RunSweep
from skip2bench.tune.space import Choice, Space, default_choice, guides_choice, single_choices


@dataclass(frozen=True, kw_only=True)
class _Tune:
    """A sweep in its folder."""

    config: TuneConfig
    plan: TrainingPlan
    space: Space
    folder: Path
    environment: Environment
    arguments: Sequence[str]
    started: float
    earlier_seconds: float
    """What earlier processes took for the same sweep."""

    @property
    def key(self) -> str:
        """Hash of all that decides the sweep's figures."""
        environment = self.environment
        named = environment.model_dump(include={"checkpoint", "torch", "litgpt", "skip2bench"})
        plain = to_plain(self.config)
        for name in ("finalists", "seeds"):
            del plain[name]
        content = {"config": plain, "data": self.plan.data.sha256, **named}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def wall_seconds(self) -> float:
        """What it has taken so far, earlier processes included."""
        return self.earlier_seconds + time.monotonic() - self.started

    @property
    def cache(self) -> Path:
        """Folder that keeps the cache, until the sweep is done where nobody named it."""
        return self.plan.config.cache_dir or self.folder / SCRATCH


def run_tune(config: TuneConfig, arguments: Sequence[str] = ()) -> TuneResult:
    """Sweep, train the finalists, write the run folder, and return what was found.

    Args:
        config: What to try.
        arguments: The command line, recorded so that it can be repeated; a program has none.

    Raises:
        Skip2BenchError: bad input (nothing is written then), or no configuration that did not
            diverge.
        KeyboardInterrupt: it was interrupted; the same command goes on.
    """
    started = time.monotonic()
    whole = {} if config.is_of_runs else {"blocks": "all", "features": config.features[0]}
    plan = plan_training(config.train_config(whole))
    model_config = plan.model_config
    chosen = {} if config.is_of_runs else _choose_auto(config, plan)
    space = Space.of(config, model_config, chosen)
    if not config.screening and not config.is_of_runs:
        guide = guides_choice(space, model_config)
        adapted = {block for _, blocks in space.blocks for block in blocks} | set(guide.blocks)
        blocks = ",".join(map(str, sorted(adapted)))
        settings = resolve_method(config.method, blocks, plan.config, model_config)
        plan = replace(plan, config=replace(plan.config, blocks=blocks), settings=settings)
    environment = plan.describe_environment(arguments)
    folder = _find_folder(config, plan)
    with locked_folder(folder):
        if config.force:
            _clear(folder)
        elif config.out_dir is not None and holds_run(folder) and not _can_go_on(folder, config):
            raise Skip2BenchError(
                f"{str(folder)!r} holds a run already, or a sweep that is done; choose another "
                "--out-dir, or --force to replace it"
            )
        tune = _Tune(
            config=config,
            plan=plan,
            space=space,
            folder=folder,
            environment=environment,
            arguments=arguments,
            started=started,
            earlier_seconds=state.read_wall_seconds(folder),
        )
        return _record(tune)


def _choose_auto(config: TuneConfig, plan: TrainingPlan) -> dict[str, str]:
    """By text such as auto, the blocks that the model's gradient on the data chooses."""
    counts = {text: count_auto(text) for text in config.blocks}
    asked_for = {text: count for text, count in counts.items() if count is not None}
    if not asked_for:
        return {}
    ranking = rank_blocks(plan)
    return {text: choose_blocks(ranking, count) for text, count in asked_for.items()}


def _find_folder(config: TuneConfig, plan: TrainingPlan) -> Path:
    """`out_dir`, the newest of the same configuration that was stopped, or a new one."""
    if config.out_dir is None and config.resume and not config.force:
        wanted = json.loads(json.dumps(to_plain(config)))
        for folder in sorted((RESULTS / "tune").glob(f"*-{plan.model_name}-*"), reverse=True):
            try:
                stored = _read_config(folder)
            except (OSError, ValueError, yaml.YAMLError):
                continue
            if stored == wanted and _can_go_on(folder, config):
                note(f"going on with {folder}")
                return folder
    return create_run_folder("tune", plan.model_name, config.method, config.out_dir)


def _can_go_on(folder: Path, config: TuneConfig) -> bool:
    """True for a sweep that has not ended and whose work so far is there."""
    if StateFolder(folder).files():
        return True
    has_begun = (folder / EXPLORATION).is_dir() or _was_stopped(folder, config)
    return has_begun and not (folder / FRONTIER_FILE).exists()


def _was_stopped(folder: Path, config: TuneConfig) -> bool:
    """True for a sweep of this configuration that was ended before its first rung."""
    try:
        summary = read_json(folder / "summary.json")
        is_same = _read_config(folder) == json.loads(json.dumps(to_plain(config)))
    except (OSError, ValueError, DamagedFileError, yaml.YAMLError):
        return False
    return bool(is_same and summary.get("kind") == "tune" and summary.get("status") != "ok")


def _read_config(folder: Path) -> Any:
    return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))


def _clear(folder: Path) -> None:
    (folder / FRONTIER_FILE).unlink(missing_ok=True)
    for name in (EXPLORATION, FINALISTS, SCRATCH):
        shutil.rmtree(folder / name, ignore_errors=True)
    StateFolder(folder).clear()


def _record(tune: _Tune) -> TuneResult:
    plan, config = tune.plan, tune.config
    known = TuneStart(
        kind="tune",
        label=f"tune --budget {config.budget}",
        model=plan.model_name,
        data=plan.data.name,
        prompt_style=plan.prompt_style,
        device=str(plan.device),
        precision=plan.precision,
        train_samples=len(plan.data.train),
        val_samples=len(plan.data.val),
        seed=plan.config.seed,
        epochs=plan.config.epochs,
        planned_steps=plan.steps,
        budget=config.budget,
        by_runs=config.is_of_runs or None,
        error=None,
    )
    with record_run(
        tune.folder,
        to_plain(config),
        tune.environment,
        TuneSummary.begin(known),
        tune.started,
        earlier_seconds=tune.earlier_seconds,
        go_on=shlex.join(["skip2bench", *tune.arguments]) if tune.arguments else "the same call",
    ) as recording:
        if config.is_of_runs:
            explored = _explore_by_runs(tune, recording)
        else:
            with stop_on_signals() as stop:
                explored = _explore(tune, stop, recording)
        found = _end(tune, explored, recording)
    StateFolder(tune.folder).clear()
    shutil.rmtree(tune.folder / SCRATCH, ignore_errors=True)
    return TuneResult.of(recording.summary, found=found, folder=str(tune.folder))


@dataclass(frozen=True, kw_only=True)
class _Explored:
    """What a sweep has come to, however it was made."""

    entrants: list[Entrant]
    initial_val_loss: float | None
    rungs: Sequence[Rung]
    steps: int
    """Updates of a whole run."""
    first_rung_step: int
    is_over: bool
    reference: Choice
    """What the finalists are compared with."""

    @classmethod
    def of(cls, tune: _Tune, exploration: Exploration) -> "_Explored":
        """Of many configurations in one pass."""
        rung_steps = exploration.rung_steps
        return cls(
            entrants=exploration.entrants,
            initial_val_loss=exploration.initial_val_loss,
            rungs=exploration.rungs,
            steps=exploration.steps,
            first_rung_step=rung_steps[0],
            is_over=len(exploration.rungs) == len(rung_steps),
            reference=guides_choice(tune.space, tune.plan.model_config),
        )


def _explore_by_runs(tune: _Tune, recording: Recording[TuneSummary]) -> _Explored:
    """Every configuration as a whole run."""
    config, plan = tune.config, tune.plan
    within = Within(cache=tune.cache, start_seconds=time.monotonic() - tune.started)
    sweep = RunSweep(
        config=config,
        plan=plan,
        space=tune.space,
        folder=tune.folder,
        within=within,
        arguments=tune.arguments,
    )
    n = config.budget_configurations
    assert n is not None  # a time is refused
    with interrupted_by_sigterm():
        sweep.run(n)
    recording.add(sweep.count())
    explored = _Explored(
        entrants=sweep.entrants,
        initial_val_loss=sweep.initial_val_loss,
        rungs=sweep.rungs,
        steps=plan.steps,
        first_rung_step=plan.steps,
        is_over=True,
        reference=default_choice(tune.space, plan.model_config),
    )
    state.write_curves(config, explored.entrants, tune.folder)
    return explored


def _explore(tune: _Tune, stop: StopRequest, recording: Recording[TuneSummary]) -> _Explored:
    """All rungs of the sweep, or those that a stopped one has left."""
    config = tune.config
    kept = replace(tune.plan, config=replace(tune.plan.config, cache_dir=tune.cache))
    readers = config.budget_configurations or _USUAL_READERS
    ground = lay_ground(kept, tune.folder, tune.environment, stop, tune.started, readers)
    exploration = Exploration(config=config, ground=ground)
    if state.restore(exploration, tune.folder, tune.key):
        note(f"{format_amount(len(exploration.rungs), 'rung')} done already in {tune.folder}")
    else:
        _enter_first(tune, exploration)

    def after_rung() -> None:
        state.save(exploration, tune.folder, tune.key, tune.wall_seconds)
        state.write_curves(config, exploration.entrants, tune.folder)
        write_json(tune.folder / TUNE_FILE, _describe(tune, _Explored.of(tune, exploration)))
        recording.add(_count(tune, exploration))

    exploration.run(after_rung)
    recording.add(_count(tune, exploration))
    return _Explored.of(tune, exploration)


def _enter_first(tune: _Tune, exploration: Exploration) -> None:
    config, space, model_config = tune.config, tune.space, tune.plan.model_config
    n = config.budget_configurations
    seed = tune.plan.config.seed
    exploration.enter([guides_choice(space, model_config)], "guide")
    if n is None:
        fit_budget(exploration, space, seed)
        return
    drawn = exploration.enter(space.draw(n, seed), "drawn")
    singles = single_choices(space, model_config) if config.screening else []
    exploration.enter(singles, "single")
    note(
        f"{format_amount(len(drawn), 'configuration')} of {space.size:,}, the guide's preset"
        + (f", and {len(singles)} blocks alone" if singles else "")
    )


def _end(tune: _Tune, explored: _Explored, recording: Recording[TuneSummary]) -> TuneResults:
    """Train the finalists and write what was found."""
    config, initial = tune.config, explored.initial_val_loss
    if not any(one.status == "finished" for one in explored.entrants) or initial is None:
        raise Skip2BenchError(
            "every configuration has diverged; give lower --learning-rates, or a longer "
            "--lr-warmup-steps"
        )
    finalists = choose_finalists(explored.entrants, initial, config.finalists, explored.reference)
    results: list[ComparedConfiguration] = []
    if finalists and config.finalists:
        names = ", ".join(one.choice.name for one in finalists)
        note(f"finalists, each alone by {format_amount(config.seeds, 'seed')}: {names}")
        began = time.monotonic()
        preparation = recording.summary.preparation_seconds or 0.0
        start_seconds = tune.started - STARTED + preparation
        within = Within(cache=tune.cache, start_seconds=start_seconds)
        with interrupted_by_sigterm():
            compared = run_finalists(
                config, finalists, tune.folder / FINALISTS, within, tune.arguments
            )
        recording.set(finalists_seconds=time.monotonic() - began)
        results = list(compared.configurations)
    found = _describe(tune, explored, [one.choice.name for one in finalists], results)
    write_json(tune.folder / TUNE_FILE, found)
    svg = draw_frontier(found, "en")
    write_bytes(tune.folder / FRONTIER_FILE, on_paper(svg).encode())
    return found


def _count(tune: _Tune, exploration: Exploration) -> TuneFigures:
    ground, entrants = exploration.ground, exploration.entrants
    caches, seconds = ground.describe_caches(), exploration.ground.clock.seconds
    last = [one.curve[-1].step for one in entrants if one.curve]
    ranked = [one for one in rank(entrants) if one.best is not None and one.status != "diverged"]
    return TuneFigures(
        configurations=len(entrants),
        diverged=sum(one.status == "diverged" for one in entrants),
        initial_val_loss=exploration.initial_val_loss,
        best_val_loss=min((one.best_val_loss for one in ranked), default=None),
        cache_bytes=caches.cache_bytes,
        cache_tier=caches.cache_tier,
        cache_kept=caches.cache_kept and tune.plan.config.cache_dir is not None,
        cache_build_seconds=seconds.get("cache_build", 0.0),
        sweep_seconds=seconds.get("sweep", 0.0),
        validation_seconds=seconds.get("validation", 0.0),
        peak_memory_bytes=read_peak_memory(ground.plan.device),
        steps_of_all=sum(last),
    )


def _describe(
    tune: _Tune,
    explored: _Explored,
    finalist_names: Sequence[str] = (),
    results: Sequence[ComparedConfiguration] = (),
) -> TuneResults:
    config, initial, entrants = tune.config, explored.initial_val_loss, explored.entrants
    by_name = dict(zip(finalist_names, results, strict=False))
    is_ready = explored.is_over and initial is not None
    picks = recommend(config, entrants, by_name, initial or 0.0) if is_ready else ()
    return TuneResults(
        schema_version=SCHEMA_VERSION,
        written_at=utc_now(),
        command=tune.environment.command,
        initial_val_loss=initial,
        planned_steps=explored.steps,
        rungs=tuple(explored.rungs),
        configurations=tuple(describe_all(config, rank(entrants))),
        sensitivity=find_sensitivity(entrants, explored.first_rung_step),
        finalists=tuple(results),
        finalist_names=tuple(finalist_names) if results else (),
        picks=picks,
    )


_USUAL_READERS = 16
"""Configurations of a sweep whose budget is a time."""
_FACTORS = ("blocks_text", "rank", "learning_rate", "alpha", "dropout", "weight_decay", "features")


def find_sensitivity(entrants: Sequence[Entrant], step: int) -> tuple[Sensitivity, ...]:
    """What each choice made of the losses up to a step, of choices that differ at all.

    Single blocks are left out: they were all tried at one rank and rate.
    """
    entered = [one for one in entrants if one.origin != "single"]
    rows = []
    for factor in _FACTORS:
        values = sorted({getattr(one.choice, factor) for one in entered})
        for value in values if len(values) > 1 else ():
            own = [one for one in entered if getattr(one.choice, factor) == value]
            losses = [loss for one in own if (loss := one.best_until(step)) < float("inf")]
            if losses:
                rows.append(
                    Sensitivity(
                        factor=factor.removesuffix("_text"),
                        value=f"{value:g}" if isinstance(value, float) else str(value),
                        n=len(losses),
                        best_val_loss=min(losses),
                        median_val_loss=median(losses),
                    )
                )
    return tuple(rows)
