"""Rows between host memory and a device: the right ones, in whatever order they are asked for."""

import threading
import weakref
from types import SimpleNamespace

import pytest
import torch
from caches import build, make_layout, make_model

import skip2bench.cache.portions
import skip2bench.train.caches
from skip2bench.cache.arrays import Arrays, MemoryWriter
from skip2bench.cache.skip_cache import BuildOrder, SampleIndex, fill
from skip2bench.cache.staging import Expected, PinnedBuffer, PinnedWriter, Stager
from skip2bench.machine.clock import Clock
from skip2bench.train.caches import RunCaches

CPU = torch.device("cpu")
TENSORS = {
    "features": torch.arange(40.0).view(10, 2, 2),
    "targets": torch.arange(10),
}
PORTIONS = [torch.tensor(rows) for rows in ([3, 1], [0], [9, 9, 2, 4], [5, 6, 7], [8])]


@pytest.fixture
def stager():
    return Stager(Arrays(tensors=TENSORS), CPU)


def assert_rows(taken, rows):
    for name, tensor in TENSORS.items():
        assert torch.equal(taken[name], tensor[rows])


def test_expected_rows_arrive_in_order(stager):
    expected = [stager.expect(rows) for rows in PORTIONS]
    taken = [stager.take(one) for one in expected]
    for one, rows in zip(taken, PORTIONS, strict=True):
        assert_rows(one, rows)  # also after the buffers were used again


def test_rows_that_nobody_expected_are_served_and_disturb_nothing(stager):
    expected = [stager.expect(rows) for rows in PORTIONS[1:]]
    assert_rows(stager.take(Expected(rows=PORTIONS[0])), PORTIONS[0])
    for one in expected:
        assert_rows(stager.take(one), one.rows)
    assert stager._n_started == len(expected)
    assert_rows(stager.take(expected[1]), PORTIONS[2])
    assert stager._n_started == len(expected)


def test_whoever_holds_what_was_expected_does_not_hold_its_rows(stager):
    expected = [stager.expect(rows) for rows in PORTIONS]
    for one in expected[1:]:
        taken = weakref.ref(stager.take(one)["targets"])
        assert taken() is None
    assert all(one.coming is None for one in expected)


def test_what_was_expected_and_did_not_come_is_passed_over(stager):
    expected = [stager.expect(rows) for rows in PORTIONS]
    for one in (expected[3], expected[4], expected[0]):
        assert_rows(stager.take(one), one.rows)


def test_portions_of_the_same_rows_are_told_apart(stager, monkeypatch):
    expected = [stager.expect(rows) for rows in (PORTIONS[0], PORTIONS[1], PORTIONS[0])]
    monkeypatch.setattr(torch, "equal", None)  # nothing waits for rows that are on the device
    for one in (expected[2], expected[0]):
        assert stager.take(one)["targets"].tolist() == [3, 1]
    assert not stager._queue


def test_no_more_than_two_portions_are_made_ready(stager, monkeypatch):
    started, may_go_on = [], threading.Event()
    stage = stager._stage

    def wait(rows, buffer):
        started.append((rows, buffer))
        may_go_on.wait(10)
        return stage(rows, buffer)

    monkeypatch.setattr(stager, "_stage", wait)

    def count_started():
        return sum(one.coming is not None for one in stager._queue)

    expected = [stager.expect(rows) for rows in PORTIONS]
    assert count_started() == 2
    may_go_on.set()
    for done, one in enumerate(expected, start=1):
        assert_rows(stager.take(one), one.rows)
        assert count_started() == min(2, len(PORTIONS) - done)
    assert [id(buffer) for _, buffer in started] == [id(stager._buffers[i % 2]) for i in range(5)]


def test_an_error_of_the_thread_reaches_whoever_takes(stager):
    expected = stager.expect(torch.tensor([99]))
    with pytest.raises((IndexError, RuntimeError), match=r"(?i)index"):
        stager.take(expected)


def test_a_buffer_waits_for_its_copies_before_it_is_used_again():
    class Copied:
        waits = 0

        def synchronize(self):
            self.waits += 1

    buffer, copied = PinnedBuffer(CPU), Copied()
    first = buffer.rows(TENSORS, 4)["features"]
    buffer._copied = copied
    again = buffer.rows(TENSORS, 3)["features"]
    assert copied.waits == 1
    assert again.data_ptr() == first.data_ptr()  # smaller: the same memory
    buffer.rows(TENSORS, 2)
    assert copied.waits == 1
    assert len(buffer.rows(TENSORS, 9)["features"]) == 9


DTYPES = [torch.float32, torch.bfloat16, torch.int8]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_a_gpu_fills_are_those_that_are_filled_in_place(samples, dtype):
    """One batch a sample, so that every buffer is used again."""
    model = make_model()
    layout = make_layout(model, dtype=dtype)
    order = BuildOrder.of(model, samples, [0, 1, 3, 4], CPU)
    order = BuildOrder(prefix=order.prefix, buckets=[[i] for i in order.ids])
    rows = SampleIndex.of(order.ids, samples, layout).rows
    in_place, by_buffers = MemoryWriter(layout, rows, CPU), PinnedWriter(layout, rows, CPU)
    for writer in (in_place, by_buffers):
        fill(writer, model, samples, order, CPU)
    expected = in_place.finish().tensors
    for name, tensor in by_buffers.finish().tensors.items():
        assert torch.equal(tensor, expected[name])
        assert not tensor.is_inference()


@pytest.mark.parametrize("dtype", DTYPES)
def test_encoding_on_another_device_gives_the_same_rows(dtype):
    layout = make_layout(make_model(), dtype=dtype)
    outputs, rows = [torch.randn(9, 16) for _ in layout.blocks], torch.tensor([2, 7, 1])
    near, afar = (MemoryWriter(layout, 3, CPU).reserve(3) for _ in range(2))
    layout.encode(outputs, rows, near)
    layout._encode_afar(outputs, rows, afar)
    for name in set(near) - {"targets"}:
        assert torch.equal(near[name], afar[name])


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_run_through_the_stager_is_the_run_without_it(train, monkeypatch, is_compiled):
    """One that is compiled looks at its first batch again while the second is on its way."""
    monkeypatch.setattr("skip2bench.train.parts.compile_model", lambda model: None)
    settings = {"method": "skip2", "cache_tier": "ram", "compile": is_compiled}
    _, metrics, steps, folder = train("plain", **settings)
    taken, staged = [], []
    take, stage = Stager.take, Stager._stage
    monkeypatch.setattr(Stager, "_stage", lambda *a: staged.append(a[1]) or stage(*a))
    monkeypatch.setattr(Stager, "take", lambda self, one: taken.append(one) or take(self, one))
    monkeypatch.setattr(skip2bench.cache.portions, "is_worth_staging", lambda *_: True)
    _, same_metrics, same_steps, same = train("staged", **settings)
    assert len(taken) > len(steps)
    assert {id(one.rows) for one in taken} == {id(rows) for rows in staged}
    assert steps["loss"].equals(same_steps["loss"])
    assert metrics["val_loss"].equals(same_metrics["val_loss"])
    for path in (folder / "final").glob("*.safetensors"):
        assert path.read_bytes() == (same / "final" / path.name).read_bytes()


@pytest.mark.parametrize(("free", "moves"), [(10_000, True), (100, False)])
def test_a_cache_in_ram_moves_where_there_is_room_by_now(samples, monkeypatch, free, moves):
    """The meta device stands for a GPU: nothing can be computed there."""
    cache, meta = build(make_model(), samples), torch.device("meta")
    monkeypatch.setattr(skip2bench.train.caches, "measure_free", lambda *_: {"device": free})
    attempt = SimpleNamespace(fabric=SimpleNamespace(device=meta))
    builder = SimpleNamespace(plan=SimpleNamespace(may_move=True, tier="ram"))
    caches = RunCaches(attempt, builder, None)
    caches.sides["train"] = cache
    assert 100 < cache.nbytes < 10_000
    clock = Clock(CPU)
    caches._move_to_device(clock)
    assert ("cache_build" in clock.seconds) == moves
    features = caches.sides["train"].arrays.tensors["features"]
    assert features.device.type == ("meta" if moves else "cpu")
    assert caches._tier == ("device" if moves else "ram")
    caches.sides["train"] = cache
    builder.plan.may_move = False  # somebody asked for RAM
    caches._move_to_device(clock)
    assert caches.sides["train"] is cache


@pytest.mark.gpu
@pytest.mark.parametrize("tier", ["device", "ram", "disk"])
def test_every_tier_gives_the_same_losses_on_a_gpu(train, tier):
    expected = train("skip", method="skip", device="cuda", precision="32-true")[2]["loss"]
    summary, _, steps, _ = train(
        method="skip2", device="cuda", precision="32-true", cache_tier=tier
    )
    assert summary["cache_tier"] == tier
    assert (steps["loss"] - expected).abs().max() < 1e-3


@pytest.mark.gpu
def test_pinned_rows_arrive_on_a_gpu():
    device = torch.device("cuda", 0)
    arrays = Arrays(
        tensors={"targets": torch.arange(1_000_000), "features": torch.randn(1_000_000, 8)}
    )
    stager = Stager(arrays, device)
    portions = [torch.randperm(1_000_000)[:300_000] for _ in range(6)]
    expected = [stager.expect(rows) for rows in portions]
    taken = [stager.take(one) for one in expected]
    for rows, one in zip(portions, taken, strict=True):
        assert torch.equal(one["targets"].cpu(), rows)
        assert torch.equal(one["features"].cpu(), arrays.tensors["features"][rows])


@pytest.mark.gpu
def test_a_cache_that_was_too_large_beside_the_backbone_moves_to_the_gpu(train, monkeypatch):
    import skip2bench.train.parts as parts

    def none_on_the_device(*arguments):
        return {name: 0 if name == "device" else 2**40 for name in ("device", "ram", "disk")}

    monkeypatch.setattr(parts, "free_of_rank", none_on_the_device)
    assert train(method="skip2", device="cuda")[0]["cache_tier"] == "device"
