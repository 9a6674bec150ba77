import pytest
import torch
from caches import CPU, build, make_model, serve

from skip2bench.cache.arrays import Arrays
from skip2bench.cache.loss import ServedLoss
from skip2bench.cache.skip_cache import BuildOrder, SampleIndex, supervised_rows
from skip2bench.data.samples import IGNORE_INDEX, Samples
from skip2bench.models.loss import token_loss
from skip2bench.models.skip import SkipGPT


@pytest.fixture
def model() -> SkipGPT:
    return make_model()


def plain_loss(model, samples, ids):
    return sum(token_loss(model, samples.input_ids[i][None], samples.labels[i][None]) for i in ids)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [model.adapters.lora_A.grad.clone(), model.adapters.lora_B.grad.clone()]


def test_cache_holds_the_supervised_positions_and_no_others(model, samples):
    cache = build(model, samples)
    assert cache.index.counts.tolist() == samples.supervised_counts == [6, 10, 0, 8, 4]
    features = cache.arrays.tensors["features"]
    assert features.shape == (28, 3, 16)  # blocks 0 and 2, and the last one
    assert cache.nbytes == 28 * 3 * 16 * 4 + 28 * 8 == 28 * cache.layout.position_bytes
    assert not features.is_inference()


@pytest.mark.parametrize("place", ["memory", "files"])
@pytest.mark.parametrize("ids", [[0], [4, 0], [3, 1, 0, 4]])
def test_cached_loss_and_gradients_equal_those_of_the_model(model, samples, ids, place, tmp_path):
    cache = build(model, samples, folder=tmp_path if place == "files" else None)
    model.eval()  # no dropout
    loss = ServedLoss(model, "head")(serve(cache, ids))
    cached = gradients(model, loss)
    plain = plain_loss(model, samples, ids)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(cached, gradients(model, plain))


def test_rows_keep_the_order_asked_for():
    index = SampleIndex(starts=torch.tensor([4, 0, 0, 1]), counts=torch.tensor([2, 1, 0, 3]))
    assert index.find_rows([3, 0, 1]).tolist() == [1, 2, 3, 4, 5, 0]


def test_a_sample_that_is_not_cached_is_a_bug(model, samples):
    cache = build(model, samples, [0, 1])
    assert cache.index.counts.tolist() == [6, 10, 0, 0, 0]
    with pytest.raises(KeyError, match=r"\[3\]"):
        serve(cache, [0, 3])


def test_dropout_acts_anew_each_time_features_are_served(model, samples):
    cache = build(model, samples)
    model.train()
    losses = {ServedLoss(model, "head")(serve(cache, [0, 1])).item() for _ in range(4)}
    assert len(losses) == 4


def test_building_leaves_the_mode_of_the_model(model, samples):
    for mode in (True, False):
        model.train(mode)
        build(model, samples, [0])
        assert model.training is mode


def test_progress_counts_every_sample_once(model, samples):
    seen = []
    build(model, samples, seen=seen)
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_supervised_rows_are_places_in_the_flattened_batch():
    labels = torch.tensor([[IGNORE_INDEX, 5, 6], [7, IGNORE_INDEX, 8]])
    rows, targets = supervised_rows(labels)
    assert rows.tolist() == [0, 1, 4]
    assert targets.tolist() == [5, 6, 8]


@pytest.mark.parametrize("target", ["hidden", "logits"])
@pytest.mark.parametrize("cap", [None, 3.0])
def test_both_algebras_give_the_same_loss_and_gradients(samples, target, cap):
    model = make_model(target, final_logit_softcapping=cap, lm_head_bias=True)
    torch.nn.init.normal_(model.lm_head.bias)
    model.eval()
    cache = build(model, samples, n_logits=40)
    plain = plain_loss(model, samples, [0, 1, 3])
    expected = gradients(model, plain)
    for algebra in ("head", "folded"):
        losses = ServedLoss(model, algebra)
        model.zero_grad()
        total = 0.0
        for ids in ([0], [1, 3]):  # two portions of one step share one fold
            loss = losses(serve(cache, ids))
            loss.backward()
            total += loss.detach()
        losses.finish_step()
        torch.testing.assert_close(total, plain.detach())
        found = [model.adapters.lora_A.grad, model.adapters.lora_B.grad]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_algebras_agree_without_gradients(model, samples):
    cache = build(model, samples, n_logits=40)
    model.eval()
    with torch.no_grad():
        head, folded = (ServedLoss(model, a)(serve(cache, [0, 3])) for a in ("head", "folded"))
    torch.testing.assert_close(head, folded)


@pytest.mark.parametrize(
    ("dtype", "bytes_per_position", "tolerance"),
    [(torch.bfloat16, 3 * 16 * 2 + 8, 4e-3), (torch.int8, 3 * (16 + 4) + 8, 8e-3)],
)
def test_narrow_caches_are_smaller_and_near(model, samples, dtype, bytes_per_position, tolerance):
    exact, narrow = build(model, samples), build(model, samples, dtype=dtype)
    assert narrow.nbytes == 28 * bytes_per_position
    a, b = (serve(cache, [0, 1, 3, 4]).features for cache in (exact, narrow))
    assert b.dtype == torch.float32
    # of each position and block's largest element: what the scale is made from
    error = (a - b).abs() / a.abs().amax(dim=-1, keepdim=True)
    assert 0 < error.max() <= tolerance


def test_files_hold_what_memory_does(model, samples, tmp_path):
    memory, files = (
        build(model, samples, n_logits=40),
        build(model, samples, n_logits=40, folder=tmp_path),
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        "features.bin",
        "targets.bin",
        "base_logits.bin",
    }
    for name, tensor in memory.arrays.tensors.items():
        assert torch.equal(tensor, files.arrays.tensors[name])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == memory.nbytes
    files.prefetch([0, 2, 4])  # sample 2 has no rows


def test_the_model_trains_on_without_its_backbone(model, samples):
    model.eval()
    cache = build(model, samples)
    before = ServedLoss(model, "head")(serve(cache, [0]))
    model.release_backbone()
    assert sum(p.numel() for p in model.transformer.h.parameters()) == 0
    torch.testing.assert_close(ServedLoss(model, "head")(serve(cache, [0])), before)


def test_padding_while_building_stays_below_five_percent(model):
    torch.manual_seed(2)
    ids = [torch.randint(40, (int(n),)) for n in torch.randint(3, 96, (400,))]
    many = Samples(input_ids=ids, labels=ids)
    buckets = BuildOrder.of(model, many, range(400), CPU).buckets
    padded = sum(len(b) * max(many.lengths[i] for i in b) for b in buckets)
    assert sum(many.lengths) <= padded <= sum(many.lengths) * 1.05


def test_arrays_move_between_devices():
    arrays = Arrays(tensors={"targets": torch.arange(3)})
    assert arrays.to(CPU).tensors["targets"].tolist() == [0, 1, 2]
    assert arrays.nbytes == 24
