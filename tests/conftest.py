"""A model, a tokenizer and a data set small enough for a test: made here, in a moment, offline."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from litgpt.config import Config
from litgpt.model import GPT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from skip2bench.config import TrainConfig
from skip2bench.train import run_training

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


@pytest.fixture(autouse=True)
def _few_threads():
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LitGPT checkpoint folder of a 4-block model, 16 wide."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
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


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An Alpaca file of 40 records whose outputs differ in length."""
    path = tmp_path_factory.mktemp("data") / "tiny.json"
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


@pytest.fixture
def train(tiny_checkpoint, tiny_data, tmp_path):
    """Run a small training and return (summary, metrics, steps, run folder)."""

    def run(name="run", **changes):
        values = {
            "checkpoint_dir": tiny_checkpoint,
            "data": str(tiny_data),
            "out_dir": tmp_path / name,
            "blocks": "0,1,3",
            "lora_dropout": 0.0,
            "learning_rate": 1e-2,
            "lr_warmup_steps": 2,
            "global_batch_size": 8,
            "micro_batch_size": 3,
            "eval_interval": 4,
            "max_steps": 10,
            "device": "cpu",
        }
        summary = run_training(TrainConfig(**(values | changes)), ["train"])
        logs = tmp_path / name / summary["log_folder"]
        return (
            summary,
            pd.read_csv(logs / "metrics.csv"),
            pd.read_csv(logs / "steps.csv"),
            tmp_path / name,
        )

    return run
