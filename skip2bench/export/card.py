"""README.md of an exported Hugging Face folder: what it is, how it was made, how to load it."""

from pathlib import Path

from litgpt.prompts import PromptStyle

from skip2bench.export.peft_folder import ADAPTER, BASE
from skip2bench.export.record import ExportResult
from skip2bench.export.source import Source
from skip2bench.io.units import format_amount, format_bytes, format_significant

_LOAD = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```"""
_LOAD_PEFT = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{folder}/{base}")
model = PeftModel.from_pretrained(base, "{folder}/{adapter}")
tokenizer = AutoTokenizer.from_pretrained("{folder}/{base}")
```

The padded base says what the base model says, and serves any number of such adapters. This one has
rank {rank}: a server must allow it (vLLM: `--max-lora-rank`), and LoRA in the embedding and the
head."""


def write_card(folder: Path, source: Source, result: ExportResult) -> None:
    """Write the model card."""
    is_peft = result.to == "peft"
    load = (_LOAD_PEFT if is_peft else _LOAD).format(
        folder=folder.name, base=BASE, adapter=ADAPTER, rank=result.rank
    )
    lines = [
        "---",
        f"base_model: {result.model}",
        "library_name: " + ("peft" if is_peft else "transformers"),
        "pipeline_tag: text-generation",
        "tags: [skip2bench]",
        "---",
        "",
        f"# {result.model}, fine-tuned with {result.label}",
        "",
        f"- base model: {result.model}, {result.base_parameters:,} parameters as LitGPT counts",
        f"- this model: {result.parameters:,} parameters in {result.dtype}, "
        f"{format_bytes(result.size_bytes)}",
        *_describe_training(source),
        "",
        "## Load",
        "",
        load,
        "",
        "It was trained on prompts of this form:",
        "",
        "````text",
        str(PromptStyle.from_name(source.prompt_style).apply("{instruction}")),
        "````",
        "",
        "## How it was made",
        "",
        *_describe_making(result),
        "",
        f"Compared with the model that was trained, on {format_amount(result.positions, 'token')} "
        f"of its validation data: largest difference of a logit "
        f"{format_significant(result.max_logit_difference)}, where the largest logit is "
        f"{format_significant(result.logit_scale)}; the same most likely token at "
        f"{result.same_token_ratio:.2%}; validation loss {result.original_val_loss:.4f} and "
        f"{result.exported_val_loss:.4f}. All figures are in `export.json`.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _describe_training(source: Source) -> list[str]:
    summary = source.summary
    if summary is None:
        return []
    lines = [f"- data: {summary.data}, {summary.train_samples:,} training samples"]
    if summary.trainable_parameters is not None and summary.epochs is not None:
        lines.append(
            f"- method: {source.label}, {summary.trainable_parameters:,} trainable parameters, "
            f"{_count_epochs(summary.epochs)}, learning rate {summary.learning_rate:g}"
        )
    if summary.initial_val_loss is not None and summary.kept_val_loss is not None:
        lines.append(
            f"- validation loss: {summary.initial_val_loss:.4f} before, "
            f"{summary.kept_val_loss:.4f} after"
        )
    return lines


def _part(result: ExportResult) -> str:
    added = result.width - result.base_width
    return "all" if result.added_channels == added else str(result.added_channels)


def _count_epochs(epochs: float) -> str:
    return "1 epoch" if epochs == 1 else f"{epochs:g} epochs"


def _describe_making(result: ExportResult) -> list[str]:
    if not result.added_channels:
        return ["What was trained is merged into the base's weights."]
    return [
        "The adapters read the outputs of blocks "
        f"{', '.join(map(str, result.blocks or ()))} and add to the end of the network. The "
        f"residual stream is {result.width} channels wide, {result.width - result.base_width} more "
        f"than the base's: {_part(result)} of them carry what the adapters read, written "
        "by the same products as the others, seen by no block, and read by the head. So it is an "
        "ordinary model of its architecture, which any loader runs.",
    ]
