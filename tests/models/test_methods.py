import pytest
import torch
from lightning.fabric import Fabric
from litgpt.config import Config
from litgpt.model import GPT

from skip2bench.bench.workload import count_workload_flops
from skip2bench.config.commands import BenchConfig
from skip2bench.config.methods import METHODS
from skip2bench.errors import Skip2BenchError
from skip2bench.models.base import Base, config_by_name, load_checkpoint, make_random
from skip2bench.models.methods import (
    build_empty_model,
    build_model,
    count_parameters,
    has_biases,
    resolve_method,
)

LLAMA = "Llama-2-7b-hf"
CPU = torch.device("cpu")


def settings_for(method: str, blocks: str, model: Config, **changes):
    """Settings; where a method takes a number of blocks, as many as are listed."""
    if METHODS[method].is_top:
        blocks = str(len(blocks.split(","))) if blocks else ""
    return resolve_method(method, blocks, BenchConfig(**changes), model)


def test_known_parameter_counts_of_llama_2_7b():
    config = config_by_name(LLAMA)
    with torch.device("meta"):
        assert count_parameters(GPT(config))[0] == 6_738_415_616
        counts = {
            (method, blocks): count_parameters(
                build_empty_model(settings_for(method, blocks, config), config)
            )[1]
            for method, blocks in [
                ("lora", ""),
                ("skip", "0"),
                ("skip2", "fast"),
                ("skip2", "balanced"),
            ]
        }
    assert counts == {
        ("lora", ""): 2_097_152,
        ("skip", "0"): 131_072,
        ("skip2", "fast"): 524_288,
        ("skip2", "balanced"): 786_432,
    }
    assert counts["skip2", "fast"] / counts["lora", ""] == 0.25
    assert counts["skip2", "balanced"] / counts["lora", ""] == 0.375


def test_known_flops_of_llama_2_7b():
    """4 blocks, 512 tokens: backward 1.9 % of LoRA's, a whole step 50.7 %, a cached one 1.9 %."""
    config = config_by_name(LLAMA)
    lora, skip = (
        count_workload_flops(
            settings_for(method, "fast", config), config, (1, 512), CPU, "bf16-true", "head"
        )
        for method in ("lora", "skip2")
    )
    lora_step = lora["train_forward_flops"] + lora["backward_flops"]
    assert skip["backward_flops"] / lora["backward_flops"] == pytest.approx(0.019, abs=0.0005)
    assert (skip["train_forward_flops"] + skip["backward_flops"]) / lora_step == pytest.approx(
        0.507, abs=0.001
    )
    assert (
        skip["cached_forward_flops"] + skip["cached_backward_flops"]
    ) / lora_step == pytest.approx(0.019, abs=0.0005)
    # by hand: the head's product with 512 x 4096, once, and nothing of the blocks
    head = 2 * 511 * 4096 * 32000
    assert head < skip["backward_flops"] < 1.02 * head * 512 / 511


BLOCK_LINEARS = ("attn.qkv", "attn.proj", "mlp.fc", "mlp.fc_1", "mlp.fc_2", "mlp.proj")


def expected_names(method: str, names: list[str]) -> set[str]:
    """What the paper says each method trains, spelt out by parameter names."""
    lora_layers = {
        "lora": ("attn.qkv",),
        "lora-all": BLOCK_LINEARS,
        "full+lora": BLOCK_LINEARS,
        "lora-last": ("lm_head",),
        "lora-top": ("attn.qkv",),
        "lora-top-uncached": ("attn.qkv",),
        "skip": ("adapters",),
        "skip2": ("adapters",),
    }.get(method, ())
    adapters = {
        name
        for name in names
        if name.endswith((".lora_A", ".lora_B"))
        and any(f"{layer}." in f"{name}." for layer in lora_layers)
    }
    own = {name for name in names if "lora_" not in name}
    weights = {
        "full": own,
        "full+lora": own,
        "last": own & {"lm_head.weight", "lm_head.bias"},
        "bias": {name for name in own if name.endswith(".bias")},
    }.get(method, set())
    return adapters | weights


@pytest.mark.parametrize(
    ("method", "architecture"),
    [
        (method, architecture)
        for method in METHODS
        for architecture in ("tiny", "pythia-14m")
        if (method, architecture) != ("bias", "tiny")  # the tiny model has no biases
    ],
)
def test_exactly_what_a_method_trains(method, architecture, tiny_checkpoint):
    """On a model without biases, and on one with biases and LayerNorm."""
    if architecture == "tiny":
        base = load_checkpoint(tiny_checkpoint, CPU, torch.float32)
    else:
        base = make_random(architecture, CPU, torch.float32, seed=1)
    model = build_model(settings_for(method, "0,2", base.config), base, CPU, seed=1)
    names = [name for name, _ in model.named_parameters()]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == expected_names(method, names)
    assert trained
    if method in ("lora-all", "full+lora"):
        layers = 4 if architecture == "pythia-14m" else 5  # GptNeoxMLP has fc and proj
        assert sum("lora_A" in name for name in trained) == layers * base.config.n_layer
    if METHODS[method].is_top:
        last = [base.config.n_layer - 2, base.config.n_layer - 1]
        assert sorted({int(name.split(".")[2]) for name in trained}) == last
    if method == "lora":  # query and value alone: two of the three parts of A and B
        a = model.transformer.h[0].attn.qkv.lora_A
        assert a.shape[0] == 2 * 4


def test_a_model_without_biases_cannot_train_them(tiny_checkpoint):
    base = load_checkpoint(tiny_checkpoint, CPU, torch.float32)
    with pytest.raises(
        Skip2BenchError, match="method 'bias' trains biases, and 'tiny' has none; choose another"
    ):
        settings_for("bias", "", base.config)


@pytest.mark.parametrize(
    "name", ["pythia-14m", "Llama-2-7b-hf", "Qwen2.5-0.5B", "phi-2", "OLMo-1B-hf"]
)
def test_biases_are_found_where_a_model_has_them(name):
    config = config_by_name(name)
    with torch.device("meta"):
        names = [name for name, _ in GPT(config).named_parameters()]
    assert has_biases(config) == any(name.endswith("bias") for name in names)


@pytest.mark.parametrize("method", ["lora", "skip2", "lora-top"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_fills_a_cache_rotates_as_a_step_does(method, dtype, tiny_checkpoint):
    base = load_checkpoint(tiny_checkpoint, CPU, dtype)
    blocks = "0,2" if method == "skip2" else ""
    model = build_model(settings_for(method, blocks, base.config), base, CPU, seed=1)
    precision = "32-true" if dtype == torch.float32 else "bf16-true"
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    before = model.cos.clone()
    fabric.setup_module(model)  # as where a step runs through the whole model
    assert torch.equal(model.cos, before)
    assert model.cos.dtype == dtype


@pytest.mark.parametrize("method", ["full", "last", "full+lora"])
def test_weights_that_train_are_copies(method, tiny_checkpoint):
    base = load_checkpoint(tiny_checkpoint, CPU, torch.float32)
    model = build_model(settings_for(method, "", base.config), base, CPU, seed=1)
    before = base.weights["lm_head.weight"].clone()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 1
    assert torch.equal(base.weights["lm_head.weight"], before)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_at_the_base_model(method):
    base = make_random("pythia-14m", CPU, torch.float32, seed=1)
    model = build_model(settings_for(method, "0,2", base.config), base, CPU, seed=1).eval()
    plain = GPT(base.config).eval()
    plain.load_state_dict(base.weights)
    tokens = torch.randint(1000, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), plain(tokens))


def test_models_share_the_weights_of_their_base(tiny_checkpoint):
    """Every frozen tensor of every configuration is the base's own: one backbone of memory."""
    base = load_checkpoint(tiny_checkpoint, torch.device("cpu"), torch.float32)
    addresses = {weight.data_ptr() for weight in base.weights.values()}
    for method in ("lora", "lora-all", "skip", "skip2"):
        model = build_model(
            settings_for(method, "all", base.config), base, torch.device("cpu"), seed=1
        )
        frozen = {p.data_ptr() for p in model.parameters() if not p.requires_grad}
        assert frozen == addresses


def test_adapters_depend_on_the_seed_alone(tiny_checkpoint):
    base = load_checkpoint(tiny_checkpoint, torch.device("cpu"), torch.float32)
    settings = settings_for("skip", "0,1", base.config)
    cpu = torch.device("cpu")
    torch.manual_seed(123)
    first = build_model(settings, base, cpu, seed=1).adapters.lora_A
    torch.manual_seed(456)
    assert torch.equal(first, build_model(settings, base, cpu, seed=1).adapters.lora_A)
    assert not torch.equal(first, build_model(settings, base, cpu, seed=2).adapters.lora_A)


def test_random_weights_are_made_in_the_asked_dtype_and_work():
    base = make_random("pythia-14m", torch.device("cpu"), torch.bfloat16, seed=1)
    assert {w.dtype for w in base.weights.values()} == {torch.bfloat16}
    model = build_model(settings_for("lora", "", base.config), base, torch.device("cpu"), seed=1)
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]]))).all()


@pytest.mark.parametrize(
    ("blocks", "label", "slug"),
    [
        ("0", "Skip2-LoRA (1 block)", "skip2-0"),
        ("0,1,2", "Skip2-LoRA (3 blocks)", "skip2-0-2"),
        ("0,3", "Skip2-LoRA (2 blocks)", "skip2-0_3"),
        ("fast", "Skip2-LoRA (4 blocks)", "skip2-0-3"),
    ],
)
def test_names(blocks, label, slug):
    settings = settings_for("skip2", blocks, config_by_name("pythia-14m"))
    assert (settings.label, settings.slug) == (label, slug)


def test_weights_that_do_not_fit_are_an_error(tiny_checkpoint):
    base = load_checkpoint(tiny_checkpoint, torch.device("cpu"), torch.float32)
    settings, cpu = settings_for("skip", "0", base.config), torch.device("cpu")
    weights = dict(base.weights)
    del weights["lm_head.weight"]
    with pytest.raises(
        Skip2BenchError, match=r"do not fit its model_config.yaml: see lm_head.weight"
    ):
        build_model(
            settings, Base(name="x", config=base.config, weights=weights, folder=None), cpu, seed=1
        )
    weights["lm_head.weight"] = torch.zeros(3, 3)
    with pytest.raises(Skip2BenchError, match="size mismatch"):
        build_model(
            settings, Base(name="x", config=base.config, weights=weights, folder=None), cpu, seed=1
        )
