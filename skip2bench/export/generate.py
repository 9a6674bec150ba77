"""Ask what a run has trained, or the base beside it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from litgpt.model import GPT
from litgpt.tokenizer import Tokenizer

from skip2bench.config.load import load_train_config
from skip2bench.errors import Skip2BenchError
from skip2bench.export.source import Source, open_source
from skip2bench.io.resources import embedded_checkpoint
from skip2bench.machine.environment import choose_device
from skip2bench.models.base import build_plain_model, load_checkpoint
from skip2bench.models.generation import Answer, Sampling, encode_question
from skip2bench.models.tokenizer import load_tokenizer
from skip2bench.results.reading import is_train


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A model that answers, and its base."""

    source: Source
    sampling: Sampling
    seed: int

    def prepare(self, prompt: str, own_input: str = "") -> Answer:
        """The answer to a prompt, in the prompt style that was trained with.

        Raises:
            Skip2BenchError: the prompt is longer than the model's context.
        """
        return self._prepare(self.source.model, prompt, own_input)

    @contextmanager
    def base(self, prompt: str, own_input: str = "") -> Iterator[Answer]:
        """Within, the base's answer to a prompt, which must be run there.

        Raises:
            Skip2BenchError: the base is not known.
        """
        with _as_base(self.source) as model:
            yield self._prepare(model, prompt, own_input)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.source.base_folder)

    def _prepare(self, model: GPT, prompt: str, own_input: str) -> Answer:
        torch.manual_seed(self.seed)
        source = self.source
        question = encode_question(
            self._tokenizer, source.config, source.prompt_style, prompt, own_input
        )
        return Answer(model, question, self.sampling)


def open_asked(
    path: Path,
    sampling: Sampling,
    seed: int = 0,
    device: str = "auto",
    checkpoint_dir: Path | None = None,
) -> Asked:
    """Load a run, or a LitGPT checkpoint folder, to ask it.

    Weights are float32 on a CPU, and the base's dtype elsewhere.

    Args:
        path: Folder of the run, its 'final', or a checkpoint.
        sampling: How tokens are chosen.
        seed: Of what is drawn, for each answer alike.
        device: auto, cpu, cuda or mps.
        checkpoint_dir: The base model's folder, where it has moved since.

    Raises:
        Skip2BenchError: nothing there can be asked.
    """
    if not 0 <= seed < 2**32:
        raise Skip2BenchError(f"--seed is {seed}; give a number from 0 to {2**32 - 1}")
    where = choose_device(device)
    source = open_source(path, checkpoint_dir)
    if where.type != "cpu":
        source.model.to(device=where, dtype=source.base_dtype)
    return Asked(source=source, sampling=sampling, seed=seed)


@contextmanager
def _as_base(source: Source) -> Iterator[GPT]:
    """Within, the base model: adapters silenced for a while, or its own weights loaded."""
    model = source.model
    seconds = [p for name, p in model.named_parameters() if name.endswith("lora_B")]
    if not seconds:
        yield _load_base(source)
        return
    kept = [parameter.detach().clone() for parameter in seconds]
    with torch.no_grad():
        for parameter in seconds:
            parameter.zero_()
        try:
            yield model
        finally:
            for parameter, value in zip(seconds, kept, strict=True):
                parameter.copy_(value)


def _load_base(source: Source) -> GPT:
    folder: Path | None = source.base_folder
    if source.settings is None:  # the folder holds what all of it became
        folder = None
        if source.run is not None and is_train(source.run):
            config, _ = load_train_config({}, source.run.folder / "config.yaml")
            folder = config.checkpoint_dir or embedded_checkpoint()
    if folder is None:
        raise Skip2BenchError(
            f"{str(source.final)!r} is no adapter, and what it came from is not known; ask it "
            "without --compare"
        )
    weight = source.model.transformer.wte.weight
    base = load_checkpoint(folder, weight.device, weight.dtype)
    return build_plain_model(base.config, base.weights)
