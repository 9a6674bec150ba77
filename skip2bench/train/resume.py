"""The folder that a training run works in: a new one, or that of a run which was stopped.

Which run `--resume` means is found here. What a stopped run left is taken up only where it is the
same run: the same configuration, tokens and weights. A damaged state gives way to the one before.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skip2bench.config.options import option_names, to_plain
from skip2bench.config.train import TrainConfig
from skip2bench.data.samples import hash_samples
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note, warn
from skip2bench.io.locks import locked_folder
from skip2bench.machine.environment_record import Environment
from skip2bench.results.reading import AnyRun, TrainRun, is_train, read_run
from skip2bench.results.run_folder import (
    METRICS_COLUMNS,
    RESULTS,
    STEPS_COLUMNS,
    create_log_folder,
    holds_run,
    open_run_folder,
)
from skip2bench.results.run_records import TrainResult
from skip2bench.train.logs import DamagedLogError, keep_rows
from skip2bench.train.plan import TrainingPlan
from skip2bench.train.state import DamagedStateError, Progress, State, StateFolder, read_state

_RECORDED = ("torch", "litgpt", "skip2bench", "bitsandbytes", "processor", "threads", "gpu")
"""Of the environment: where it differs, the last bits of the result may."""
_NAMES = {
    "checkpoint": "weights",
    "model_config": "model_config.yaml",
    "domain": "text of --domain-text",
}
_BY_CONTENT = {
    "checkpoint_dir": ("checkpoint", "model_config"),
    **dict.fromkeys(("data", "val_data", "test_data"), ("data",)),
}
"""Options that name a place, and the hashes of what was there: a run whose files have moved is the
same run."""


@dataclass(frozen=True, kw_only=True)
class RunPlace:
    """Where a run works and what it goes on from."""

    folder: Path
    log_folder: Path
    state: State | None = None
    """None for a run that starts at its beginning."""
    earlier_sessions: tuple[Environment, ...] = ()
    """Environments of the processes that worked on the run before."""
    finished: TrainResult | None = None
    """Summary of a run that has nothing left to do."""

    @property
    def earlier_seconds(self) -> float:
        """What earlier processes took until the state was saved."""
        return float(self.state.values["wall_seconds"]) if self.state else 0.0

    @property
    def step(self) -> int:
        """Steps that were done when the state was saved."""
        return int(self.state.values["progress"]["step"]) if self.state else 0

    def objective_state(self, rank: int) -> dict[str, Any] | None:
        """What the objective of a rank said of itself in the state; None where it starts anew."""
        if self.state is None:
            return None
        found: dict[str, Any] | None = self.state.values["objectives"][rank]
        return found

    @property
    def progress(self) -> Progress:
        """How far the run has come, this resumption noted."""
        if self.state is None:
            return Progress()
        progress = Progress.of(self.state.values["progress"])
        progress.resumed_at_steps.append(progress.step)
        return progress


def identify(plan: TrainingPlan, environment: Environment) -> dict[str, Any]:
    """What a state must have been made with, to be a state of this run."""
    versions = environment.model_dump(include={*_RECORDED})
    assert environment.checkpoint is not None
    return {
        "configuration": _hash(
            {name: it for name, it in describe_same(plan.config).items() if name not in _BY_CONTENT}
        ),
        "data": plan.data.sha256,
        "checkpoint": environment.checkpoint.sha256,
        "model_config": environment.checkpoint.model_config_sha256,
        "domain": hash_samples(plan.domain) if plan.domain else None,
        "precision": plan.precision,
        "device": plan.device.type,
        "versions": versions,
    }


@contextmanager
def open_place(plan: TrainingPlan, identity: Mapping[str, Any]) -> Iterator[RunPlace]:
    """The folder of the run, no other process in it meanwhile.

    Raises:
        Skip2BenchError: another process works there, or it holds another run.
    """
    config = plan.config
    stopped = find_stopped(config, identity) if config.resume else None
    if stopped is None:
        with open_run_folder(
            "train", plan.model_name, plan.settings.slug, config.out_dir, force=config.force
        ) as folder:
            yield RunPlace(folder=folder, log_folder=create_log_folder(folder))
        return
    with locked_folder(stopped):
        yield _take_up(stopped, config, identity)


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _take_up(folder: Path, config: TrainConfig, identity: Mapping[str, Any]) -> RunPlace:
    """What a run left in its folder.

    Raises:
        Skip2BenchError: it is of another kind or configuration, or would diverge again.
    """
    run = check_resumable(folder)
    check_is_same(run, config, identity)
    log_folder = _log_folder(folder, run.summary.log_folder)
    if run.summary.status == "ok":
        note(f"the run in {folder} has finished already")
        return RunPlace(
            folder=folder,
            log_folder=log_folder,
            finished=TrainResult.of(run.summary, folder=str(folder)),
        )
    state = _choose_state(folder, identity)
    if state is None:
        note(f"the run in {folder} had saved nothing that can be used: it starts again")
        return RunPlace(folder=folder, log_folder=_restart_logs(folder, run))
    _warn_of_changes(state.values["identity"]["versions"], identity["versions"])
    step = state.values["progress"]["step"]
    note(f"going on with the run in {folder} after step {step}")
    own = run.environment.model_dump(exclude_unset=True, exclude={"earlier_sessions"})
    earlier = run.environment.earlier_sessions or ()
    return RunPlace(
        folder=folder,
        log_folder=_log_folder(folder, state.values["log_folder"]),
        state=state,
        earlier_sessions=(*earlier, Environment(**own)),
    )


def _choose_state(folder: Path, identity: Mapping[str, Any]) -> State | None:
    """The newest state that is whole and of this run, the logs cut back to it.

    Raises:
        Skip2BenchError: all that are whole are of other weights or data.
    """
    mismatch = None
    for path in StateFolder(folder).files():
        try:
            state = read_state(path)
            stored = state.values["identity"]
            names = [name for name in identity if name != "versions"]
            differing = [name for name in names if stored.get(name) != identity[name]]
            if differing:
                mismatch = differing[0]
                raise DamagedStateError(f"it is of other {_NAMES.get(mismatch, mismatch)}")
            _cut_logs(_log_folder(folder, state.values["log_folder"]), state)
        except (DamagedStateError, DamagedLogError) as error:
            warn(f"the state {path.name} is not used: {error}")
            continue
        return state
    if mismatch is not None:
        raise Skip2BenchError(
            f"the {_NAMES.get(mismatch, mismatch)} of the run in {str(folder)!r} has changed since "
            "it began; restore it, or start a new run with another --out-dir"
        )
    return None


def _cut_logs(log_folder: Path, state: State) -> None:
    progress = state.values["progress"]
    evaluations = [step for step, _ in progress["val_losses"]]
    keep_rows(log_folder / "metrics.csv", METRICS_COLUMNS, evaluations)
    keep_rows(log_folder / "steps.csv", STEPS_COLUMNS, range(1, progress["step"] + 1))


def _restart_logs(folder: Path, run: TrainRun) -> Path:
    """Logs for a run that starts again: its own where they hold no step, else new ones."""
    log_folder = _log_folder(folder, run.summary.log_folder)
    steps = log_folder / "steps.csv"
    has_rows = steps.is_file() and steps.read_bytes().count(b"\n") > 1
    if has_rows or not log_folder.is_dir():
        return create_log_folder(folder)
    for name in ("metrics.csv", "steps.csv"):
        (log_folder / name).unlink(missing_ok=True)
    return log_folder


def _log_folder(folder: Path, stored: object) -> Path:
    """The logs that a file of the run names; never outside its folder."""
    return folder / "logs" / Path(str(stored)).name


def _warn_of_changes(stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [name for name in _RECORDED if stored.get(name) != now.get(name)]
    if changed:
        warn(
            f"other than when the run began: {', '.join(changed)}; its times mix both, and its "
            "last digits may differ from those of a run that was not stopped"
        )


def find_stopped(config: TrainConfig, identity: Mapping[str, Any]) -> Path | None:
    """The folder with the run to go on with; None where there is none, which is said."""
    if config.out_dir is not None:
        if holds_run(config.out_dir):
            check_resumable(config.out_dir)
            return config.out_dir
        note(f"{config.out_dir} holds no run to go on with: a new one starts")
        return None
    for path in sorted((RESULTS / "train").glob("*/summary.json"), reverse=True):
        try:
            run = read_run(path.parent)
        except Skip2BenchError:
            continue  # half of one, from which nothing can go on
        if run.summary.status != "ok" and not find_differences(run, config, identity):
            return run.folder
    note(f"no stopped run of this configuration below {RESULTS / 'train'}: a new one starts")
    return None


def check_resumable(folder: Path) -> TrainRun:
    """The run in a folder, where something can go on with it.

    Raises:
        Skip2BenchError: files are missing or damaged, it is of another kind, or it would diverge
            again.
    """
    for name in ("summary.json", "config.yaml"):
        if not (folder / name).is_file():
            raise Skip2BenchError(
                f"{name} of the run in {str(folder)!r} is missing; bring it back, or start anew "
                "with --force or another --out-dir"
            )
    run = read_run(folder)
    if not is_train(run) or run.summary.peer:
        raise Skip2BenchError(
            f"{str(folder)!r} holds no run of skip2bench train; choose another --out-dir"
        )
    if (step := run.summary.diverged_at_step) is not None:
        raise Skip2BenchError(
            f"the run in {str(folder)!r} diverged at step {step} and would do so again; start a "
            "new one with a lower --learning-rate"
        )
    return run


def check_is_same(run: TrainRun, config: TrainConfig, identity: Mapping[str, Any]) -> None:
    """Raise a Skip2BenchError that names the first difference to another configuration."""
    folder = str(run.folder)
    if lost := [name for name in to_plain(config) if name not in run.config]:
        raise Skip2BenchError(
            f"config.yaml of the run in {folder!r} has no {lost[0]}: it is damaged or another "
            "version's; bring it back, or start anew with --force or another --out-dir"
        )
    if differences := find_differences(run, config, identity):
        name, (stored, own) = next(iter(differences.items()))
        raise Skip2BenchError(
            f"the run in {folder!r} has {name} {stored!r}, not {own!r}; leave the flags out to go "
            "on with it as it was, or choose another --out-dir"
        )


def find_differences(
    run: AnyRun, config: TrainConfig, identity: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """By name what a run has and what a configuration says, where these differ.

    Args:
        run: The run.
        config: The configuration.
        identity: What `identify` says of it: places with the same content are no difference.
    """
    data, checkpoint = run.environment.data, run.environment.checkpoint
    recorded = {
        "data": data and data.sha256,
        "checkpoint": checkpoint and checkpoint.sha256,
        "model_config": checkpoint and checkpoint.model_config_sha256,
    }

    def has_moved(name: str) -> bool:
        hashes = _BY_CONTENT.get(name, ())
        return bool(hashes) and all(
            recorded[it] is not None and recorded[it] == identity[it] for it in hashes
        )

    return {
        name: (run.config.get(name), value)
        for name, value in describe_same(config).items()
        if run.config.get(name) != value and not has_moved(name)
    }


def describe_same(config: TrainConfig) -> dict[str, Any]:
    """Of a configuration, by name, what must be as it was for a run to go on."""
    places = option_names(config, "place")
    return {name: value for name, value in to_plain(config).items() if name not in places}
