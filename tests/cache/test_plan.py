from dataclasses import replace
from pathlib import Path

import pytest
import torch
from caches import CPU, make_model
from litgpt.config import Config

from skip2bench.cache import algebra
from skip2bench.cache import plan as cache_plan
from skip2bench.cache.plan import (
    CacheRoom,
    CacheUse,
    break_even_epoch,
    describe_projection,
    make_layout,
    measure_free,
    plan_cache,
)
from skip2bench.data.samples import Samples
from skip2bench.errors import Skip2BenchError
from skip2bench.io.units import parse_bytes
from skip2bench.machine.hardware import Memory
from skip2bench.models.skip import SkipGPT, SkipSettings

POSITION_BYTES = 3 * 16 * 4 + 8


@pytest.fixture
def use(samples):
    side = Samples(input_ids=samples.input_ids, labels=samples.labels)
    return CacheUse(
        train=side,
        train_ids=[0, 1, 3, 4],
        val=Samples(input_ids=samples.input_ids[:2], labels=samples.labels[:2]),
        steps=10,
        passes=5,
    )


def plan(use, dtype="model", free=None, algebra="auto", **changes):
    free = cache_plan.measure_free(CPU, Path()) if free is None else free
    room = CacheRoom.of(CPU, free, **changes)
    return plan_cache(make_model(), use, room, torch.float32, dtype, algebra)


def give_free(monkeypatch, **free):
    monkeypatch.setattr("skip2bench.cache.plan.measure_free", lambda *_: free)


def test_what_fits_is_cached_whole(use):
    made = plan(use)
    assert made.is_complete
    assert (made.train_ids, made.val_ids) == ([0, 1, 3, 4], [0, 1])
    assert made.nbytes == (28 + 16) * POSITION_BYTES == (28 + 16) * made.layout.position_bytes


def test_the_nearest_tier_with_room_is_taken(use, monkeypatch):
    needed = 44 * POSITION_BYTES
    give_free(monkeypatch, device=needed - 1, ram=needed, disk=10 * needed)
    assert plan(use).tier == "ram"
    give_free(monkeypatch, device=needed, ram=10 * needed, disk=10 * needed)
    assert plan(use).tier == "device"
    give_free(monkeypatch, device=10, ram=needed // 2, disk=needed - 1)
    made = plan(use)
    assert made.tier == "disk"  # the largest, where none holds all
    assert not made.is_complete


def test_a_tier_that_was_asked_for_is_kept_to(use, monkeypatch):
    give_free(monkeypatch, ram=20 * POSITION_BYTES, disk=10**9)
    made = plan(use, tier="ram")
    assert (made.tier, made.recomputed) == ("ram", 3)
    assert plan(use, tier="disk").is_complete


def test_on_a_cpu_its_memory_is_the_device_s(use):
    assert plan(use, tier="device").tier == "ram"


def test_a_cap_takes_the_samples_that_save_most(use):
    """Forward tokens saved for a cached position: 9/4, then 12/8, 12/10, 7/6."""
    made = plan(use, max_bytes=12 * POSITION_BYTES)
    assert made.train_ids == [3, 4]
    assert made.nbytes <= 12 * POSITION_BYTES
    assert made.recomputed == 4
    assert plan(use, max_bytes=0).recomputed == 6


def test_narrow_dtypes_take_less_and_use_the_head(use):
    assert plan(use, dtype="bf16").layout.position_bytes == 3 * 16 * 2 + 8
    made = plan(use, dtype="int8")
    assert made.layout.position_bytes == 3 * (16 + 4) + 8
    assert made.algebra_name == "head"


def test_base_logits_are_cached_only_where_they_fit(use, monkeypatch):
    monkeypatch.setitem(algebra.FLOPS_PER_BYTE, ("cpu", "ram"), 0)
    folded = plan(use)
    assert folded.algebra_name == "folded"
    assert folded.layout.position_bytes == POSITION_BYTES + 40 * 4
    assert plan(use, max_bytes=folded.nbytes - 1).algebra_name == "head"
    assert plan(use, max_bytes=folded.nbytes - 1).is_complete


def test_base_logits_never_take_more_than_lora_keeps(use, monkeypatch):
    """4 blocks, 13 tokens, 16 wide, in float32: 33,280 bytes that LoRA keeps at least."""
    monkeypatch.setitem(algebra.FLOPS_PER_BYTE, ("cpu", "ram"), 0)
    monkeypatch.setattr(cache_plan, "_SMALL_BYTES", 0)
    longest = max(use.train.lengths[i] for i in use.train_ids)
    assert plan(use).nbytes <= 4 * longest * 10 * 16 * 4
    assert plan(use).algebra_name == "folded"
    monkeypatch.setattr(cache_plan, "_LEAST_KEPT", 3)
    assert plan(use).algebra_name == "head"
    assert plan(use, algebra="folded").algebra_name == "folded"


def test_the_algebra_can_be_asked_for(use):
    assert plan(use, algebra="head").layout.n_logits == 0
    assert plan(use, algebra="folded").layout.n_logits == 40
    with pytest.raises(Skip2BenchError, match=r"algebra folded caches .* use --algebra head"):
        plan(use, algebra="folded", max_bytes=44 * POSITION_BYTES)
    with pytest.raises(Skip2BenchError, match="--cache-dtype model"):
        plan(use, algebra="folded", dtype="int8")


def test_free_memory_is_measured(tmp_path):
    free = measure_free(CPU, tmp_path / "not" / "there" / "yet")
    assert list(free) == ["ram", "disk"]
    assert all(nbytes > 0 for nbytes in free.values())


def test_a_container_s_limit_is_respected(tmp_path, monkeypatch):
    memory = Memory(total_bytes=100, available_bytes=10, limit_bytes=20)
    monkeypatch.setattr("skip2bench.cache.plan.read_memory", lambda: memory)
    assert measure_free(CPU, tmp_path)["ram"] == 7


def test_what_is_free_may_be_given(use):
    made = plan(use, free={"ram": 20 * POSITION_BYTES, "disk": 44 * POSITION_BYTES})
    assert (made.tier, made.capacity_bytes) == ("disk", 44 * POSITION_BYTES)
    assert use.count_rows(made.layout) == 44


@pytest.mark.parametrize(
    ("forward", "serve", "epoch"),
    [(10, 0, 2), (10, 4.9, 2), (10, 5, 3), (10, 9, 11), (10, 10, None), (10, 12, None)],
)
def test_break_even(forward, serve, epoch):
    assert break_even_epoch(forward, serve) == epoch
    if epoch is not None:  # by its definition
        assert forward + epoch * serve < epoch * forward
        assert not forward + (epoch - 1) * serve < (epoch - 1) * forward


def test_the_projection_says_when_it_will_not_pay(use):
    made = plan(use)
    assert "paid for itself in epoch 2" in describe_projection(made, 5, 10, 1)
    assert "needs 2 epochs and this run has 1" in describe_projection(made, 1, 10, 1)
    assert "takes longer than computing anew" in describe_projection(made, 5, 10, 20)
    assert "no room for 6 samples: recomputed" in describe_projection(
        plan(use, max_bytes=0), 5, 10, 1
    )


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("0", 0), ("500000", 500_000), ("500MB", 500 * 10**6), ("2GiB", 2 * 2**30), ("1.5 g", 1.5e9)],
)
def test_bytes_are_read(text, nbytes):
    assert parse_bytes("cache_max_bytes", text) == nbytes


@pytest.mark.parametrize("text", ["", "-1", "much", "2 gigs", "1iB", "1e9", "nan"])
def test_what_are_no_bytes_is_refused(text):
    with pytest.raises(Skip2BenchError, match="cache_max_bytes is"):
        parse_bytes("cache_max_bytes", text)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_all_blocks_of_llama_2_projected_take_less_than_four_whole_ones(dtype):
    config = Config.from_name("Llama-2-7b-hf")
    config_of = {"r": 16, "alpha": 16}
    with torch.device("meta"):
        four = SkipGPT(config, SkipSettings(blocks=(28, 29, 30, 31), **config_of))
        every = SkipGPT(config, SkipSettings(blocks=tuple(range(32)), projected=128, **config_of))
    layouts = [make_layout(model, dtype, torch.bfloat16) for model in (four, every)]
    scales = [4 * 4, 33 * 4] if dtype == torch.int8 else [0, 0]
    numbers = [4 * 4096, 4096 + 32 * 128]
    expected = [n * dtype.itemsize + s + 8 for n, s in zip(numbers, scales, strict=True)]
    assert [layout.position_bytes for layout in layouts] == expected
    # four that do not end with the last block need that one too: five
    assert expected[1] < expected[0] < 5 * 4096 * dtype.itemsize


def test_a_projected_cache_is_counted_as_what_it_holds(use):
    whole = SkipSettings(blocks=(0, 2), r=2, alpha=4)
    costs = {}
    for settings in (whole, replace(whole, projected=5)):
        model = SkipGPT(make_model().config, settings)
        room = CacheRoom.of(CPU, {"ram": 10**9})
        made = plan_cache(model, use, room, torch.float32, algebra="head")
        assert made.nbytes == 44 * made.layout.position_bytes
        costs[settings.projected] = made.algebra.costs["head"]
    assert made.layout.position_bytes == (16 + 2 * 5) * 4 + 8
    assert costs[None].bytes_per_position == 3 * 16 * 4
    assert costs[5].bytes_per_position == (16 + 2 * 5) * 4
    # A and its gradient, two adapters of rank 2
    less = 2 * 2 * 2 * 2 * (16 - 5)
    assert costs[None].flops_per_position - costs[5].flops_per_position == less
