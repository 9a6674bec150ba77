"""What runs the files that were written: the format's own library, or LitGPT on what they hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from litgpt.config import Config
from safetensors.torch import load_file
from torch import Tensor

from skip2bench.errors import Skip2BenchError
from skip2bench.export import gguf_file, peft_folder
from skip2bench.export.check import Forward
from skip2bench.export.hugging_face import convert_weights
from skip2bench.io.console import note
from skip2bench.models.base import build_plain_model, load_checkpoint
from skip2bench.models.widen import OrdinaryModel

_EXACT = "eager"
"""transformers' attention that has all that models have: soft-capping, which others leave out."""


def load_again(folder: Path, made: OrdinaryModel, to: str) -> tuple[Forward, str]:
    """What runs the files that were written, and its name."""
    made_weights = made.weights
    if to == "litgpt":
        base = load_checkpoint(folder, torch.device("cpu"), torch.float32)
        return _litgpt_forward(base.config, base.weights), "litgpt"
    if to == "gguf":
        (path,) = folder.glob("*.gguf")
        return _litgpt_forward(made.config, gguf_file.read_gguf(path, made.config)), "gguf, litgpt"
    if to == "hf":
        if find_spec("transformers") is not None:
            return _transformers_forward(folder), "transformers"
        _check_files(folder, convert_weights(made.config, made_weights))
        note("transformers is not installed: the files were read back and run with litgpt")
        return _litgpt_forward(made.config, made_weights), "safetensors, litgpt"
    base_folder, adapter = folder / peft_folder.BASE, folder / peft_folder.ADAPTER
    if find_spec("transformers") is not None and find_spec("peft") is not None:
        return _peft_forward(base_folder, adapter), "peft"
    assert made.layout is not None
    base_weights, _ = peft_folder.split_adapter(made.config, made_weights, made.layout)
    _check_files(base_folder, convert_weights(made.config, base_weights))
    merged = peft_folder.read_adapter(adapter, made.config, base_weights)
    return _litgpt_forward(made.config, merged), "safetensors, litgpt"


def _litgpt_forward(config: Config, weights: dict[str, Tensor]) -> Forward:
    wide = {key: value.float() for key, value in weights.items()}
    forward: Forward = build_plain_model(config, wide)
    return forward


def _transformers_forward(folder: Path) -> Forward:
    from transformers import AutoModelForCausalLM

    with _quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=_EXACT
        )
    model.eval()
    return lambda ids: model(ids).logits


def _peft_forward(base_folder: Path, adapter: Path) -> Forward:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with _quiet_transformers():
        base = AutoModelForCausalLM.from_pretrained(
            base_folder, dtype=torch.float32, attn_implementation=_EXACT
        )
        model = PeftModel.from_pretrained(base, adapter)
    model.eval()
    return lambda ids: model(ids).logits


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Within, transformers draws no bars of its own on standard error."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _check_files(folder: Path, wanted: dict[str, Tensor]) -> None:
    """Check that safetensors hold what was to be written.

    Raises:
        Skip2BenchError: they do not.
    """
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    differing = [
        name for name, value in wanted.items() if name not in found or not found[name].equal(value)
    ]
    if differing or found.keys() - wanted.keys():
        raise Skip2BenchError(
            f"the files in {str(folder)!r} do not hold {', '.join(differing[:3]) or 'only'} what "
            "was to be written; check the disk"
        )
