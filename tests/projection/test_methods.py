import json
from dataclasses import replace

import pytest
import torch

from skip2bench.config.commands import DoctorConfig
from skip2bench.config.train import TrainConfig
from skip2bench.doctor.subject import load_subject
from skip2bench.errors import Skip2BenchError
from skip2bench.models.base import load_checkpoint
from skip2bench.models.methods import build_model, resolve_method
from skip2bench.projection.methods import project

CPU = torch.device("cpu")
GIB = 2**30
FREE = {"ram": 8 * GIB, "disk": 16 * GIB}


@pytest.fixture
def config(tiny_checkpoint, tiny_data):
    return DoctorConfig(model=str(tiny_checkpoint), data=str(tiny_data), blocks=("0,1,3",))


@pytest.fixture
def subject(config):
    return load_subject(config)


def run(config, subject, free=FREE, precision="32-true"):
    return project(config, subject, CPU, precision, 3, free)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_the_cache_is_that_of_a_real_run(train, config, subject, precision):
    summary, *_ = train(method="skip2", max_steps=None, epochs=5, precision=precision)
    skip2 = run(config, subject, precision=precision).methods[1]
    chosen = next(cache for cache in skip2.caches if cache.is_automatic)
    assert chosen.needed_bytes == summary["cache_bytes"] + summary["val_cache_bytes"]
    assert chosen.tier == summary["cache_tier"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_bytes_saved_by_skip2_are_those_of_a_real_run(train, config, subject, precision):
    """All samples in one global batch, so that the largest one is known."""
    summary, *_ = train(
        method="skip2", global_batch_size=64, max_steps=None, precision=precision, lora_dropout=0.05
    )
    subject = replace(subject, training=replace(subject.training, global_batch_size=64))
    skip2 = run(config, subject, precision=precision).methods[1]
    assert skip2.saved_for_backward_bytes == summary["saved_for_backward_bytes"]


def test_bytes_saved_by_lora_are_near_those_of_a_real_run(train, config, subject):
    """The projection fills every micro-batch with the longest sample; the run keeps the places of
    its supervised positions too."""
    summary, *_ = train(
        method="lora", global_batch_size=64, max_steps=None, lora_dropout=0.05, mask_prompt=False
    )
    lora = run(config, subject).methods[0]
    assert lora.saved_for_backward_bytes == pytest.approx(
        summary["saved_for_backward_bytes"], rel=0.02
    )


@pytest.mark.parametrize("method", ["lora", "skip", "full", "last"])
def test_weights_gradients_and_moments_are_those_of_a_real_step(
    method, config, subject, tiny_checkpoint
):
    settings = resolve_method(method, "0,1,3", TrainConfig(), subject.model_config)
    model = build_model(settings, load_checkpoint(tiny_checkpoint, CPU, torch.float32), CPU, 0)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    moments = [
        tensor for state in optimizer.state.values() for tensor in state.values() if tensor.ndim
    ]
    found = run(replace(config, methods=(method,)), subject).methods[0]
    assert found.weights_bytes == sum(p.nbytes for p in model.parameters())
    assert found.optimizer_bytes == sum(t.nbytes for t in [*moments, *(p.grad for p in trained)])
    assert found.trainable_parameters == sum(p.numel() for p in trained)


def test_known_numbers_of_llama_2_7b(subject):
    """By name: no weights, no checkpoint; tokens are the embedded model's, and said to be."""
    config = DoctorConfig(model="Llama-2-7b-hf", data=subject.training.data, blocks=("fast",))
    llama = load_subject(config)
    found = project(config, llama, CPU, "bf16-true", 2, {"ram": 64 * GIB, "disk": None})
    lora, skip2 = found.methods
    assert found.total_parameters == 6_738_415_616
    assert found.weights_bytes == 2 * 6_738_415_616
    assert (lora.trainable_parameters, skip2.trainable_parameters) == (2_097_152, 524_288)
    assert lora.optimizer_bytes == 3 * 2 * 2_097_152
    assert found.tokens_are_estimated
    ram, disk = skip2.caches
    # five stored blocks of 4,096 in two bytes, an eight-byte target, perhaps 32,000 base logits
    assert ram.position_bytes - (5 * 4096 * 2 + 8) in (0, 32_000 * 2)
    assert ram.usable_bytes == int(0.7 * (64 * GIB - found.weights_bytes))
    assert disk.usable_bytes is None
    assert disk.recomputed_samples == 0


def test_a_projected_cache_of_llama_2_7b_is_counted_as_what_it_holds(subject):
    """All blocks projected to 128 take less than four whole ones."""
    config = DoctorConfig(
        model="Llama-2-7b-hf",
        data=subject.training.data,
        methods=("skip2",),
        blocks=("all",),
        cache_project=128,
    )
    llama = load_subject(config)
    found = project(config, llama, CPU, "bf16-true", 2, {"ram": 64 * GIB}).methods[0]
    assert found.label == "Skip2-LoRA (32 blocks, projected to 128)"
    assert found.trainable_parameters == 32 * 16 * (128 + 4096)
    own = found.caches[0].position_bytes
    assert own - ((4096 + 32 * 128) * 2 + 8) in (0, 32_000 * 2)
    assert (4096 + 32 * 128) * 2 < 4 * 4096 * 2
    assert found.saved_for_backward_bytes > 0


def test_a_cache_without_room_says_what_is_recomputed(config, subject):
    skip2 = run(config, subject, free={"ram": 0, "disk": 16 * GIB}).methods[1]
    ram, disk = skip2.caches
    assert (ram.usable_bytes, ram.recomputed_samples) == (0, 40)
    assert (disk.is_automatic, ram.is_automatic) == (True, False)
    assert disk.recomputed_samples == 0


def test_every_skip_method_comes_with_every_choice_of_blocks(config, subject):
    config = replace(config, methods=("skip2", "lora", "skip"), blocks=("0", "all", "0"))
    labels = [method.label for method in run(config, subject).methods]
    assert labels == [
        "Traditional LoRA",
        *("Skip-LoRA (1 block)", "Skip-LoRA (4 blocks)"),
        *("Skip2-LoRA (1 block)", "Skip2-LoRA (4 blocks)"),
    ]


def test_samples_are_cut_as_training_cuts_them(config):
    assert load_subject(replace(config, max_seq_length=70)).longest_tokens <= 70
    assert load_subject(config).has_tokenizer


def test_data_that_cannot_be_fetched_is_unknown_and_no_error(config, monkeypatch):
    import litgpt.data

    def fail(_self):
        raise ConnectionError

    monkeypatch.setattr(litgpt.data.Alpaca2k, "prepare_data", fail)
    subject = load_subject(replace(config, data="alpaca2k"))
    assert subject.data is None
    assert "could not be downloaded (ConnectionError)" in str(subject.data_problem)
    found = run(config, subject)
    assert found.longest_tokens == 96  # the context
    skip2 = found.methods[1]
    assert skip2.caches == ()
    assert skip2.saved_for_backward_bytes
    assert json.dumps(found.train_samples) == "null"


@pytest.mark.parametrize("data", ["none.json", "nonsense"])
def test_data_that_is_a_mistake_is_an_error(config, data):
    with pytest.raises(Skip2BenchError, match=f"'{data}'"):
        load_subject(replace(config, data=data))
