"""A model, a tokenizer and data small enough for a test, made in a moment, offline."""

import json
from pathlib import Path

import torch
import yaml
from litgpt.config import Config
from litgpt.model import GPT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from skip2bench.io.whole import to_json

EOS = "<|endoftext|>"
TINY = {
    "name": "tiny",
    "block_size": 96,
    "n_layer": 4,
    "n_embd": 16,
    "n_head": 2,
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
    "intermediate_size": 24,
    "bias": False,
    "parallel_residual": False,
    "rotary_percentage": 1.0,
}


SMALL = {
    "n_layer": 3,
    "n_embd": 16,
    "n_head": 4,
    "padded_vocab_size": 40,
    "vocab_size": 40,
    "block_size": 32,
}
# One of each family that LitGPT builds differently: fused and grouped queries, parallel residuals,
# LayerNorm with biases, logit soft-capping with extra norms, embeddings that are scaled, RoPE
# adjustments.
ARCHITECTURES = {
    "llama-2": ("Llama-2-7b-hf", {"intermediate_size": 24, "n_query_groups": 4}),
    "llama-3": ("Llama-3.1-8B", {"intermediate_size": 24, "n_query_groups": 2}),
    "pythia": ("pythia-14m", {"intermediate_size": 24, "n_query_groups": 4}),
    "falcon-parallel": ("falcon-7b", {"intermediate_size": 24, "n_query_groups": 1}),
    "gemma-2": ("Gemma-2-2b", {"intermediate_size": 24, "n_query_groups": 2, "head_size": 4}),
    "qwen-2.5": ("Qwen2.5-0.5B", {"intermediate_size": 24, "n_query_groups": 2}),
}


def small_config(architecture: str) -> Config:
    name, extra = ARCHITECTURES[architecture]
    return Config.from_name(name, **(SMALL | extra))


def as_written(result):
    """What a command found, as its file and --json hold it."""
    return json.loads(to_json(result))


def make_checkpoint(folder: Path) -> Path:
    """A LitGPT checkpoint folder of a 4-block model, 16 wide."""
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    prompt = "Below is an instruction that describes a task. Write a response that appropriately "
    tokenizer.train_from_iterator(
        [prompt + "completes the request.\n\n### Instruction: Response:"], trainer
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": EOS, "eos_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    size = {"vocab_size": 320, "padded_vocab_size": 320}
    (folder / "model_config.yaml").write_text(yaml.safe_dump(TINY | size))
    torch.manual_seed(0)
    model = GPT(Config(**TINY, **size))
    torch.save(model.state_dict(), folder / "lit_model.pth")
    return folder


def make_records(path: Path) -> Path:
    """An Alpaca file of 40 records whose outputs differ in length."""
    records = [
        {
            "instruction": f"Add {i} and {i + 1}.",
            "input": "",
            "output": "so " * (i % 5) + str(2 * i + 1),
        }
        for i in range(40)
    ]
    path.write_text(json.dumps(records))
    return path
