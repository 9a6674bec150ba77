"""What fake tensors count is what real ones save, to the byte."""

import pytest
import torch
from litgpt.config import Config
from torch._subclasses.fake_tensor import FakeTensorMode

from skip2bench.cache.arrays import Layout
from skip2bench.config.methods import METHODS
from skip2bench.config.train import TrainConfig
from skip2bench.models.base import config_by_name
from skip2bench.models.methods import build_model, resolve_method
from skip2bench.projection.saved import (
    count_saved_on_features,
    count_saved_on_tokens,
    make_fake_base,
)

CPU = torch.device("cpu")
MODEL = Config(
    block_size=96,
    n_layer=4,
    n_embd=16,
    n_head=2,
    norm_class_name="RMSNorm",
    mlp_class_name="LLaMAMLP",
    intermediate_size=24,
    bias=False,
    parallel_residual=False,
    rotary_percentage=1.0,
    vocab_size=320,
    padded_vocab_size=320,
)
DTYPES = {"32-true": torch.float32, "bf16-true": torch.bfloat16, "bf16-mixed": torch.float32}


def build(method, precision, target="hidden"):
    wanted = "2" if METHODS[method].is_top else "0,1,3"
    settings = resolve_method(method, wanted, TrainConfig(target=target), MODEL)
    base = make_fake_base(MODEL, CPU, DTYPES[precision])
    return settings, build_model(settings, base, CPU, 0)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "bias"])
def test_on_tokens(method, precision):
    def count():
        settings, model = build(method, precision)
        return count_saved_on_tokens(settings, model, CPU, precision, (3, 20))

    real = count()
    with FakeTensorMode():
        assert count() == real > 0


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("n_logits", [0, 320])
@pytest.mark.parametrize("target", ["hidden", "logits"])
def test_on_cached_features(target, n_logits, precision):
    dtype = DTYPES[precision]
    layout = Layout(
        blocks=(0, 1, 3), n_embd=16, dtype=dtype, compute_dtype=dtype, n_logits=n_logits
    )

    def count():
        _, model = build("skip2", precision, target)
        algebra = "folded" if n_logits else "head"
        return count_saved_on_features(model, layout, algebra, CPU, precision, 37)

    real = count()
    with FakeTensorMode():
        assert count() == real > 0


def test_attention_keeps_no_matrix():
    """LoRA's bytes grow with the tokens, not with their square; a fallback kernel's would."""

    def count(tokens):
        settings, model = build("lora", "32-true")
        return count_saved_on_tokens(settings, model, CPU, "32-true", (1, tokens))

    with FakeTensorMode():
        assert count(96) < 1.01 * 2 * count(48)


def test_mixtures_of_experts_have_no_fixed_shapes():
    config = config_by_name("Mixtral-8x7B-v0.1")
    config.n_layer, config.n_embd, config.intermediate_size = 1, 32, 32
    settings = resolve_method("lora", "", TrainConfig(), config)
    with FakeTensorMode():
        model = build_model(settings, make_fake_base(config, CPU, torch.float32), CPU, 0)
        with pytest.raises(RuntimeError, match="nonzero"):
            count_saved_on_tokens(settings, model, CPU, "32-true", (1, 4))
