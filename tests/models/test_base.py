import shutil
from pathlib import Path

import pytest
import torch
from litgpt.tokenizer import Tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skip2bench.config.commands import BenchConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.resources import embedded_checkpoint
from skip2bench.models.base import (
    check_checkpoint,
    config_by_name,
    find_checkpoint,
    load_base,
    load_checkpoint,
    load_config,
)
from skip2bench.models.methods import build_model, resolve_method

CPU = torch.device("cpu")


def test_the_embedded_model_is_small_llama_shaped_and_works():
    folder = embedded_checkpoint()
    check_checkpoint(folder)
    config = load_config(folder)
    assert (config.n_layer, config.n_embd, config.n_head, config.block_size) == (8, 192, 6, 512)
    assert (config.norm_class_name, config.mlp_class_name) == ("RMSNorm", "LLaMAMLP")
    assert Tokenizer(folder).vocab_size == config.padded_vocab_size == 2048
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10_000_000
    stored = torch.load(folder / "lit_model.pth", weights_only=True)
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    assert (
        load_checkpoint(folder, CPU, torch.float32).weights["lm_head.weight"].dtype == torch.float32
    )


def test_the_embedded_model_is_really_trained():
    """On a function that is in no standard library: far below the uniform loss, ln 2048 = 7.6."""
    folder = embedded_checkpoint()
    base = load_checkpoint(folder, CPU, torch.float32)
    model = build_model(resolve_method("lora", "", BenchConfig(), base.config), base, CPU, 0)
    source = """def find_longest(self, names, default=None):
    result = default
    for name in names:
        if result is None or len(name) > len(result):
            result = name
    return result
"""
    tokens = Tokenizer(folder).encode(source).long()[None]
    loss = torch.nn.functional.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:])
    assert loss < 4.5


def test_names_of_models(tiny_checkpoint):
    assert find_checkpoint("pystd") == embedded_checkpoint()
    assert find_checkpoint(str(tiny_checkpoint)) == tiny_checkpoint
    assert find_checkpoint("pythia-14m") is None
    assert load_base("pythia-14m", CPU, torch.float32, 0).folder is None
    assert load_base(str(tiny_checkpoint), CPU, torch.float32, 0).name == "tiny"


def test_an_unknown_name_brings_the_nearest():
    with pytest.raises(
        Skip2BenchError, match=r"'Llama-2-7b' is neither .*; near it: Llama-2-7b-hf"
    ):
        config_by_name("Llama-2-7b")
    with pytest.raises(Skip2BenchError, match="give a LitGPT config name such as Llama-2-7b-hf"):
        config_by_name("????")


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(
        Skip2BenchError, match=r"does not exist; get one with 'litgpt download <name>'"
    ):
        check_checkpoint(tmp_path / "none")


@pytest.mark.parametrize("name", ["lit_model.pth", "model_config.yaml", "tokenizer_config.json"])
def test_missing_files_are_named(tiny_checkpoint, tmp_path, name):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / name).unlink()
    with pytest.raises(Skip2BenchError, match=f"lacks {name}; download it again"):
        check_checkpoint(folder)


def test_a_hugging_face_folder_is_told_how_to_convert(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(
        Skip2BenchError, match="is a Hugging Face checkpoint; convert it: litgpt convert_to"
    ):
        check_checkpoint(tmp_path)


def test_broken_weights_are_an_error(tiny_checkpoint, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "lit_model.pth").write_bytes(b"not a zip file")
    with pytest.raises(Skip2BenchError, match=r"cannot be read \(it is no file .*; download the"):
        load_checkpoint(folder, CPU, torch.float32)


def test_a_broken_configuration_is_an_error(tiny_checkpoint, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "model_config.yaml").write_text("n_layers: 3\n")
    with pytest.raises(Skip2BenchError, match="is no LitGPT model configuration"):
        load_config(folder)


def test_a_part_of_a_checkpoint_is_loaded_by_the_names_of_its_weights(tiny_checkpoint):
    whole = load_checkpoint(tiny_checkpoint, CPU, torch.bfloat16).weights
    part = load_checkpoint(tiny_checkpoint, CPU, torch.bfloat16, ("transformer.h.1.", "lm_head."))
    assert set(part.weights) == {
        name for name in whole if name.startswith("transformer.h.1.") or "lm_head" in name
    }
    assert all(torch.equal(weight, whole[name]) for name, weight in part.weights.items())
    stored = load_checkpoint(tiny_checkpoint, CPU, None).weights
    assert {weight.dtype for weight in stored.values()} == {torch.float32}


def test_random_weights_are_made_in_their_own_dtype():
    """No other tensor with bytes exists on the way; nor could one on another device."""
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            made.extend(it for it in tree_leaves(result) if isinstance(it, torch.Tensor))
            return result

    with Watch():
        base = load_base("pythia-14m", CPU, torch.bfloat16, 0)
    assert {weight.dtype for weight in base.weights.values()} == {torch.bfloat16}
    assert {it.dtype for it in made if it.device.type != "meta" and it.is_floating_point()} == {
        torch.bfloat16
    }
    storages = {it.untyped_storage().data_ptr(): it for it in made if it.device.type != "meta"}
    total = sum(it.untyped_storage().nbytes() for it in storages.values())
    needed = sum(weight.nbytes for weight in base.weights.values())
    assert needed <= total < 1.1 * needed  # the rest: the tables of the rotary embedding


def test_random_weights_depend_on_the_seed_alone():
    first, again, other = (load_base("pythia-14m", CPU, torch.float32, seed) for seed in (1, 1, 2))
    name = "transformer.h.0.mlp.fc.weight"
    assert torch.equal(first.weights[name], again.weights[name])
    assert not torch.equal(first.weights[name], other.weights[name])


def test_a_name_of_litgpts_is_no_checkpoint_and_says_where_one_is():
    with pytest.raises(Skip2BenchError, match="a name has no weights"):
        check_checkpoint(Path("Llama-2-7b-hf"))
