"""What `bench`, `doctor` and a training run say that one step saves for backward: one figure."""

from dataclasses import replace

import pytest
import torch
from lightning.fabric import Fabric

from skip2bench.bench.run import list_configurations
from skip2bench.bench.workload import build_workload, plan_step
from skip2bench.cache import loss as served_loss
from skip2bench.cache import plan as cache_plan
from skip2bench.cache.arrays import MemoryWriter
from skip2bench.cache.loss import ServedLoss
from skip2bench.cache.portions import PortionSource, count_largest_saved
from skip2bench.cache.skip_cache import SampleIndex, SkipCache
from skip2bench.cache.trunk import TrunkSource
from skip2bench.config.commands import BenchConfig, DoctorConfig
from skip2bench.data.samples import Samples, TokenizedData
from skip2bench.doctor.subject import load_subject
from skip2bench.models.base import load_base
from skip2bench.models.methods import build_model
from skip2bench.projection.methods import project
from skip2bench.train.objective import TokenObjective

CPU, SHAPE = torch.device("cpu"), (4, 24)
FREE = {"ram": 2**33, "disk": 2**34}


@pytest.fixture
def data():
    tokens = torch.randint(320, (8, SHAPE[1]), generator=torch.Generator().manual_seed(1))
    samples = Samples(input_ids=list(tokens), labels=list(tokens))
    return TokenizedData(
        name="even", train=samples, val=samples, dropped=0, cut=0, empty=0, shared=8, sha256=""
    )


def count_in_training(settings, base, precision, data):
    """By the objectives' own portions of a batch, as `loop` does it before the first step."""
    model = build_model(settings, base, CPU, 0).train()
    fabric, ids = Fabric(accelerator="cpu", devices=1, precision=precision), range(SHAPE[0])
    if not settings.method.is_cached:
        portions = TokenObjective(fabric, fabric.setup_module(model), data, SHAPE[0]).portions(ids)
    else:
        plan = plan_step(model, SHAPE, CPU, precision)
        name, device = plan.algebra_name, fabric.device
        index = SampleIndex.of(range(8), data.train, plan.layout)
        arrays = MemoryWriter(plan.layout, index.rows, CPU).finish()
        for tensor in arrays.tensors.values():
            tensor.zero_()
        cache = SkipCache(layout=plan.layout, arrays=arrays, index=index)
        if settings.method.is_top:
            fabric.setup_module(model)  # brings its buffers to the run's dtype
            source = TrunkSource(fabric, model, data.train, cache)
            portions = map(source.load, source.cut(ids, SHAPE[0]))
        else:
            most = served_loss.portion_rows(model, plan.layout, name, device)
            loss = ServedLoss(model, name)
            source = PortionSource(fabric, model, data.train, cache, loss, most)
            portions = source.portions(source.split(ids))
    return count_largest_saved(portions, model.parameters())


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("portion_bytes", [24 * 2**20, 40_000], ids=["whole", "cut"])
@pytest.mark.parametrize(
    ("method", "target", "skip_r", "algebra"),
    [
        ("lora", "hidden", 1, None),
        ("lora-top", "hidden", 1, None),
        ("lora-top-uncached", "hidden", 1, None),
        ("skip", "hidden", 1, None),
        ("skip", "logits", 1, None),
        ("skip2", "hidden", 1, "folded"),
        ("skip2", "hidden", 16, "head"),
        ("skip2", "logits", 1, "folded"),
        ("skip2", "logits", 1, "head"),
    ],
)
def test_one_step_saves_the_same_wherever_it_is_counted(
    tiny_checkpoint,
    tiny_data,
    data,
    monkeypatch,
    method,
    target,
    skip_r,
    algebra,
    portion_bytes,
    precision,
):
    monkeypatch.setitem(served_loss._PORTION_BYTES, "cpu", portion_bytes)
    if algebra is not None:  # the tiny model is too small for both to be chosen by their costs
        choose = cache_plan.choose_algebra
        monkeypatch.setattr(
            cache_plan, "choose_algebra", lambda *args: replace(choose(*args), name=algebra)
        )
    shared = {"model": str(tiny_checkpoint), "methods": (method,), "blocks": ("0,1,3",)}
    shared |= {"target": target, "skip_r": skip_r, "device": "cpu", "lora_dropout": 0.05}
    config = BenchConfig(batch_size=SHAPE[0], seq_length=SHAPE[1], **shared)
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    base = load_base(config.model, CPU, dtype, 0)
    settings = list_configurations(config, base.config)[0][2]
    work = build_workload(settings, base, config, CPU, precision)
    assert work.is_cached == (method in ("skip2", "lora-top"))
    by_bench = work.count_saved_bytes(cached=work.is_cached)

    doctor = DoctorConfig(data=str(tiny_data), **shared)
    subject = load_subject(doctor)
    training = replace(subject.training, global_batch_size=SHAPE[0])
    subject = replace(subject, data=data, training=training)
    (projected,) = project(doctor, subject, CPU, precision, SHAPE[0], FREE).methods
    assert by_bench == projected.saved_for_backward_bytes
    assert by_bench == count_in_training(settings, base, precision, data)
