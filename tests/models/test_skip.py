from dataclasses import replace

import pytest
import torch
from litgpt.config import Config
from litgpt.generate.base import generate
from litgpt.lora import GPT as LoraGPT
from litgpt.lora import Config as LoraConfig
from litgpt.lora import mark_only_lora_as_trainable
from litgpt.model import GPT
from tiny import ARCHITECTURES, TINY, small_config

from skip2bench.errors import Skip2BenchError
from skip2bench.models.skip import SkipAdapters, SkipGPT, SkipSettings, merge_skip_adapter

SETTINGS = SkipSettings(blocks=(0, 2), r=2, alpha=4)


def build_pair(config: Config, settings: SkipSettings) -> tuple[GPT, SkipGPT]:
    torch.manual_seed(1)
    base, skip = GPT(config), SkipGPT(config, settings)
    skip.load_state_dict(base.state_dict(), strict=False)
    return base.eval(), skip.eval()


def randomise_adapters(model: SkipGPT) -> None:
    torch.manual_seed(2)
    torch.nn.init.normal_(model.adapters.lora_B)
    if model.adapters.relative_sizes is not None:
        torch.nn.init.uniform_(model.adapters.relative_sizes, 0.2, 3.0)


FORMS = [
    {"target": target, "features": features, "share_b": share_b}
    for target in ("hidden", "logits")
    for features in ("scaled", "raw")
    for share_b in (False, True)
]
"""Of the adapters, as settings."""


def size_of(hidden, config):
    """The final norm's own denominator."""
    if config.norm_class_name == "LayerNorm":
        hidden = hidden - hidden.mean(-1, keepdim=True)
    return (hidden.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fresh_adapters_add_exactly_nothing(architecture, form):
    base, skip = build_pair(small_config(architecture), replace(SETTINGS, **form))
    tokens = torch.randint(40, (2, 9))
    assert torch.equal(base(tokens), skip(tokens))


def test_fresh_lora_equals_the_base_model():
    torch.manual_seed(1)
    base = GPT(Config(**TINY, vocab_size=40, padded_vocab_size=40))
    config = LoraConfig(
        **TINY, vocab_size=40, padded_vocab_size=40, lora_r=2, lora_query=True, lora_value=True
    )
    lora = LoraGPT(config)
    lora.load_state_dict(base.state_dict(), strict=False)
    tokens = torch.randint(40, (2, 9))
    torch.testing.assert_close(base(tokens), lora(tokens), rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forward_is_the_published_formula(architecture, form):
    """Against a plain loop over the blocks, written out here."""
    config, target = small_config(architecture), form["target"]
    settings = replace(SETTINGS, **form)
    base, skip = build_pair(config, settings)
    randomise_adapters(skip)
    tokens = torch.randint(40, (2, 9))
    outputs = {}
    for i, block in enumerate(base.transformer.h):
        block.register_forward_hook(lambda _m, _a, out, i=i: outputs.update({i: out}))
    base(tokens)
    A, B, s = skip.adapters.lora_A, skip.adapters.lora_B, settings.scaling
    if form["features"] == "raw":
        x = [outputs[k] for k in SETTINGS.blocks]
    else:
        size, rho = size_of(outputs[config.n_layer - 1], config), skip.adapters.relative_sizes
        x = [outputs[k] / size / rho[n] for n, k in enumerate(SETTINGS.blocks)]
    own_B = [B[0 if form["share_b"] else n] for n in range(len(x))]
    update = s * sum(x[n] @ A[n].T @ own_B[n].T for n in range(len(x)))
    hidden = base.transformer.ln_f(outputs[config.n_layer - 1])
    expected = (
        base.lm_head(hidden + update) if target == "hidden" else base.lm_head(hidden) + update
    )
    if config.final_logit_softcapping is not None:
        cap = config.final_logit_softcapping
        expected = torch.tanh(expected / cap) * cap
    torch.testing.assert_close(skip(tokens), expected)
    assert not torch.allclose(skip(tokens), base(tokens))


@pytest.mark.parametrize("target", ["hidden", "logits"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_reach_the_adapters_and_nothing_else(architecture, target):
    _, skip = build_pair(small_config(architecture), replace(SETTINGS, target=target, dropout=0.1))
    mark_only_lora_as_trainable(skip)
    skip.train()
    in_graph = []
    for block in skip.transformer.h:
        block.register_forward_hook(lambda _m, _a, out: in_graph.append(out.requires_grad))
    skip(torch.randint(40, (2, 9))).square().mean().backward()
    assert in_graph == [False] * 3
    with_gradient = {name for name, p in skip.named_parameters() if p.grad is not None}
    assert with_gradient == {"adapters.lora_A", "adapters.lora_B"}
    assert skip.adapters.lora_B.grad.abs().sum() > 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_give_the_same_logits(architecture, form):
    _, skip = build_pair(small_config(architecture), replace(SETTINGS, **form))
    randomise_adapters(skip)
    tokens = torch.randint(40, (2, 9))
    features = torch.stack([h.flatten(0, 1) for h in skip.compute_features(tokens)], dim=1)
    assert features.shape == (18, 2, 16)  # blocks 0 and 2, and 2 is the last one
    torch.testing.assert_close(skip.forward_features(features), skip(tokens).flatten(0, 1))


def test_computing_features_leaves_the_model_as_it_was():
    base, skip = build_pair(small_config("llama-2"), SETTINGS)
    tokens = torch.randint(40, (2, 9))
    skip.compute_features(tokens)
    assert torch.equal(base(tokens), skip(tokens))


@pytest.mark.parametrize("target", ["hidden", "logits"])
def test_chunked_head_gives_the_same_logits(target):
    _, skip = build_pair(small_config("llama-2"), replace(SETTINGS, target=target))
    randomise_adapters(skip)
    tokens = torch.randint(40, (2, 9))
    for _ in range(2):  # twice: the count of positions starts anew
        chunks = skip(tokens, lm_head_chunk_size=4)
        assert [c.size(1) for c in chunks] == [4, 4, 1]
        torch.testing.assert_close(torch.cat(chunks, dim=1), skip(tokens))


@pytest.mark.parametrize("target", ["hidden", "logits"])
def test_generation_with_a_kv_cache_follows_the_full_forward(target):
    _, skip = build_pair(small_config("llama-2"), replace(SETTINGS, target=target))
    randomise_adapters(skip)
    prompt = torch.randint(40, (5,))
    skip.set_kv_cache(batch_size=1)
    generated = generate(skip, prompt, max_returned_tokens=12, temperature=0.0)
    skip.clear_kv_cache()
    tokens = prompt
    for _ in range(7):
        tokens = torch.cat([tokens, skip(tokens[None])[0, -1].argmax()[None]])
    assert generated.tolist() == tokens.tolist()


def test_dropout_acts_on_each_blocks_output_apart():
    torch.manual_seed(0)
    adapters = SkipAdapters(
        SkipSettings(blocks=(0, 1), r=1, alpha=1, dropout=0.5, features="raw"), n_embd=8, d_out=8
    )
    torch.nn.init.ones_(adapters.lora_A)
    torch.nn.init.ones_(adapters.lora_B)
    ones = [torch.ones(400, 8)] * 2
    sums = adapters(ones, None)[:, 0].detach()
    assert sums.mean() == pytest.approx(16, rel=0.05)  # inverted dropout keeps the mean
    assert sums.unique().numel() > 8
    adapters.eval()
    assert adapters(ones, None)[:, 0].unique().tolist() == [16]


@pytest.mark.parametrize("blocks", [(3,), (0, 7), (-1,), ()])
def test_blocks_that_do_not_exist_are_refused(blocks):
    with pytest.raises(Skip2BenchError, match="the model has blocks 0 to 2"):
        SkipGPT(small_config("llama-2"), replace(SETTINGS, blocks=blocks))


def test_merging_is_refused_with_the_reason():
    with pytest.raises(
        Skip2BenchError, match="cannot be merged into weights of the same shapes: it adds functions"
    ):
        merge_skip_adapter()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_run_blocks_gives_what_enters_the_final_norm(architecture):
    """Not what LitGPT's forward would return: a cap of the logits would be on it."""
    _, model = build_pair(small_config(architecture), SETTINGS)
    model.eval()
    tokens = torch.arange(6)[None]
    assert torch.equal(model.run_blocks(tokens), model.compute_features(tokens)[-1])
    assert model._outputs == {}
