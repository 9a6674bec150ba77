"""`--micro-batch-size auto`: the largest that fits, found once, and the same losses with it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from lightning.fabric import Fabric
from tiny import as_written

import skip2bench.compare.micro_batches
import skip2bench.train.micro_batch
from skip2bench.compare.matrix import list_configurations
from skip2bench.compare.micro_batches import settle
from skip2bench.compare.run import run_comparison
from skip2bench.config.commands import ReportConfig
from skip2bench.config.compare import load_compare_config
from skip2bench.config.train import TrainConfig
from skip2bench.models.base import load_config
from skip2bench.report.run import render_report
from skip2bench.train.micro_batch import find_largest, find_micro_batch_size, list_sizes
from skip2bench.train.plan import plan_training
from skip2bench.train.ranks.ranks import Ranks

AUTO = {"micro_batch_size": "auto"}


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, [1]), (2, [1, 2]), (8, [1, 2, 3, 4, 8]), (16, [1, 2, 3, 4, 6, 8, 16]), (5, [1, 2, 3, 5])],
)
def test_sizes_are_those_that_make_a_difference(most, sizes):
    assert list_sizes(most) == sizes
    assert len({-(-most // size) for size in sizes}) == len(sizes)


@pytest.mark.parametrize("limit", range(18))
def test_the_largest_that_fits_is_found(limit):
    sizes, tried = list_sizes(16), []
    found = find_largest(sizes, lambda size: tried.append(size) or size <= limit)
    assert found == max((size for size in sizes if size <= limit), default=None)
    assert len(tried) <= 3


@pytest.fixture
def room_for(monkeypatch):
    """Have a CPU with room for the backward pass of so many samples."""

    def set_room(samples: float) -> None:
        def by_estimate(model, objective):
            return lambda size: size <= samples

        monkeypatch.setattr(skip2bench.train.micro_batch, "_by_estimate", by_estimate)

    return set_room


@pytest.mark.parametrize(("room", "size"), [(1, 1), (3.5, 3), (100, 8)])
def test_a_run_takes_it_and_its_losses_stay(train, room_for, capsys, room, size):
    room_for(room)
    summary, _, steps, folder = train(method="lora", lora_dropout=0.0, **AUTO)
    _, _, expected, _ = train("given", method="lora", lora_dropout=0.0)
    assert summary["micro_batch_size"] == size
    assert summary["micro_batch_search_seconds"] > 0
    assert f"micro-batch {size}: the largest of 1, 2, 3, 4, 8 that fits" in capsys.readouterr().err
    assert (steps["loss"] - expected["loss"]).abs().max() < 1e-5
    assert "micro_batch_size: auto" in (folder / "config.yaml").read_text()


def test_what_is_found_is_that_of_the_run_to_its_end(train, room_for, monkeypatch):
    """Memory may be another when it goes on; the micro-batch is not."""
    take_step = skip2bench.train.loop.take_step

    def take(run, number, *arguments):
        if number == 6:
            run.stop.make()
        return take_step(run, number, *arguments)

    settings = {"method": "lora", "lora_dropout": 0.1, **AUTO}
    room_for(4)
    _, _, expected, undisturbed = train("undisturbed", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(skip2bench.train.loop, "take_step", take)
        with pytest.raises(KeyboardInterrupt):
            train(**settings)
    room_for(1)
    summary, _, steps, folder = train(resume=True, **settings)
    assert summary["resumed_at_steps"] == [7]
    assert summary["micro_batch_size"] == 4
    assert steps["loss"].equals(expected["loss"])
    for path in (folder / "final").iterdir():
        assert path.read_bytes() == (undisturbed / "final" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("device", "total_bytes", "is_embedded", "size"),
    [
        ("cpu", None, False, 1),
        ("cpu", None, True, 4),
        ("cuda", 16 * 10**9, False, 2),
        ("cuda", 24 * 10**9, True, 4),
        ("cuda", 80 * 10**9, False, 8),
    ],
)
def test_where_nobody_says_it_is_the_guides_on_a_gpu(
    train, monkeypatch, device, total_bytes, is_embedded, size
):
    properties = SimpleNamespace(total_memory=total_bytes)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    checkpoint = {} if is_embedded else {"checkpoint_dir": train.checkpoint}
    config = TrainConfig(data=str(train.data), device="cpu", global_batch_size=16, **checkpoint)
    plan = replace(plan_training(config), device=torch.device(device))
    assert plan.micro_batch_size == size
    assert plan.describe().micro_batch_size == size
    small = replace(plan, config=replace(config, global_batch_size=1))
    assert small.micro_batch_size == 1


def test_steps_from_the_cache_take_the_whole_batch(train):
    assert train(method="skip2", **AUTO)[0]["micro_batch_size"] == 8


@pytest.mark.parametrize(("free", "size"), [(10**12, 8), (0, 1)])
def test_on_a_cpu_it_follows_free_memory(train, monkeypatch, capsys, free, size):
    """Where nothing seems to fit, the run tries one sample: it is an estimate."""
    monkeypatch.setattr(skip2bench.train.micro_batch, "_free_bytes", lambda: free)
    assert train(method="lora", **AUTO)[0]["micro_batch_size"] == size
    assert ("seems to fit into memory" in capsys.readouterr().err) == (free == 0)


def test_on_a_cpu_memory_for_three_samples_is_a_micro_batch_of_three(train, monkeypatch):
    saved, module = 10**6, skip2bench.train.micro_batch
    monkeypatch.setattr(module, "count_largest_saved", lambda *_: saved)
    # what trains is small beside it: 4 blocks of rank 4
    monkeypatch.setattr(module, "_free_bytes", lambda: int(3.5 * 2 * saved / 0.7))
    assert train(method="lora", **AUTO)[0]["micro_batch_size"] == 3


class FakeObjective:
    """Passes that need a byte a sample, of a device that has only so many."""

    def __init__(self, room: int, weight: torch.nn.Parameter) -> None:
        self.room, self.weight, self.tried = room, weight, []

    def longest(self, n):
        return list(range(n))

    def load(self, ids):
        self.tried.append(len(ids))
        if len(ids) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return SimpleNamespace(loss=lambda: (self.weight * len(ids)).sum())


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The CPU stands for a GPU: all but its memory."""
    empty = torch.empty
    properties = SimpleNamespace(total_memory=100)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device: empty(size, dtype=dtype))
    fabric = Fabric(accelerator="cpu", devices=1)
    return SimpleNamespace(device=SimpleNamespace(type="cuda"), backward=fabric.backward)


@pytest.mark.parametrize("room", [0, 1, 5, 16])
def test_on_a_gpu_sizes_are_tried(as_on_a_gpu, room):
    model = torch.nn.Linear(2, 2)
    objective = FakeObjective(room, model.weight)
    found = find_micro_batch_size(as_on_a_gpu, model, objective, 16, Ranks())
    assert found.micro_batch_size == max([1, *(s for s in list_sizes(16) if s <= room)])
    assert found.fits == (room > 0)
    assert list(found.tried) == objective.tried
    assert model.weight.grad is None


def test_an_error_that_is_not_about_memory_is_not_hidden(as_on_a_gpu):
    objective = FakeObjective(99, torch.nn.Parameter(torch.ones(1)))
    objective.load = lambda ids: (_ for _ in ()).throw(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        find_micro_batch_size(as_on_a_gpu, torch.nn.Linear(2, 2), objective, 16, Ranks())


@pytest.fixture
def compared(tiny_checkpoint, tiny_data, tmp_path, monkeypatch):
    """Compare LoRA and Skip2-LoRA where LoRA has room for 4 samples and `skip` for 8."""
    searched = []

    def find(config, one):
        searched.append(one.name)
        return {"lora": 4, "skip": 8}[one.settings.method.name]

    monkeypatch.setattr(skip2bench.compare.micro_batches, "_find_in_process", find)

    def run(**changes):
        settings = {
            "checkpoint_dir": str(tiny_checkpoint),
            "data": str(tiny_data),
            "methods": "lora,skip",
            "blocks": ["0,1"],
            "seeds": 1,
            "bench": False,
            "global_batch_size": 8,
            "max_steps": 2,
            "lr_warmup_steps": 1,
            "device": "cpu",
            "out_dir": str(tmp_path / "compare"),
            **AUTO,
        }
        return as_written(run_comparison(load_compare_config(settings | changes), ["compare"]))

    run.searched, run.folder = searched, tmp_path / "compare"
    return run


def test_a_comparison_has_one_micro_batch_and_on_request_the_best_of_each(compared, capsys):
    results = compared(best_batch=True)
    labels = [entry["label"] for entry in results["configurations"]]
    assert labels == ["Traditional LoRA", "Skip-LoRA (2 blocks)"]
    assert {entry["micro_batch_size"] for entry in results["configurations"]} == {4}
    best = results["best_batch"]
    assert [(entry["label"], entry["micro_batch_size"]) for entry in best] == [
        ("Traditional LoRA", 4),
        ("Skip-LoRA (2 blocks) (micro-batch 8)", 8),
    ]
    assert [entry["is_baseline"] for entry in best] == [True, False]
    kept = json.loads((compared.folder / "micro_batch_sizes.json").read_text())
    assert kept == dict(zip(compared.searched, (4, 8), strict=True))
    cells = pd.read_csv(compared.folder / "comparison.csv")
    assert (cells["status"] == "ok").all()
    assert "skip-0-1-batch8" in set(cells["configuration"])

    searched = list(compared.searched)
    assert compared(best_batch=True)["statuses"] == results["statuses"]
    assert compared.searched == searched  # what is known is not searched again
    assert "are done already" in capsys.readouterr().err

    for lang, heading in (("en", "Best-batch: each"), ("ja", "ベストバッチ: ")):
        text = render_report(ReportConfig(results=compared.folder.parent, lang=lang))
        table = text.split(heading, 1)[1].split("\n\n")[1].splitlines()
        assert [line.split("|")[3].strip() for line in table[2:]] == ["4", "8"]
        equal = text.split(heading, 1)[0]
        assert "micro-batch 8)" not in equal


@pytest.mark.parametrize("best_batch", [False, True])
def test_who_gets_which_micro_batch(tiny_checkpoint, best_batch):
    values = {"checkpoint_dir": str(tiny_checkpoint), "methods": "lora,skip,skip2", **AUTO}
    values |= {"blocks": ["0,1"], "best_batch": best_batch, "aa": True}
    config = load_compare_config(values)
    configurations = list_configurations(config, load_config(tiny_checkpoint))
    settled = settle(config, configurations, {"lora": 8, "skip-0-1": 4})
    sizes = {one.name: config.cell_config(one.values).micro_batch_size for one in settled}
    shared = {"lora": 4, "lora-aa": 4, "skip-0-1": 4, "skip2-0-1": 4}
    assert sizes == shared | ({"lora-batch8": 8} if best_batch else {})
    assert [one.best_of for one in settled if one.best_of] == ["lora"] * best_batch
    assert settle(config, configurations, {}) == configurations
    misfit = settle(config, configurations, {"lora": 8, "skip-0-1": 0})
    sizes = {one.name: config.cell_config(one.values).micro_batch_size for one in misfit}
    assert set(sizes.values()) == {8}  # it is an oom cell, and takes nothing from the others


def test_a_search_for_which_there_is_no_memory_finds_none(train):
    config = TrainConfig(
        checkpoint_dir=train.checkpoint, data=str(train.data), method="lora", **AUTO
    )
    one = SimpleNamespace(label="LoRA", max_memory_bytes=10**8)  # not enough to load anything
    assert skip2bench.compare.micro_batches._find_in_process(config, one) == 0


def test_a_search_in_a_process_of_its_own_finds_what_fits(train):
    config = TrainConfig(
        checkpoint_dir=train.checkpoint,
        data=str(train.data),
        method="lora",
        global_batch_size=8,
        device="cpu",
        **AUTO,
    )
    one = SimpleNamespace(label="LoRA", max_memory_bytes=None)
    assert skip2bench.compare.micro_batches._find_in_process(config, one) == 8


@pytest.mark.gpu
def test_the_largest_that_fits_on_a_gpu_trains(train):
    summary = train(method="lora", device="cuda", **AUTO)[0]
    assert summary["micro_batch_size"] == 8
    assert summary["status"] == "ok"


@pytest.mark.gpu
def test_a_gpu_with_little_memory_gets_a_smaller_micro_batch(train):
    """A share of the memory is what this process may take; a vocabulary makes logits large."""
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(0.06)
    try:
        summary = train(method="lora", device="cuda", **AUTO)[0]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert summary["peak_memory_bytes"] < 0.06 * total
