"""Rounds on the CPU and, with the calls that need a device replaced, as they go on CUDA."""

import weakref

import pytest
import torch

from skip2bench.bench import timing
from skip2bench.bench.run import list_configurations
from skip2bench.bench.workload import Workload
from skip2bench.config.commands import BenchConfig
from skip2bench.models.base import load_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
NO_ROOM = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB."


@pytest.fixture
def config(tiny_checkpoint):
    return BenchConfig(
        model=str(tiny_checkpoint),
        methods=("lora", "skip", "skip2"),
        blocks=("0,1",),
        batch_size=2,
        seq_length=16,
        rounds=2,
        iterations=2,
        device="cpu",
    )


@pytest.fixture
def settings(config, tiny_checkpoint):
    return [it for _, _, it in list_configurations(config, load_config(tiny_checkpoint))]


def fail_for(monkeypatch, method, call="backward", after=0):
    """Let one method's call find no memory, from its call number `after` on."""
    whole, calls = getattr(Workload, call), []

    def run(self, *args):
        if self.settings.method.name == method:
            calls.append(call)
            if len(calls) > after:
                raise torch.OutOfMemoryError(NO_ROOM)
        return whole(self, *args)

    monkeypatch.setattr(Workload, call, run)


@pytest.fixture
def log(monkeypatch):
    """What `measure_times` does with a device that is not there, in order."""
    events = []
    alive = weakref.WeakSet()

    class Fake:
        is_cached = False

        def __init__(self, settings):
            self.settings = settings
            alive.add(self)
            events.append(("build", settings.slug, len(alive)))

        def forward(self):
            events.append(("run", self.settings.slug, len(alive)))

        def list_phases(self, *, cached):
            return {}

    def time_call(call, device):
        assert device == CUDA
        call()
        return 1.0

    monkeypatch.setattr(timing, "load_base", lambda *_args: "base")
    monkeypatch.setattr(timing, "build_workload", lambda settings, *_args: Fake(settings))
    monkeypatch.setattr(timing, "time_call", time_call)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append(("empty", "", len(alive))))
    return events


def test_on_cuda_one_configuration_is_there_at_a_time(log, config, settings):
    times = timing.measure_times(config, settings, CUDA, "bf16-true")
    turn = ["build", *["run"] * (timing.WARMUP_ITERATIONS + config.iterations), "empty"]
    assert [event for event, _, _ in log] == turn * len(settings) * config.rounds
    assert {alive for event, _, alive in log if event != "empty"} == {1}
    assert {alive for event, _, alive in log if event == "empty"} == {0}
    order = [(row["round"], row["method"]) for row in times.rows if row["iteration"] == 1]
    assert order == [(number, it.method.name) for number in (1, 2) for it in settings]
    assert times.misfits == {}


@pytest.mark.parametrize(("call", "phase"), [("backward", "backward"), ("forward", "forward")])
@pytest.mark.parametrize("after", [0, 4])  # in the warm-up, and amid the rounds
def test_what_does_not_fit_is_left_out_and_the_rest_is_measured(
    monkeypatch, config, settings, call, phase, after
):
    fail_for(monkeypatch, "skip", call, after)
    times = timing.measure_times(config, settings, CPU, "32-true")
    misfit = {"status": "oom", "requested_bytes": 2 * 2**30, "oom_phase": phase}
    assert times.misfits == {settings[1].slug: misfit}
    assert {row["method"] for row in times.rows} == {"lora", "skip2"}
    assert len([row for row in times.rows if row["phase"] == "backward"]) == 2 * 2 * 2


def test_nothing_of_a_workload_that_does_not_fit_is_kept(monkeypatch, config, settings):
    """Its tensors are gone when the next one warms up, not only at the end."""
    dropped, alive = [], []
    build = timing.build_workload

    def build_and_watch(settings, *args):
        work = build(settings, *args)
        if settings.method.name == "lora":
            dropped.append(weakref.ref(work.trainable[0]))
        return work

    def forward(_self):
        alive.append(dropped[0]() is not None)

    monkeypatch.setattr(timing, "build_workload", build_and_watch)
    fail_for(monkeypatch, "lora")
    monkeypatch.setattr(Workload, "forward", forward)
    assert list(timing.measure_times(config, settings, CPU, "32-true").misfits) == ["lora"]
    assert alive[0]  # of the one that does not fit itself
    assert len(alive) > 1
    assert not any(alive[1:])


def test_a_model_that_does_not_fit_is_no_crash(monkeypatch, config, settings):
    def fail(*_args):
        raise torch.OutOfMemoryError(NO_ROOM)

    monkeypatch.setattr(timing, "load_base", fail)
    times = timing.measure_times(config, settings, CPU, "32-true")
    assert times.rows == []
    assert [it["oom_phase"] for it in times.misfits.values()] == ["weights"] * len(settings)


def test_features_that_do_not_fit_are_the_models_building(monkeypatch, config, settings):
    build = timing.build_workload

    def fail(settings, *args):
        if settings.method.is_cached:
            raise torch.OutOfMemoryError(NO_ROOM)
        return build(settings, *args)

    monkeypatch.setattr(timing, "build_workload", fail)
    times = timing.measure_times(config, settings, CPU, "32-true")
    assert [it["oom_phase"] for it in times.misfits.values()] == ["model"]


def test_without_a_configuration_no_weights_are_loaded(monkeypatch, config):
    monkeypatch.setattr(timing, "load_base", None)
    assert timing.measure_times(config, [], CPU, "32-true").rows == []
