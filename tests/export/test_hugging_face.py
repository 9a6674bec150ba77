"""transformers loads what is written for it, without code of anybody's, and says the same."""

import json
import math

import pytest
import torch
from families import FAMILIES, adapted_model

from skip2bench.errors import Skip2BenchError
from skip2bench.export.chat import Chat
from skip2bench.export.hugging_face import (
    describe_model,
    has_head_size,
    write_hugging_face,
)
from skip2bench.models.widen import Widening, choose_epsilon, plan_layout, widened_config

CHAT = Chat(template="{{ messages[-1]['content'] }}", is_base_template=False, adds_bos=False)
transformers = pytest.importorskip("transformers")


def _write(model, folder, base_folder):
    config, named = model.config, has_head_size(model.config)
    layout = plan_layout(
        config,
        model.settings,
        multiple_of=math.lcm(8, config.n_head) if named else 8,
        grow_heads=not named,
    )
    epsilon = choose_epsilon(model, torch.float32, 4.0)
    weights = dict(Widening(model, layout, epsilon, torch.float32).weights())
    folder.mkdir()
    own = widened_config(config, layout)
    write_hugging_face(folder, own, weights, base_folder, torch.float32, CHAT)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "falcon"])
def test_transformers_says_what_the_adapted_model_says(family, tiny_checkpoint, tmp_path):
    model = adapted_model(family)
    _write(model, tmp_path / "hf", tiny_checkpoint)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf",
        dtype=torch.float32,
        output_loading_info=True,
        attn_implementation="eager",
    )
    assert not any(info.values())
    torch.manual_seed(1)
    tokens = torch.randint(40, (2, 20))
    with torch.no_grad():
        wanted, found = model(tokens), loaded.eval()(tokens).logits
    assert float((wanted - found).abs().max()) < 1e-4 * float(wanted.abs().max())


def test_falcon_shares_its_keys_and_is_refused(tiny_checkpoint, tmp_path):
    with pytest.raises(Skip2BenchError, match="falcon-7b ties its heads to each other"):
        _write(adapted_model("falcon"), tmp_path / "hf", tiny_checkpoint)


def test_what_the_base_says_beyond_sizes_is_kept(tmp_path):
    config = adapted_model("llama-2").config
    known = {"model_type": "llama", "hidden_size": 5, "pretraining_tp": 1, "dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(known))
    described = describe_model(config, tmp_path, torch.bfloat16)
    assert described["pretraining_tp"] == 1
    assert described["hidden_size"] == config.n_embd
    assert described["torch_dtype"] == "bfloat16"
    assert "dtype" not in described  # newer transformers would take it first
    assert described["tie_word_embeddings"] is False


def test_files_can_be_read_by_others(tiny_checkpoint, tmp_path):
    _write(adapted_model("llama-2"), tmp_path / "hf", tiny_checkpoint)
    wanted = (tmp_path / "hf" / "config.json").stat().st_mode
    assert all(path.stat().st_mode == wanted for path in (tmp_path / "hf").glob("*.safetensors"))
