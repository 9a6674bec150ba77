import pytest
import torch
from conftest import TINY
from litgpt.config import Config

from skip2bench.cache import SkipCache, build_cache
from skip2bench.data import IGNORE_INDEX, Samples
from skip2bench.loss import feature_loss, token_loss
from skip2bench.skip2 import SkipGPT, SkipSettings

CPU = torch.device("cpu")


@pytest.fixture
def model() -> SkipGPT:
    torch.manual_seed(0)
    model = SkipGPT(
        Config(**TINY, vocab_size=40, padded_vocab_size=40),
        SkipSettings(blocks=(0, 2), r=2, alpha=4, dropout=0.3),
    )
    model.requires_grad_(False)
    model.adapters.requires_grad_(True)
    torch.nn.init.normal_(model.adapters.lora_B)
    return model


@pytest.fixture
def samples() -> Samples:
    torch.manual_seed(1)
    ids = [torch.randint(40, (n,)) for n in (7, 12, 3, 12, 9)]
    labels = [i.clone() for i in ids]
    for number, label in enumerate(labels):
        label[: number + 1] = IGNORE_INDEX  # prompts of different lengths
    return Samples(input_ids=ids, labels=labels)


def test_cache_holds_the_supervised_positions_and_no_others(model, samples):
    cache = build_cache(model, samples, range(5), CPU)
    assert cache.counts.tolist() == samples.supervised_counts == [6, 10, 0, 8, 4]
    assert cache.features.shape == (28, 3, 16)  # blocks 0 and 2, and the last one
    assert cache.nbytes == 28 * 3 * 16 * 4 + 28 * 8
    assert not cache.features.is_inference()


@pytest.mark.parametrize("ids", [[0], [4, 0], [3, 1, 0, 4]])
def test_cached_loss_and_gradients_equal_those_of_the_model(model, samples, ids):
    cache = build_cache(model, samples, range(5), CPU)
    model.eval()  # no dropout
    loss = feature_loss(model, *cache.gather(ids))
    loss.backward()
    gradients = [model.adapters.lora_A.grad.clone(), model.adapters.lora_B.grad.clone()]
    model.zero_grad()
    plain = sum(token_loss(model, samples.input_ids[i][None], samples.labels[i][None]) for i in ids)
    plain.backward()
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(gradients, [model.adapters.lora_A.grad, model.adapters.lora_B.grad])


def test_gather_keeps_the_order_asked_for():
    features = torch.arange(6.0)[:, None, None]
    cache = SkipCache(
        features=features,
        targets=torch.arange(6),
        starts=torch.tensor([4, 0, 0, 1]),
        counts=torch.tensor([2, 1, 0, 3]),
    )
    picked, targets = cache.gather([3, 0, 1])
    assert targets.tolist() == [1, 2, 3, 4, 5, 0]
    assert picked.flatten().tolist() == [1, 2, 3, 4, 5, 0]


def test_a_sample_that_is_not_cached_is_a_bug(model, samples):
    cache = build_cache(model, samples, [0, 1], CPU)
    assert cache.counts.tolist() == [6, 10, 0, 0, 0]
    with pytest.raises(KeyError, match=r"\[3\]"):
        cache.gather([0, 3])


def test_dropout_acts_anew_each_time_features_are_served(model, samples):
    cache = build_cache(model, samples, range(5), CPU)
    model.train()
    losses = {feature_loss(model, *cache.gather([0, 1])).item() for _ in range(4)}
    assert len(losses) == 4


def test_building_leaves_the_mode_of_the_model(model, samples):
    for mode in (True, False):
        model.train(mode)
        build_cache(model, samples, [0], CPU)
        assert model.training is mode


def test_progress_counts_real_tokens(model, samples):
    seen = []
    build_cache(model, samples, range(5), CPU, seen.append)
    assert sum(seen) == sum(samples.lengths) == 43
