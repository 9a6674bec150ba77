"""A run's adapter as an ordinary checkpoint: made aside, run beside the original, then in place."""

import gc
import math
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.utils import save_config
from safetensors import SafetensorError

from skip2bench.data.styles import choose_prompt_style, save_style
from skip2bench.errors import Skip2BenchError
from skip2bench.export import gguf_file, peft_folder
from skip2bench.export.card import write_card
from skip2bench.export.chat import describe_chat
from skip2bench.export.check import check_agreement, compare_with, run_reference
from skip2bench.export.hugging_face import (
    copy_tokenizer,
    describe_model,
    has_head_size,
    write_hugging_face,
)
from skip2bench.export.record import ExportResult
from skip2bench.export.reload import load_again
from skip2bench.export.source import Source, open_source
from skip2bench.io.console import Waiting
from skip2bench.io.whole import making_folder, write_json
from skip2bench.models.adapters import (
    copy_chat_template,
    keep_beginning,
    merged_weights,
    save_whole,
)
from skip2bench.models.folders import WEIGHTS_FILE
from skip2bench.models.skip import SkipGPT
from skip2bench.models.widen import (
    Layout,
    OrdinaryModel,
    Widening,
    check_can_widen,
    choose_epsilon,
    plan_layout,
    widened_config,
)

Form = Literal["litgpt", "hf", "gguf", "peft"]
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    gguf_file.QUANTISED: torch.int8,
}
_ROOM = 1.05
"""Files take so many times their weights: tokenizer, headers."""


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What is made of what."""

    source: Source
    to: str
    out_dir: Path
    dtype: str
    layout: Layout | None
    """Channels of the exported model; None where it is the base's own."""

    @property
    def kind(self) -> torch.dtype:
        """Of the weights that are made; GGUF's are quantised where they are written."""
        return torch.float32 if self.dtype == gguf_file.QUANTISED else DTYPES[self.dtype]


def run_export(
    path: Path,
    to: str,
    out_dir: Path,
    dtype: str = "auto",
    checkpoint_dir: Path | None = None,
) -> ExportResult:
    """Write what a run has trained as an ordinary checkpoint.

    Args:
        path: The run's folder, or its 'final'.
        to: litgpt, hf, gguf or peft.
        out_dir: A folder that is not there yet.
        dtype: float32, bfloat16, float16, for gguf q8_0 too; auto for the base's own.
        checkpoint_dir: The base model's folder, where it has moved since.

    Raises:
        Skip2BenchError: the run cannot be exported exactly, the disk is full, something lies in
            the way, or the exported model says something else; nothing is written then.
    """
    _check_arguments(to, out_dir, dtype)
    started = time.monotonic()
    source = open_source(path, checkpoint_dir)
    dtype = _choose_dtype(source, dtype)
    layout = _plan(source, to, dtype)
    order = _Order(source=source, to=to, out_dir=out_dir, dtype=dtype, layout=layout)
    with Waiting(f"running {source.label} on its validation samples"):
        samples, data = source.load_validation()
        reference = run_reference(source.model, samples)
    needed = _needed_bytes(order)
    try:
        with making_folder(out_dir, needed, what="exporting", flag="--out-dir") as aside:
            with Waiting("making the weights"):
                made = _make(order, reference.spread)
            with Waiting(f"writing {out_dir}"):
                rank = _write(order, made, aside)
            _release(source)
            checked_at = time.monotonic()
            with Waiting("running the exported model beside the original"):
                forward, checked_with = load_again(aside, made, to)
                agreement = compare_with(reference, forward)
            check_agreement(agreement, dtype)
            result = ExportResult(
                **_describe(order, made, aside),
                **asdict(agreement),
                relative_difference=agreement.relative_difference,
                rank=rank,
                data=data,
                checked_with=checked_with,
                export_seconds=checked_at - started,
                check_seconds=time.monotonic() - checked_at,
            )
            if to in ("hf", "peft"):
                write_card(aside, source, result)
            write_json(aside / "export.json", result)
    except (OSError, SafetensorError) as error:  # of a full disk, either
        reason = getattr(error, "strerror", None) or error
        raise Skip2BenchError(
            f"cannot write {str(out_dir)!r} ({reason}); choose another --out-dir"
        ) from error
    return result


def _check_arguments(to: str, out_dir: Path, dtype: str) -> None:
    if to not in get_args(Form):
        raise Skip2BenchError(f"--to is {to!r}; choose from {', '.join(get_args(Form))}")
    if dtype != "auto" and dtype not in DTYPES:
        raise Skip2BenchError(f"--dtype is {dtype!r}; choose from auto, {', '.join(DTYPES)}")
    if dtype == gguf_file.QUANTISED and to != "gguf":
        raise Skip2BenchError(f"--dtype {dtype} is GGUF's; give --to gguf, or another --dtype")
    if out_dir.exists() or out_dir.is_symlink():
        raise Skip2BenchError(f"{str(out_dir)!r} is there already; choose another --out-dir")


def _choose_dtype(source: Source, dtype: str) -> str:
    if dtype != "auto":
        return dtype
    name = str(source.base_dtype).removeprefix("torch.")
    return name if name in DTYPES else "float32"


def _plan(source: Source, to: str, dtype: str) -> Layout | None:
    """Channels of the exported model; None where it is the base's own. All is checked first."""
    config = source.config
    if to == "gguf":
        gguf_file.check_can_write(config, source.base_folder)
    if to in ("hf", "peft"):
        describe_model(config, source.base_folder, DTYPES[dtype])
    if not isinstance(source.model, SkipGPT):
        if to == "peft":
            raise Skip2BenchError(
                f"--to peft is for Skip adapters, and this is {source.label}; export --to hf"
            )
        return None
    settings = source.model.settings
    check_can_widen(config, settings)
    if to == "peft":
        peft_folder.check_can_write(config)
    if to == "gguf":  # llama.cpp's kernels and blocks of a scale go by as many
        return plan_layout(
            config, settings, multiple_of=gguf_file.BLOCK, start_multiple=gguf_file.BLOCK
        )
    if to == "litgpt":
        return plan_layout(config, settings)
    return plan_layout(
        config,
        settings,
        multiple_of=math.lcm(8, config.n_head) if has_head_size(config) else 8,
        grow_heads=not has_head_size(config),
    )


def _needed_bytes(order: _Order) -> int:
    """What the files take, to the weights' byte and with room for the rest."""
    config = order.source.config
    own = config if order.layout is None else widened_config(config, order.layout)
    itemsize = 34 / 32 if order.dtype == gguf_file.QUANTISED else order.kind.itemsize
    return int(_count_parameters(own) * itemsize * _ROOM) + (64 << 20)


def _count_parameters(config: Config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in GPT(config).parameters())


def _make(order: _Order, spread: float) -> OrdinaryModel:
    """The ordinary model."""
    model, layout, kind = order.source.model, order.layout, order.kind
    if layout is None:
        weights = {name: value.to(kind) for name, value in merged_weights(model).items()}
        return OrdinaryModel(
            config=_plain_config(model.config), weights=weights, layout=None, epsilon=None
        )
    assert isinstance(model, SkipGPT)
    epsilon = choose_epsilon(model, DTYPES[order.dtype], spread)
    return OrdinaryModel(
        config=widened_config(model.config, layout),
        weights=dict(Widening(model, layout, epsilon, kind).weights()),
        layout=layout,
        epsilon=epsilon,
    )


def _plain_config(config: Config) -> Config:
    """A model's configuration without settings of LoRA."""
    return Config(**{item.name: getattr(config, item.name) for item in fields(Config) if item.init})


def _write(order: _Order, made: OrdinaryModel, folder: Path) -> int | None:
    """Write the files; return the rank of a PEFT adapter."""
    source, kind = order.source, order.kind
    base_folder, style = source.base_folder, source.prompt_style
    chat = describe_chat(base_folder, style, is_own_style=_has_own_style(source))
    if order.to == "litgpt":
        save_whole(made.weights, folder / WEIGHTS_FILE)
        save_config(made.config, folder)
        save_style(style, folder)
        copy_tokenizer(base_folder, folder)
        copy_chat_template(base_folder, folder)
        keep_beginning(base_folder, folder)
        return None
    if order.to == "gguf":
        name = f"{source.config.name} {source.label}"
        path = folder / f"{source.config.name or 'model'}-{order.dtype}.gguf"
        gguf_file.write_gguf(path, made.config, made.weights, base_folder, order.dtype, name, chat)
        return None
    if order.to == "hf":
        write_hugging_face(folder, made.config, made.weights, base_folder, kind, chat)
        return None
    assert made.layout is not None
    base, pairs = peft_folder.split_adapter(made.config, made.weights, made.layout)
    (folder / peft_folder.BASE).mkdir()
    write_hugging_face(folder / peft_folder.BASE, made.config, base, base_folder, kind, chat)
    return peft_folder.write_adapter(
        folder / peft_folder.ADAPTER, made.config, pairs, order.out_dir / peft_folder.BASE
    )


def _has_own_style(source: Source) -> bool:
    """True where the run's prompt style is the one that the base's chat template has."""
    return source.prompt_style == choose_prompt_style("auto", source.config.name) != "alpaca"


def _release(source: Source) -> None:
    """Let go of the original's weights: its answers are kept."""
    source.model.to_empty(device="meta")
    gc.collect()


def _describe(order: _Order, made: OrdinaryModel, folder: Path) -> dict[str, Any]:
    """What was made, by the result's names."""
    source = order.source
    settings = source.settings
    return {
        "to": order.to,
        "label": source.label,
        "model": source.base_name,
        "source": str(source.run.folder if source.run else source.final),
        "folder": str(order.out_dir),
        "dtype": order.dtype,
        "base_width": source.config.n_embd,
        "width": made.config.n_embd,
        "added_channels": made.layout.added if made.layout else 0,
        "epsilon": made.epsilon,
        "blocks": settings.blocks if settings else None,
        "parameters": sum(value.numel() for value in made.weights.values()),
        "base_parameters": _count_parameters(source.config),
        "size_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "prompt_style": source.prompt_style,
    }
