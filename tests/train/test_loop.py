"""What a step of training asks of a GPU: to be waited for once, and what its parts took."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric import Fabric
from stand_in_gpu import StandInGpu
from torch.optim.optimizer import register_optimizer_step_post_hook

import skip2bench.train.run
from skip2bench.errors import Skip2BenchError
from skip2bench.machine.clock import Clock
from skip2bench.train import loop
from skip2bench.train.cached_objective import CachedObjective
from skip2bench.train.logs import RunLogs
from skip2bench.train.objective import TokenObjective
from skip2bench.train.ranks.ranks import Ranks

METHODS = ["lora", "skip2"]
META = torch.device("meta")


@pytest.fixture
def gpu(monkeypatch):
    """Runs on the CPU whose clock takes them for a GPU's.

    A portion is loaded in 1 s by the host; the device takes 4 s forward and 2 s backward, and 3 s
    for the update. Reading a loss waits for it.
    """
    gpu = StandInGpu(monkeypatch)
    monkeypatch.setattr(
        skip2bench.train.run, "Clock", lambda _, meter: Clock(gpu.device, meter=meter)
    )

    def after(owner, name, then):
        call = getattr(owner, name)

        def patched(*arguments, **options):
            result = call(*arguments, **options)
            return then(result) or result

        monkeypatch.setattr(owner, name, patched)

    def load(portion):
        gpu.host_works(1)
        return replace(portion, loss=lambda: gpu.launch(4) or portion.loss())

    for objective in (TokenObjective, CachedObjective):
        after(objective, "portions", lambda portions: map(load, portions))
    after(Fabric, "backward", lambda _: gpu.launch(2))
    for name in ("__float__", "item", "tolist"):
        after(torch.Tensor, name, lambda value: gpu.wait() if _is_real(value) else None)
    updated = register_optimizer_step_post_hook(lambda *_: gpu.launch(3))
    yield gpu
    updated.remove()


def _is_real(value):
    """Whether it can have come from the device; sample ids and lengths are the host's."""
    return isinstance(value, float) or (isinstance(value, list) and _is_real((value or [0])[0]))


@pytest.fixture
def logged(gpu, monkeypatch):
    """Of every step that is logged: waits so far, the host's moment, and the training clock."""
    steps = []
    log_step = RunLogs.log_step

    def log(logs, **values):
        steps.append((gpu.waits, gpu.now, values["train_seconds"]))
        log_step(logs, **values)

    monkeypatch.setattr(RunLogs, "log_step", log)
    return steps


@pytest.mark.parametrize("method", METHODS)
def test_a_step_waits_once_and_its_parts_are_all_of_it(train, logged, method):
    summary, *_ = train(method=method, eval_interval=100, micro_batch_size=3)
    waits, moments, clocks = zip(*logged, strict=True)
    for k in range(1, len(logged) - 1):
        assert waits[k] - waits[k - 1] == 1
        assert clocks[k] - clocks[k - 1] == pytest.approx(moments[k] - moments[k - 1])
    portions = 28 if method == "lora" else 10  # the last batch of an epoch is smaller
    expected = {
        "data": 10.0,  # of each step the first portion, while the device has nothing to do
        "forward": 4.0 * portions,
        "backward": 2.0 * portions,
        "optimizer": 30.0,
    }
    measured = {part: summary[f"{part}_seconds"] for part in expected}
    assert measured == expected
    assert summary["train_seconds"] == sum(expected.values())


def test_the_clock_of_a_stopped_run_goes_on(train, gpu, monkeypatch):
    take_step = loop.take_step

    def take(run, step, *arguments):
        run.stop.is_made = step == 6
        return take_step(run, step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", take)
        with pytest.raises(KeyboardInterrupt):
            train(method="skip2")
    summary, _, steps, _ = train(method="skip2", resume=True)
    assert summary["resumed_at_steps"] == [7]
    assert steps["train_seconds"].tolist() == [10.0 * (k + 1) for k in range(10)]


@pytest.mark.parametrize("method", [*METHODS, "skip", "full"])
def test_a_step_asks_for_nothing_that_the_device_has(train, monkeypatch, method):
    """The meta device has nothing to give: reading a value there, or places in a mask, fails."""
    runs = []

    def begin(run, progress, _resumed):
        loop._begin(run, progress)
        runs.append(run)
        raise KeyboardInterrupt

    monkeypatch.setattr(skip2bench.train.run, "fit", begin)
    with pytest.raises(KeyboardInterrupt):
        train(method=method)
    run = _to_meta(runs[0])
    reads = []
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: reads.append(tensor) or 0.5)
    assert loop.take_step(run, 0, 1e-2)[0] == 0.5
    assert [tensor.device for tensor in reads] == [META]


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_a_step_on_a_gpu_waits_for_nothing_before_its_loss_is_read(train, monkeypatch, method):
    """torch raises where an operation would wait, until the loss is read."""
    reduce_step, take_step, read = Ranks.reduce_step, loop.take_step, []

    def reduce(*arguments):
        read_sums = reduce_step(*arguments)

        def read_at_last():
            torch.cuda.set_sync_debug_mode("default")
            read.append(True)
            return read_sums()

        return read_at_last

    def take(run, step, *arguments):
        if step > 0:  # the first one makes what later ones have
            torch.cuda.set_sync_debug_mode("error")
        try:
            return take_step(run, step, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Ranks, "reduce_step", reduce)
    monkeypatch.setattr(loop, "take_step", take)
    train(method=method, device="cuda", precision="32-true")
    assert len(read) == 10


def _to_meta(run):
    """The run with model, cache and what it loads on the meta device."""
    fabric = SimpleNamespace(
        device=META,
        autocast=nullcontext,
        backward=torch.Tensor.backward,
        to_device=lambda tensor: tensor.to(META),
    )
    model, objective = run.model.to(META), run.objective
    objective._fabric = fabric
    if isinstance(objective, CachedObjective):
        source = objective._sources["train"]
        source._place = fabric
        source._cache = replace(source._cache, arrays=source._cache.arrays.to(META))
    else:
        objective._model = model
    trained = [p for p in model.parameters() if p.requires_grad]
    attempt = replace(run.attempt, fabric=fabric)
    return replace(run, attempt=attempt, model=model, optimizer=torch.optim.SGD(trained))


def test_a_sample_prompt_is_answered_at_every_evaluation_in_no_clock(train, capsys):
    plain = train("plain", method="skip2", max_steps=4, eval_interval=2)[0]
    assert "answer after step" not in capsys.readouterr().err
    shown = train("shown", method="skip2", max_steps=4, eval_interval=2, sample_prompt="Add.")[0]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("answer after")] == [
        "answer after step 0",
        "answer after step 2",
        "answer after step 4",
    ]
    assert shown["final_val_loss"] == plain["final_val_loss"]


@pytest.mark.parametrize("method", ["lora", "skip", "full", "lora-last"])
def test_answers_do_not_change_what_is_trained(train, method):
    changes = {"method": method, "max_steps": 3, "eval_interval": 1, "lora_dropout": 0.1}
    plain = train("plain", **changes)[0]
    shown = train("shown", **changes, sample_prompt="Add.")[0]
    assert shown["final_val_loss"] == plain["final_val_loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_prompt": " "}, "sample_prompt is empty"),
        ({"sample_prompt": "a", "stream_blocks": True}, "leave stream_blocks out with it"),
        ({"sample_prompt": "a", "devices": 2}, "leave devices out with it"),
        ({"sample_prompt": "Add 1. " * 90}, "and the model reads at most 95;"),
    ],
)
def test_a_sample_prompt_that_cannot_be_answered_is_one_line(train, changes, message):
    with pytest.raises(Skip2BenchError, match=message):
        train(method="skip2", **changes)
