"""A run to export or to ask: what it trained, on which base, and its own validation samples."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
import yaml
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.prompts import prompt_styles

from skip2bench.config.load import load_train_config
from skip2bench.config.run import EMBEDDED_DATA
from skip2bench.config.train import TrainConfig
from skip2bench.data.load import load_data
from skip2bench.data.samples import Samples
from skip2bench.data.styles import PROMPT_TEMPLATE_FILE, choose_prompt_style, read_style
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note
from skip2bench.io.whole import hash_file
from skip2bench.models.adapters import load_trained_model
from skip2bench.models.base import EMBEDDING, read_base_weights
from skip2bench.models.folders import WEIGHTS_FILE
from skip2bench.models.methods import MethodSettings
from skip2bench.models.tokenizer import load_tokenizer
from skip2bench.results.reading import AnyRun, is_train, read_run
from skip2bench.results.run_records import TrainSummary
from skip2bench.train.plan import limit_length

_FINAL = "final"
_STYLE_FILE = "prompt_style.yaml"


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a run has trained."""

    final: Path
    """Folder of the adapter, or of the weights."""
    run: AnyRun | None
    """None where the folder lies outside its run."""
    model: GPT
    """On the CPU, in float32, with its adapters beside its base's weights."""
    settings: MethodSettings | None
    """None where all weights trained."""
    base_folder: Path
    prompt_style: str

    @property
    def config(self) -> Config:
        """LitGPT's, of the model that was trained."""
        return self.model.config

    @property
    def label(self) -> str:
        """Name of what was trained: "Skip2-LoRA (4 blocks)"."""
        if self.settings is not None:
            return self.settings.label
        return self.run.label if self.run else "all weights"

    @property
    def base_name(self) -> str:
        """Of the model that was trained on."""
        environment = self.run.environment if self.run is not None else None
        if environment is not None and environment.checkpoint is not None:
            return environment.checkpoint.name or self.base_folder.resolve().name
        return self.base_folder.resolve().name

    @property
    def summary(self) -> TrainSummary | None:
        """Of its run, if that is there."""
        return self.run.summary if self.run is not None and is_train(self.run) else None

    @cached_property
    def base_dtype(self) -> torch.dtype:
        """Of the base's weights in their file."""
        weights = read_base_weights(self.base_folder)
        return weights[EMBEDDING].dtype

    def load_validation(self) -> tuple[Samples, str]:
        """The run's own validation samples and the name of their data.

        Where the run or its data is not there any more, it is the embedded data.
        """
        tokenizer = load_tokenizer(self.base_folder)
        if self.run is not None:
            try:
                config, _ = load_train_config({}, self.run.folder / "config.yaml")
                return self._load(config, tokenizer)
            except Skip2BenchError as error:
                note(f"its own data cannot be read ({error}); using {EMBEDDED_DATA}")
        config = TrainConfig(train_samples=1, prompt_style=self.prompt_style)
        return self._load(replace(config, val_samples=32), tokenizer)

    def _load(self, config: TrainConfig, tokenizer: object) -> tuple[Samples, str]:
        length = limit_length(config, self.config)
        data = load_data(config, tokenizer, length, self.config.name, self.base_folder)
        return data.val, data.name


def open_source(path: Path, checkpoint_dir: Path | None = None) -> Source:
    """Load what lies in a run folder, or in its 'final'.

    Args:
        path: Either.
        checkpoint_dir: The base model's folder, where it has moved since.

    Raises:
        Skip2BenchError: there is none, the run has not ended, or its base is another.
    """
    if not path.is_dir():
        raise Skip2BenchError(f"{str(path)!r} is no folder; give a run's folder, or its 'final'")
    run_folder = path.parent if path.name == _FINAL else path
    run = read_run(run_folder) if (run_folder / "summary.json").is_file() else None
    if run is not None and not is_train(run):
        raise Skip2BenchError(f"{str(path)!r} is no training run; give the folder of one")
    if run is not None and run.summary.status != "ok":
        raise Skip2BenchError(
            f"the run in {str(run_folder)!r} has not ended well (status {run.summary.status}); "
            "go on with it by 'skip2bench train --resume --out-dir' and that folder"
        )
    final = path / _FINAL if (path / _FINAL).is_dir() else path
    model, settings, base_folder = load_trained_model(final, checkpoint_dir)
    recorded = run.environment.checkpoint if run is not None and run.environment else None
    if recorded is not None and settings is not None and settings.lora is not None:
        _check_lora_base(final, base_folder, recorded.sha256)
    return Source(
        final=final,
        run=run,
        model=model,
        settings=settings,
        base_folder=base_folder,
        prompt_style=_read_style(final, model.config.name),
    )


def _check_lora_base(final: Path, base_folder: Path, wanted: str | None) -> None:
    """Check that a base is the run's: unlike others, LitGPT's LoRA does not say which it was.

    Raises:
        Skip2BenchError: it is another.
    """
    if wanted is not None and hash_file(base_folder / WEIGHTS_FILE) != wanted:
        raise Skip2BenchError(
            f"the adapter in {str(final)!r} was trained on other weights than those in "
            f"{str(base_folder)!r}; give its own base with --checkpoint-dir"
        )


def _read_style(final: Path, model: str) -> str:
    """Name of the prompt style that a run had."""
    if (final / PROMPT_TEMPLATE_FILE).is_file():
        return read_style(final / PROMPT_TEMPLATE_FILE)
    try:
        content = yaml.safe_load((final / _STYLE_FILE).read_text(encoding="utf-8"))
        kind = str(content["class_path"]).rpartition(".")[2]
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return choose_prompt_style("auto", model)
    classes = {name: style for name, style in prompt_styles.items() if isinstance(style, type)}
    known = {style.__name__: name for name, style in classes.items()}
    return known.get(kind) or choose_prompt_style("auto", model)
