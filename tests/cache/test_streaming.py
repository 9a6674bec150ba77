"""The backbone one block at a time gives what the whole backbone gives, bit for bit."""

import weakref

import pytest
import torch
from caches import CPU, PREFIX, make_samples
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.utils import save_config
from tiny import ARCHITECTURES, TINY, small_config

import skip2bench.cache.streaming as streaming
from skip2bench.cache.arrays import Layout, MemoryWriter
from skip2bench.cache.skip_cache import BuildOrder, SampleIndex, fill
from skip2bench.cache.streaming import StreamedBackbone, Task, load_without_blocks
from skip2bench.config.train import TrainConfig
from skip2bench.data.samples import IGNORE_INDEX, Samples
from skip2bench.models.base import load_checkpoint, load_config
from skip2bench.models.methods import build_model, count_parameters, resolve_method

SIZE = {"vocab_size": 40, "padded_vocab_size": 40}
NEOX = {
    "parallel_residual": True,
    "norm_class_name": "LayerNorm",
    "mlp_class_name": "GptNeoxMLP",
    "bias": True,
    "rotary_percentage": 0.5,
}
GEMMA = {
    "scale_embeddings": True,
    "mlp_class_name": "GemmaMLP",
    "post_attention_norm": True,
    "post_mlp_norm": True,
    "norm_qk": True,
    "final_logit_softcapping": 3.0,
    "attention_logit_softcapping": 5.0,
    "sliding_window_size": 4,
    "sliding_window_indices": [1, 0, 1, 0],
    "rope_local_base_freq": 100.0,
    "rope_indices": [1, 0, 1, 0],
}
OLMO = {"norm_1": False, "norm_2": False, "post_attention_norm": True, "post_mlp_norm": True}
MIXTURE = {"mlp_class_name": "LLaMAMoE", "n_expert": 4, "n_expert_per_token": 2}


@pytest.fixture
def make_checkpoint(tmp_path):
    """Make a checkpoint folder of random weights."""

    def make(dtype=torch.float32, family=None, **config):
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_text("{}")
        config = family or Config(**(TINY | SIZE | config))
        save_config(config, folder)
        torch.manual_seed(5)
        torch.save(GPT(config).to(dtype).state_dict(), folder / "lit_model.pth")
        return folder

    return make


def make_model(folder, load=load_checkpoint, dtype=torch.float32, **changes):
    settings = resolve_method(
        "skip2", changes.pop("blocks", "0,2"), TrainConfig(**changes), load_config(folder)
    )
    return build_model(settings, load(folder, CPU, dtype), CPU, 0)


def make_streamed(folder, scratch, **changes):
    model = make_model(folder, load_without_blocks, **changes)
    dtype = changes.get("dtype", torch.float32)
    return StreamedBackbone(model=model, folder=folder, device=CPU, dtype=dtype, scratch=scratch)


def make_others():
    """Samples without a shared prefix; one has no supervised position."""
    torch.manual_seed(1)
    ids = [torch.randint(40, (n,)) for n in (7, 12, 3, 12, 9)]
    labels = [i.clone() for i in ids]
    for number, label in enumerate(labels):
        label[: number + 1] = IGNORE_INDEX
    return Samples(input_ids=ids, labels=labels)


def make_layout(model, dtype=None, n_logits=40):
    compute_dtype = model.lm_head.weight.dtype
    return Layout(
        blocks=model.feature_blocks,
        n_embd=16,
        dtype=dtype or compute_dtype,
        compute_dtype=compute_dtype,
        n_logits=n_logits,
    )


def fill_whole(model, samples, layout):
    order = BuildOrder.of(model, samples, range(len(samples)), CPU)
    writer = MemoryWriter(layout, SampleIndex.of(order.ids, samples, layout).rows, CPU)
    fill(writer, model, samples, order, CPU)
    return writer.finish().tensors


def make_task(backbone, samples, layout, **changes):
    order = BuildOrder.of(backbone.model, samples, range(len(samples)), CPU)
    space = MemoryWriter(layout, SampleIndex.of(order.ids, samples, layout).rows, CPU)
    return Task(samples=samples, order=order, layout=layout, space=space, **changes)


def assert_equal(task, expected):
    found = task.space.finish().tensors
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
        assert not tensor.is_inference()


@pytest.mark.parametrize(
    ("config", "stored", "dtype"),
    [
        ({}, torch.float32, torch.float32),
        ({}, torch.float32, torch.bfloat16),
        ({}, torch.bfloat16, torch.bfloat16),
        ({}, torch.bfloat16, torch.float32),
        ({"n_query_groups": 1, "norm_qk": True}, torch.float32, torch.float32),
        (NEOX, torch.float32, torch.float32),
        (NEOX | {"shared_attention_norm": True}, torch.float32, torch.bfloat16),
        (GEMMA, torch.float32, torch.float32),
        (GEMMA, torch.bfloat16, torch.bfloat16),
        (OLMO, torch.float32, torch.float32),
        (MIXTURE, torch.float32, torch.bfloat16),
        ({"n_layer": 1}, torch.float32, torch.float32),
    ],
    ids=str,
)
def test_streamed_features_are_those_of_the_whole_model(
    make_checkpoint, tmp_path, config, stored, dtype
):
    folder = make_checkpoint(stored, **config)
    blocks = {"blocks": "0" if "n_layer" in config else "0,2"}
    whole = make_model(folder, dtype=dtype, **blocks)
    backbone = make_streamed(folder, tmp_path, dtype=dtype, **blocks)
    layout = make_layout(whole)
    # both sides in one sweep: one with a shared prefix of which some positions are supervised
    tasks = [make_task(backbone, s, layout) for s in (make_samples(9), make_others())]
    assert tasks[0].order.prefix.tolist() == ([] if config is GEMMA else PREFIX)
    backbone.fill(tasks)
    for task in tasks:
        assert_equal(task, fill_whole(whole, task.samples, layout))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_families_of_litgpt(make_checkpoint, tmp_path, architecture):
    folder = make_checkpoint(torch.bfloat16, family=small_config(architecture))
    whole, backbone = make_model(folder), make_streamed(folder, tmp_path)
    tasks = [make_task(backbone, s, make_layout(whole)) for s in (make_samples(), make_others())]
    backbone.fill(tasks)
    for task in tasks:
        assert_equal(task, fill_whole(whole, task.samples, task.layout))


@pytest.mark.parametrize("blocks", ["0", "3", "1,3", "all"])
@pytest.mark.parametrize("target", ["hidden", "logits"])
def test_any_blocks_and_target(make_checkpoint, tmp_path, blocks, target):
    folder = make_checkpoint()
    changes = {"blocks": blocks, "target": target}
    whole, backbone = make_model(folder, **changes), make_streamed(folder, tmp_path, **changes)
    task = make_task(backbone, make_others(), make_layout(whole))
    backbone.fill([task])
    assert_equal(task, fill_whole(whole, task.samples, task.layout))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_narrow_caches(make_checkpoint, tmp_path, dtype):
    folder = make_checkpoint()
    whole, backbone = make_model(folder), make_streamed(folder, tmp_path)
    task = make_task(backbone, make_samples(), make_layout(whole, dtype, n_logits=0))
    backbone.fill([task])
    assert_equal(task, fill_whole(whole, task.samples, task.layout))


def test_hidden_states_beyond_the_bound_pass_through_a_file(make_checkpoint, tmp_path, monkeypatch):
    folder = make_checkpoint()
    whole, backbone = make_model(folder), make_streamed(folder, tmp_path / "scratch")
    expected = fill_whole(whole, make_samples(), make_layout(whole))
    sizes = []
    for limit in (0, 600, 10**6):
        monkeypatch.setattr("skip2bench.cache.streaming.MEMORY_BYTES", limit)
        task = make_task(backbone, make_samples(), make_layout(whole))
        backbone.fill([task])
        assert_equal(task, expected)
        assert list((tmp_path / "scratch").iterdir()) == []
        figures = backbone.figures
        assert figures["hidden_states_bytes"] - figures["hidden_states_disk_bytes"] <= limit
        sizes.append(figures["hidden_states_disk_bytes"])
    assert sizes[0] > sizes[1] > sizes[2] == 0


def test_the_scratch_file_goes_with_an_error(make_checkpoint, tmp_path, monkeypatch):
    folder = make_checkpoint()
    monkeypatch.setattr("skip2bench.cache.streaming.MEMORY_BYTES", 0)
    backbone = make_streamed(folder, tmp_path / "scratch")
    blocks = backbone.model.transformer.h
    seen = []

    def stop(ids):
        seen.extend((tmp_path / "scratch").iterdir())
        raise KeyboardInterrupt

    task = make_task(backbone, make_others(), make_layout(backbone.model), on_batch=stop)
    with pytest.raises(KeyboardInterrupt):
        backbone.fill([task])
    assert [path.name for path in seen] == ["hidden_states.bin"]
    assert not seen[0].exists()
    # the model is as it was: it holds no block, and its own places for them
    assert backbone.model.transformer.h is blocks
    assert all(p.is_meta for p in blocks.parameters())


def test_no_more_than_one_block_is_ever_held(make_checkpoint, tmp_path, monkeypatch):
    folder = make_checkpoint(torch.bfloat16)  # so that every weight that is loaded is converted
    backbone = make_streamed(folder, tmp_path)
    model = backbone.model
    blocks = list(model.transformer.h)
    one_block = sum(p.numel() for p in blocks[0].parameters())
    loaded: list[tuple[str, weakref.ref]] = []

    def load(*args):
        base = load_checkpoint(*args)
        for name, weight in base.weights.items():
            loaded.append((name, weakref.ref(weight.untyped_storage())))
        return base

    held, alive = [], []
    run_blocks = type(model).run_blocks

    def run(self, idx):
        held.append(sum(p.numel() for b in blocks for p in b.parameters() if not p.is_meta))
        alive.append({name.split(".")[2] for name, ref in loaded if ref() and ".h." in name})
        assert len(list(self.transformer.h.parameters())) == len(list(blocks[0].parameters()))
        return run_blocks(self, idx)

    monkeypatch.setattr(streaming, "load_checkpoint", load)
    monkeypatch.setattr(type(model), "run_blocks", run)
    backbone.fill([make_task(backbone, make_others(), make_layout(model))])
    assert set(held) == {one_block}
    assert {len(names) for names in alive} <= {0, 1}
    assert backbone.figures["block_bytes"] == 4 * one_block
    assert [name for name, _ in loaded if name == "transformer.wte.weight"] == [
        "transformer.wte.weight"
    ]


def test_the_model_without_blocks_counts_all_parameters(make_checkpoint):
    folder = make_checkpoint(torch.bfloat16)
    whole, streamed = make_model(folder), make_model(folder, load_without_blocks)
    assert count_parameters(streamed) == count_parameters(whole)
    in_memory = [name for name, p in streamed.named_parameters() if not p.is_meta]
    assert in_memory == [
        "lm_head.weight",
        "transformer.ln_f.weight",
        "adapters.lora_A",
        "adapters.lora_B",
    ]
    for name in in_memory:
        assert torch.equal(streamed.get_parameter(name), whole.get_parameter(name))


def test_samples_are_computed_by_themselves(make_checkpoint, tmp_path):
    folder = make_checkpoint()
    whole, backbone = make_model(folder), make_streamed(folder, tmp_path)
    samples = make_others()
    whole.eval()
    for i, features in zip((3, 0), backbone.compute_samples(samples, [3, 0]), strict=True):
        outputs = whole.compute_features(samples.input_ids[i][None])
        supervised = slice(i, len(samples.input_ids[i]) - 1)
        assert torch.equal(features, torch.stack([h[0, supervised] for h in outputs], dim=1))


def test_each_side_s_work_is_in_its_own_time_and_reading_in_the_first_one_s(
    make_checkpoint, tmp_path
):
    from contextlib import contextmanager

    backbone = make_streamed(make_checkpoint(), tmp_path)
    events = []

    def timed(side):
        @contextmanager
        def part():
            events.append(side)
            yield
            events.append(f"/{side}")

        return part

    layout = make_layout(backbone.model)
    tasks = [
        make_task(backbone, make_others(), layout, timed=timed(side), on_batch=events.extend)
        for side in ("train", "val")
    ]
    backbone.fill(tasks)
    samples = [i for bucket in tasks[0].order.buckets for i in bucket]
    block = ["train", "/train", "train", *samples, "/train", "val", *samples, "/val"]
    assert events == 4 * block
