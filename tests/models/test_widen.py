"""A widened model says what the adapted one says, on every architecture, alone and generating."""

import pytest
import torch
from families import FAMILIES, adapted_model
from litgpt.generate.base import generate
from litgpt.model import GPT

from skip2bench.errors import Skip2BenchError
from skip2bench.models.skip import SkipGPT, SkipSettings
from skip2bench.models.widen import (
    CONTAMINATION,
    Widening,
    check_can_widen,
    choose_epsilon,
    plan_layout,
    widened_config,
)


def _widen(model, **layout):
    planned = plan_layout(model.config, model.settings, **layout)
    epsilon = choose_epsilon(model, torch.float32, 4.0)
    widened = GPT(widened_config(model.config, planned))
    widened.load_state_dict(dict(Widening(model, planned, epsilon, torch.float32).weights()))
    return widened.eval()


def _tokens():
    torch.manual_seed(1)
    return torch.randint(40, (2, 20))


@pytest.mark.parametrize("share_b", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_adapted_model(family, share_b):
    model = adapted_model(family, share_b=share_b)
    with torch.no_grad():
        wanted, found = model(_tokens()), _widen(model)(_tokens())
        model.adapters.lora_B.zero_()
        unadapted = model(_tokens())
    scale = float(wanted.abs().max())
    assert float((wanted - unadapted).abs().max()) > 0.1 * scale
    assert float((wanted - found).abs().max()) < 1e-4 * scale


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_with_a_key_value_cache_are_the_same(family):
    model = adapted_model(family)
    answers = []
    for each in (model, _widen(model)):
        each.max_seq_length = 24
        each.set_kv_cache(batch_size=1)
        answers.append(generate(each, _tokens()[0, :8], 24, top_k=1).tolist())
    assert answers[0] == answers[1]


@pytest.mark.parametrize("family", ["pythia", "llama-2"])
def test_dead_heads_keep_the_size_of_a_head(family):
    model = adapted_model(family)
    widened = _widen(model, grow_heads=True, multiple_of=8)
    config = widened.config
    assert config.n_head * config.head_size == config.n_embd
    with torch.no_grad():
        torch.testing.assert_close(model(_tokens()), widened(_tokens()), rtol=0, atol=2e-3)


def test_grouped_queries_have_no_dead_heads():
    model = adapted_model("qwen-2.5")
    with pytest.raises(Skip2BenchError, match="ties its heads to each other"):
        plan_layout(model.config, model.settings, grow_heads=True)


def test_one_b_widens_by_one_rank():
    both = [adapted_model("llama-2", share_b=shared) for shared in (False, True)]
    added = [plan_layout(model.config, model.settings).added for model in both]
    assert added == [6, 3]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features": "raw"}, "features raw"),
        ({"target": "logits"}, "target logits"),
    ],
)
def test_what_is_not_exact_is_refused_with_the_remedy(changes, reason):
    config = adapted_model("llama-2").config
    with pytest.raises(Skip2BenchError) as caught:
        check_can_widen(config, SkipSettings(blocks=(0,), r=2, alpha=4, **changes))
    assert reason.split()[-1] in str(caught.value)
    assert "with the defaults" in str(caught.value)


def test_epsilon_is_a_power_of_two_that_larger_adapters_make_smaller():
    model = adapted_model("llama-2")
    small = choose_epsilon(model, torch.float32, 4.0)
    with torch.no_grad():
        model.adapters.lora_A.mul_(64)
    large = choose_epsilon(model, torch.float32, 4.0)
    assert torch.tensor(small).log2() % 1 == 0
    assert large < small


def test_the_added_channels_are_a_bounded_share_of_a_norm():
    model = adapted_model("llama-2")
    layout = plan_layout(model.config, model.settings)
    epsilon = choose_epsilon(model, torch.float32, 4.0)
    widened = _widen(model)
    seen = []
    widened.transformer.ln_f.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        widened(_tokens())
    squares = seen[0].square().sum((0, 1))
    share = squares[layout.start : layout.start + layout.added].sum() / squares.sum()
    assert epsilon < 1
    assert float(share) < 64 * CONTAMINATION[torch.float32]


def test_an_unadapted_model_is_widened_to_itself():
    model = adapted_model("gemma")
    with torch.no_grad():
        model.adapters.lora_B.zero_()
        base = GPT(model.config)
        base.load_state_dict(
            {k: v for k, v in model.state_dict().items() if not k.startswith("adapters")}
        )
        torch.testing.assert_close(
            base.eval()(_tokens()), _widen(model)(_tokens()), rtol=1e-5, atol=1e-4
        )
    assert isinstance(model, SkipGPT)


def test_weights_are_made_where_the_model_lies():
    model = adapted_model("pythia").to("meta")
    planned = plan_layout(model.config, model.settings)
    made = dict(Widening(model, planned, 2.0**-16, torch.float32).weights())
    assert {value.device.type for value in made.values()} == {"meta"}
