"""A GGUF file holds the model and its tokenizer, as other readers of the format find them."""

import json

import pytest
import torch
from families import adapted_model
from litgpt.model import GPT

from skip2bench.errors import Skip2BenchError
from skip2bench.export.chat import Chat
from skip2bench.export.gguf_file import BLOCK, check_can_write, read_gguf, write_gguf
from skip2bench.models.widen import Widening, choose_epsilon, plan_layout, widened_config

CHAT = Chat(template="{{ messages[-1]['content'] }}", is_base_template=False, adds_bos=False)
gguf = pytest.importorskip("gguf")


def _write(model, path, base_folder, dtype="float32"):
    layout = plan_layout(model.config, model.settings, multiple_of=BLOCK, start_multiple=BLOCK)
    kind = torch.int8 if dtype == "q8_0" else torch.float32
    epsilon = choose_epsilon(model, kind, 4.0)
    weights = dict(Widening(model, layout, epsilon, torch.float32).weights())
    config = widened_config(model.config, layout)
    write_gguf(path, config, weights, base_folder, dtype, "a name", CHAT)
    return config


@pytest.fixture
def wide_vocabulary(monkeypatch):
    """Tiny models whose vocabulary is the tokenizer's of the tiny checkpoint."""
    import families

    sizes = families._SIZES | {"vocab_size": 320, "padded_vocab_size": 320}
    monkeypatch.setattr(families, "_SIZES", sizes)


@pytest.mark.parametrize("family", ["llama-2", "llama-3", "smollm2", "qwen-2.5", "qwen-3"])
@pytest.mark.usefixtures("wide_vocabulary")
def test_what_is_read_back_says_the_same(family, tiny_checkpoint, tmp_path):
    model = adapted_model(family)
    config = _write(model, tmp_path / "a.gguf", tiny_checkpoint)
    again = GPT(config)
    again.load_state_dict(read_gguf(tmp_path / "a.gguf", config))
    tokens = torch.randint(320, (2, 20))
    with torch.no_grad():
        wanted, found = model(tokens), again.eval()(tokens)
    assert float((wanted - found).abs().max()) < 1e-4 * float(wanted.abs().max())


@pytest.mark.parametrize("family", ["llama-2", "smollm2"])
@pytest.mark.usefixtures("wide_vocabulary")
def test_transformers_reads_the_same_model_and_tokenizer(family, tiny_checkpoint, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = adapted_model(family)
    _write(model, tmp_path / "a.gguf", tiny_checkpoint)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="a.gguf", dtype=torch.float32
    )
    tokens = torch.randint(320, (2, 20))
    with torch.no_grad():
        wanted, found = model(tokens), loaded.eval()(tokens).logits
    assert float((wanted - found).abs().max()) < 1e-4 * float(wanted.abs().max())
    own = transformers.AutoTokenizer.from_pretrained(tiny_checkpoint)
    other = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    own, other = (
        each.encode("Write a response 12.", add_special_tokens=False) for each in (own, other)
    )
    assert own == other


@pytest.mark.usefixtures("wide_vocabulary")
def test_quantised_weights_come_near(tiny_checkpoint, tmp_path):
    model = adapted_model("smollm2")
    config = _write(model, tmp_path / "a.gguf", tiny_checkpoint, "q8_0")
    types = {
        item.name: item.tensor_type.name for item in gguf.GGUFReader(tmp_path / "a.gguf").tensors
    }
    assert types["blk.0.attn_q.weight"] == "Q8_0"
    assert types["output_norm.weight"] == "F32"
    again = GPT(config)
    again.load_state_dict(read_gguf(tmp_path / "a.gguf", config))
    tokens = torch.randint(320, (2, 20))
    with torch.no_grad():
        wanted, found = model(tokens), again.eval()(tokens)
    assert float((wanted - found).square().mean() / wanted.square().mean()) < 0.1**2


@pytest.mark.parametrize("family", ["pythia", "gemma", "phi-3", "olmo-2", "mixtral"])
def test_other_architectures_are_refused_by_name(family, tiny_checkpoint):
    model = adapted_model(family)
    with pytest.raises(Skip2BenchError, match=f"{model.config.name} is no model of the Llama"):
        check_can_write(model.config, tiny_checkpoint)


@pytest.mark.usefixtures("wide_vocabulary")
def test_biases_of_a_widened_model_make_it_a_llama(tiny_checkpoint, tmp_path):
    _write(adapted_model("qwen-2.5"), tmp_path / "a.gguf", tiny_checkpoint)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert reader.fields["general.architecture"].contents() == "llama"
    assert "blk.0.attn_q.bias" in {item.name for item in reader.tensors}


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tiny_checkpoint):
    with pytest.raises(Skip2BenchError, match="has 320 tokens, and the model only 40"):
        check_can_write(adapted_model("llama-2").config, tiny_checkpoint)


@pytest.mark.usefixtures("wide_vocabulary")
def test_an_unknown_way_to_split_text_is_refused(tiny_checkpoint, tmp_path):
    content = json.loads((tiny_checkpoint / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(
        (tiny_checkpoint / "tokenizer_config.json").read_text()
    )
    with pytest.raises(Skip2BenchError, match="splits text as no model that --to gguf knows"):
        check_can_write(adapted_model("llama-2").config, tmp_path)
