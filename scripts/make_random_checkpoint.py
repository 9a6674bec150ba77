"""Make a LitGPT checkpoint of a known shape with random weights: for measuring, not for use.

    python scripts/make_random_checkpoint.py tiny-llama-1.1b --out-dir /tmp/tiny-llama-1.1b

The file is made at its full size and then filled a tensor at a time through a shared map, so this
takes no more memory than one tensor, whatever the model. The embedded model's tokenizer is put
beside it (2,048 tokens, which any model has room for), or the one of --tokenizer.
"""

import argparse
import mmap
import shutil
import sys
from pathlib import Path

import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.tokenizer import Tokenizer
from litgpt.utils import save_config
from torch._subclasses.fake_tensor import FakeTensorMode

from skip2bench.errors import Skip2BenchError
from skip2bench.io.resources import embedded_checkpoint
from skip2bench.models.base import config_by_name

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOKENIZER_FILES = ("tokenizer*", "generation_config.json", "special_tokens_map.json")
STANDARD_DEVIATION = 0.02
"""Of LitGPT's own initial weights."""


def write_weights(
    config: Config, dtype: torch.dtype, seed: int, path: Path, device: str = "cpu"
) -> int:
    """Write `lit_model.pth`, drawn on `device`; return the number of its parameters."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in GPT(config).state_dict().items()}
    with FakeTensorMode():  # of the CPU, without storage
        unfilled = {key: torch.empty(shape, dtype=dtype) for key, shape in shapes.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(unfilled, path)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        weights = torch.load(path, mmap=True, weights_only=True)
    for name, weight in weights.items():
        if weight.dim() > 1:
            drawn = weight if device == "cpu" else torch.empty_like(weight, device=device)
            drawn.normal_(std=STANDARD_DEVIATION, generator=generator)
            if drawn is not weight:
                weight.copy_(drawn)
        else:  # norms leave what they get as it is
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
    return sum(weight.numel() for weight in weights.values())


def copy_tokenizer(source: Path, out_dir: Path, config: Config) -> None:
    """Put a tokenizer beside the weights.

    Raises:
        Skip2BenchError: it has ids that the model has not.
    """
    tokenizer = Tokenizer(source)
    is_fast = tokenizer.backend == "huggingface"  # whose vocab_size leaves out added tokens
    size = tokenizer.processor.get_vocab_size() if is_fast else tokenizer.vocab_size
    if size > config.padded_vocab_size:
        raise Skip2BenchError(
            f"the tokenizer in {str(source)!r} has {size:,} tokens and {config.name!r} "
            f"{config.padded_vocab_size:,}; give another --tokenizer"
        )
    for pattern in TOKENIZER_FILES:
        for path in source.glob(pattern):
            shutil.copy(path, out_dir / path.name)


def make_checkpoint(
    name: str, out_dir: Path, dtype: str, seed: int, tokenizer: Path, device: str = "cpu"
) -> int:
    """Write a checkpoint folder; return the number of its parameters.

    Raises:
        Skip2BenchError: LitGPT has no configuration of that name, or the tokenizer does not fit.
    """
    config = config_by_name(name)
    out_dir.mkdir(parents=True, exist_ok=True)
    copy_tokenizer(tokenizer, out_dir, config)
    save_config(config, out_dir)
    return write_weights(config, DTYPES[dtype], seed, out_dir / "lit_model.pth", device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="a LitGPT config name")
    parser.add_argument("--out-dir", type=Path, required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="where weights are drawn; cuda is faster")
    parser.add_argument("--tokenizer", type=Path, default=embedded_checkpoint())
    options = parser.parse_args()
    try:
        parameters = make_checkpoint(
            options.name,
            options.out_dir,
            options.dtype,
            options.seed,
            options.tokenizer,
            options.device,
        )
    except Skip2BenchError as error:
        sys.exit(f"error: {error}")
    print(f"{parameters:,} parameters in {options.dtype}, in {options.out_dir}")


if __name__ == "__main__":
    main()
