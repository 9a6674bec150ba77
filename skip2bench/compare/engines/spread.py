"""Runs what is left of a comparison on workers: gives out groups, takes in what they come to.

Nothing here knows what has been done but from the comparison's folder: a worker that is lost, or
this process, costs the cell that was on its way.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from skip2bench.compare.comparison import Comparison, write_comparison
from skip2bench.compare.engines.crew import Crew
from skip2bench.compare.engines.engine import Ended, Slot
from skip2bench.compare.engines.job import SILENT_SECONDS, Job, JobTask, WorkerState
from skip2bench.compare.engines.schedule import expect_seconds, group_left, list_ready
from skip2bench.compare.engines.screen import CrewScreen
from skip2bench.compare.matrix import Cell
from skip2bench.compare.process import END_SECONDS, Outcome, read_cell_run
from skip2bench.compare.progress import Seconds, expect_left, report_progress
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note, warn
from skip2bench.io.units import format_duration
from skip2bench.io.whole import utc_now

_POLL_SECONDS = 0.5
_WRITE_SECONDS = 5.0
"""The least between two times that the comparison's own files are rewritten."""
LOST_SECONDS = 300.0
"""A worker that has said nothing new for so long is taken for lost."""
_CLOCK_SECONDS = 60.0
"""By how much clocks may differ before it is said."""


@dataclass(kw_only=True)
class _Running:
    """A worker and its job."""

    slot: Slot
    group: str
    job: Job
    left: list[str]
    """Tasks whose end has not been taken in."""
    stamps: dict[str, tuple[int, int] | None]
    """Of ends that were recorded before the job began."""
    state: WorkerState | None = None
    changed: float = field(default_factory=time.monotonic)
    """When it said something new."""
    is_silent: bool = False


def spread(comparison: Comparison, seconds: Seconds, crew: Crew) -> None:
    """Run what has not ended, and what follows from its results.

    Raises:
        Skip2BenchError: a group has lost its worker too often, or no worker is left.
        KeyboardInterrupt: it was interrupted; all workers have stopped.
    """
    _Spread(comparison, seconds, crew).run()


class _Spread:
    def __init__(self, comparison: Comparison, seconds: Seconds, crew: Crew) -> None:
        self._comparison, self._seconds, self._crew = comparison, seconds, crew
        self._running: dict[str, _Running] = {}
        self._losses: Counter[str] = Counter()
        self._homes: dict[str, str] = {}
        self._told_clocks: set[str] = set()
        self._written = 0.0

    def run(self) -> None:
        try:
            with CrewScreen() as screen:
                while True:
                    self._give_out()
                    if not self._running:
                        break
                    if screen.is_due:
                        screen.show(self._lines(), self._headline())
                    time.sleep(_POLL_SECONDS)
                    for it in list(self._running.values()):
                        self._look_after(it)
                    self._write(is_due=False)
        except BaseException:
            self._stop()
            raise
        self._write(is_due=True)
        if left := self._comparison.left():
            raise Skip2BenchError(f"no worker is left for {left[0].name}; call again when one is")

    def _give_out(self) -> None:
        engine = self._crew.engine
        free = [slot for slot in engine.slots if slot.name not in self._running]
        if not free:
            return
        ready = list_ready(self._comparison, {it.group for it in self._running.values()})
        free = [slot for slot in free if ready and engine.is_alive(slot)]
        begun = []
        for group, names in ready.items():
            slot = self._choose(group, free)
            if slot is None:
                break
            free.remove(slot)
            begun.append(self._prepare(slot, group, names))
        self._crew.start([(it.slot, it.job) for it in begun])
        for it in begun:
            self._running[it.slot.name] = it

    def _choose(self, group: str, free: list[Slot]) -> Slot | None:
        """Where the group has been before, else the first one."""
        home = self._homes.get(group)
        return next((slot for slot in free if slot.name == home), free[0] if free else None)

    def _prepare(self, slot: Slot, group: str, names: Sequence[str]) -> _Running:
        folder, tasks = self._comparison.folder, self._comparison.tasks
        cells = self._comparison.cells
        told = [
            JobTask(
                name=name,
                key=tasks[name].key,
                spec=tasks[name].spec,
                reads_cache=name in cells and cells[name].role != "cache",
                is_repeated=folder.has_ended_well(name, tasks[name].key),
            )
            for name in names
        ]
        self._homes[group] = slot.name
        return _Running(
            slot=slot,
            group=group,
            job=self._crew.make_job(slot, told),
            left=list(names),
            stamps={name: folder.end_stamp(name) for name in names},
        )

    def _look_after(self, it: _Running) -> None:
        """Take in what a worker has done, and see whether it lives."""
        state = self._crew.workers.read_state(it.job.name)
        if state is not None and (it.state is None or state.beats != it.state.beats):
            it.state, it.changed, it.is_silent = state, time.monotonic(), False
            self._compare_clock(state)
        end = self._crew.engine.poll(it.slot)
        self._take_in(it)
        if end is None and it.state is not None:
            end = self._find_silence(it)
        if end is None:
            return
        self._take_in(it)
        del self._running[it.slot.name]
        if it.left:
            self._take_loss(it, end)

    def _take_in(self, it: _Running) -> None:
        comparison, folder = self._comparison, self._comparison.folder
        while it.left:
            name = it.left[0]
            task = comparison.tasks[name]
            if folder.end_stamp(name) == it.stamps[name]:
                return
            outcome = folder.read_outcome(name, task.key)
            if outcome is None or outcome.status == "interrupted":
                return  # half of it is there, or its worker stops
            is_ok = outcome.status == "ok"
            run = folder.finished_run(name) if is_ok else read_cell_run(folder.run_folder(name))
            it.left.pop(0)
            comparison.record(name, outcome, run)
            comparison.list_further()
            report_progress(comparison, task, self._seconds, self._total)

    def _find_silence(self, it: _Running) -> Ended | None:
        silent = time.monotonic() - it.changed
        assert it.state is not None
        if silent > LOST_SECONDS:
            self._crew.engine.end(it.slot)
            return Ended(exit_status=-1, line=f"silent for {format_duration(silent, 'en')}")
        if silent > SILENT_SECONDS and not it.is_silent:
            it.is_silent = True
            warn(
                f"worker {it.state.host} has said nothing for {format_duration(silent, 'en')}; "
                f"after {format_duration(LOST_SECONDS, 'en')} it is taken for lost"
            )
        return None

    def _take_loss(self, it: _Running, end: Ended) -> None:
        """Write down that a worker was lost on its way; its group is given out again."""
        reason = self._crew.explain(it.slot, it.job, end, it.state)
        name = it.left[0]
        folder = self._comparison.folder
        if folder.end_stamp(name) == it.stamps[name] and folder.run_folder(name).exists():
            folder.write_outcome(name, self._comparison.tasks[name].key, _lost(reason, it.state))
        self._losses[it.group] += 1
        self._homes.pop(it.group, None)
        most = self._comparison.plan.config.retries
        if self._losses[it.group] > most or (it.state and it.state.status == "refused"):
            raise Skip2BenchError(f"{reason}; see {self._crew.workers.log_file(it.job.name)}")
        warn(f"{reason}; {name} and what follows it are given out again")

    def _compare_clock(self, state: WorkerState) -> None:
        ahead = state.clock - time.time()
        if abs(ahead) > _CLOCK_SECONDS and state.host not in self._told_clocks:
            self._told_clocks.add(state.host)
            word = "ahead of" if ahead > 0 else "behind"
            warn(
                f"the clock of worker {state.host} is {format_duration(abs(ahead), 'en')} {word} "
                "this machine's; times of day in its records are, durations are right"
            )

    def _stop(self) -> None:
        """Let every worker end its cell, and write down what has come of it."""
        running = list(self._running.values())
        if running:
            note("stopping the workers")
        begun = [it.slot for it in running if it.state is not None]
        self._crew.dismiss(begun, END_SECONDS)
        for it in running:
            self._take_in(it)
            for name in it.left[:1]:
                key = self._comparison.tasks[name].key
                if outcome := self._comparison.folder.read_outcome(name, key):
                    run = read_cell_run(self._comparison.folder.run_folder(name))
                    self._comparison.record(name, outcome, run)
        self._running.clear()

    def _total(self, left: Sequence[tuple[Cell | None, float]]) -> float:
        return expect_seconds(group_left(left), len(self._crew.engine.slots))

    def _headline(self) -> str:
        count, left = expect_left(self._comparison, self._seconds, self._total)
        done = len(self._comparison.outcomes)
        return f"{done} of {count} done, about {format_duration(left, 'en')} left"

    def _lines(self) -> list[tuple[str, str, float | None]]:
        return [
            (
                it.state.host if it.state else it.slot.host or it.slot.name,
                it.state.cell or it.group if it.state else f"{it.group} (waiting)",
                it.state.cell_seconds if it.state else None,
            )
            for it in self._running.values()
        ]

    def _write(self, *, is_due: bool) -> None:
        """Rewrite the comparison's files, and what people elsewhere are told."""
        if not is_due and time.monotonic() - self._written < _WRITE_SECONDS:
            return
        write_comparison(self._comparison)
        count, left = expect_left(self._comparison, self._seconds, self._total)
        self._crew.tell(count, left)
        self._written = time.monotonic()


def _lost(reason: str, state: WorkerState | None) -> Outcome:
    return Outcome(
        status="interrupted",
        error=reason,
        started_at=utc_now(),
        wall_seconds=(state.cell_seconds or 0.0) if state else 0.0,
        other_cpu_cores=None,
        exit_status=-1,
        host=state.host if state else None,
    )
