"""Training and validation samples as token ids and labels.

Three sources: the embedded `pydoc` (see `stdlib`), records of the user's (see `files`), and
LitGPT's own data modules by name, most of which download. Prompting, tokenizing and label masking
are LitGPT's, but for conversations (see `chat`).
"""

import os
from contextlib import suppress
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from litgpt.data import SFTDataset
from litgpt.prompts import PromptStyle
from litgpt.tokenizer import Tokenizer
from torch import Tensor

from skip2bench.config.options import read_pairs
from skip2bench.config.run import EMBEDDED_DATA
from skip2bench.config.train import TrainConfig
from skip2bench.data.chat import ChatError, ChatRenderer, RecordsDataset, read_template
from skip2bench.data.files import SUFFIXES, is_data_place
from skip2bench.data.records import Record, RecordSides, judge_faults, load_records
from skip2bench.data.samples import IGNORE_INDEX, Samples, TokenizedData, hash_samples
from skip2bench.data.stdlib import INSTRUCTION, read_modules, sample_documented_functions
from skip2bench.data.styles import (
    CHAT_STYLE,
    ChatTemplateStyle,
    choose_prompt_style,
    keep_chat_style,
    note_style,
    place_input,
)
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note
from skip2bench.io.units import format_amount

PYDOC_TRAIN, PYDOC_VAL = 2000, 200


def load_data(
    config: TrainConfig,
    tokenizer: Tokenizer,
    max_seq_length: int,
    model: str = "",
    folder: Path | None = None,
) -> TokenizedData:
    """Load what `config.data` names and tokenize it.

    Args:
        config: Uses data, val_data, test_data, fields, mask_prompt, prompt_style,
            val_split_fraction, train_samples and val_samples.
        tokenizer: The base model's.
        max_seq_length: Samples are cut to this many tokens.
        model: LitGPT's name of the model, which decides what prompt_style `auto` is.
        folder: The checkpoint's, whose chat template conversations have where the style is `auto`.

    Raises:
        Skip2BenchError: the source is unknown, unreadable, or empty, or the tokenizer has no end of
            text.
    """
    style = choose_prompt_style(config.prompt_style, model)
    if tokenizer.eos_id is None:
        raise Skip2BenchError(
            "the tokenizer of the checkpoint has no end of text; add its eos_token to "
            "tokenizer_config.json, or download the checkpoint again"
        )
    sides, renderer, conversations = RecordSides(train=[], val=[], test=None), None, 0
    if config.data == EMBEDDED_DATA or is_data_place(config.data):
        if config.data_options:
            raise Skip2BenchError(
                f"data_options are of a LitGPT data module, and data {config.data!r} is none; "
                "leave them out"
            )
        is_own = config.data == EMBEDDED_DATA
        name = EMBEDDED_DATA if is_own else Path(config.data).name
        sides = embedded_sides(config) if is_own else load_records(config)
        own = read_template(folder) if folder and config.prompt_style == "auto" else None
        renderer = _make_renderer(tokenizer, style, own)
        if isinstance(renderer.style, ChatTemplateStyle):
            sides = sides.as_conversations()
        conversations = _count_chat(sides)
        style = _settle_style(config, style, renderer, sides, model)
        train, val = _datasets(sides, config, renderer, max_seq_length, is_pydoc=is_own)
    else:
        _check_sides_of_module(config)
        name, (train, val) = config.data, load_module(config, style, tokenizer, max_seq_length)
    both = (sides.train, sides.val)
    moved = sum(
        placed is not record
        for dataset, side in zip((train, val), both, strict=True)
        for placed, record in zip(dataset.data, side, strict=False)  # a module has its own records
    )
    if style != CHAT_STYLE:
        note_style(config.prompt_style, style, moved)
    faults: list[str] = []
    train_samples, dropped = _tokenize(train, config.train_samples, faults)
    val_samples, dropped_val = _tokenize(val, config.val_samples, faults)
    if faults:
        all_of_them = format_amount(conversations, "conversation")
        judge_faults(faults, all_of_them, conversations, config.drop_records)
    for side, samples in (("training", train_samples), ("validation", val_samples)):
        if not len(samples):
            raise Skip2BenchError(
                f"data {config.data!r} has no {side} sample with a supervised token within "
                f"{max_seq_length} tokens; give more records or a larger --max-seq-length"
            )
    return TokenizedData(
        name=name,
        train=train_samples,
        val=val_samples,
        dropped=dropped + dropped_val,
        cut=sum(
            _count_cut(side, max_seq_length, tokenizer) for side in (train_samples, val_samples)
        ),
        empty=sum(not record["output"].strip() for side in both for record in side),
        shared=_count_shared(train_samples, val_samples),
        sha256=hash_samples(train_samples, val_samples, tests=sides.test),
        held_out=tuple(sides.asked),
        conversations=conversations,
        renderer=renderer,
        prompt_style=style,
        train_records=len(train),
    )


def embedded_sides(config: TrainConfig) -> RecordSides:
    """`pydoc`, which is divided already.

    Raises:
        Skip2BenchError: records to validate on are given beside it.
    """
    _check_sides_of_module(config)
    train, val = pydoc_records()
    return RecordSides(train=train, val=val, test=None)


def _check_sides_of_module(config: TrainConfig) -> None:
    """Raise a Skip2BenchError for options of records beside data that brings its own sides."""
    for name in ("val_data", "test_data", "fields", "drop_records"):
        if value := getattr(config, name):
            raise Skip2BenchError(
                f"{name} {value!r} is of a data file, and data {config.data!r} is none; leave it "
                "out, or give --data FILE"
            )


def _make_renderer(tokenizer: Tokenizer, style: str, own: str | None) -> ChatRenderer:
    """What brings conversations to tokens.

    Args:
        tokenizer: Of the model.
        style: LitGPT's name of the style; a chat template stands before the checkpoint's own.
        own: The checkpoint's chat template, where it is to be used.
    """
    form = PromptStyle.from_name(style)
    template = form.text if isinstance(form, ChatTemplateStyle) else own
    return ChatRenderer(tokenizer=tokenizer, style=form, template=template)


def _settle_style(
    config: TrainConfig, style: str, renderer: ChatRenderer, sides: RecordSides, model: str
) -> str:
    """The style in which the model will be asked: a chat template where it rendered all records."""
    template, conversations = renderer.template, _count_chat(sides)
    is_file = isinstance(renderer.style, ChatTemplateStyle)
    if conversations:
        by = f"chat template {style}" if is_file else "the checkpoint's chat template"
        amount = format_amount(conversations, "conversation")
        note(
            f"{amount}, rendered by {by if template else f'prompt style {style}'}; loss on the "
            "assistant's turns"
        )
    if template is None or conversations < len(sides.train) + len(sides.val):
        return style
    name = style if is_file else CHAT_STYLE
    return keep_chat_style(name, template, renderer.tokenizer, choose_prompt_style("auto", model))


def _count_chat(sides: RecordSides) -> int:
    return sum("messages" in record for side in (sides.train, sides.val) for record in side)


def pydoc_records() -> tuple[list[Record], list[Record]]:
    """`pydoc` in Alpaca form: 2,000 records to train, 200 from other packages to validate."""
    train, val = (
        [
            {"instruction": INSTRUCTION, "input": source, "output": summary}
            for source, summary in side
        ]
        for side in _sampled_pydoc()
    )
    return train, val


@cache
def _sampled_pydoc() -> tuple[list[tuple[str, str]], ...]:
    """Source and summary of each side's functions; the standard library is parsed once a process.

    That takes seconds.
    """
    sides = sample_documented_functions(read_modules(), PYDOC_TRAIN, PYDOC_VAL)
    return tuple([(f.source, f.summary) for f in functions] for functions in sides)


def _tokenize(dataset: SFTDataset, limit: int | None, faults: list[str]) -> tuple[Samples, int]:
    """Samples, and how many have nothing to learn; what cannot be tokenized is added to faults."""
    input_ids: list[Tensor] = []
    labels: list[Tensor] = []
    dropped = 0
    for i in range(len(dataset)):
        if limit is not None and len(input_ids) == limit:
            break
        try:
            item = dataset[i]
        except ChatError as error:
            faults.append(str(error))
            continue
        if bool((item["labels"][1:] != IGNORE_INDEX).any()):
            input_ids.append(item["input_ids"])
            labels.append(item["labels"])
        else:
            dropped += 1
    return Samples(input_ids=input_ids, labels=labels), dropped


def _count_cut(samples: Samples, max_seq_length: int, tokenizer: Tokenizer) -> int:
    """Samples of the full length that do not end as every whole one does."""
    return sum(
        len(ids) == max_seq_length and int(ids[-1]) != tokenizer.eos_id for ids in samples.input_ids
    )


def _count_shared(train: Samples, val: Samples) -> int:
    known = {ids.numpy().tobytes() for ids in train.input_ids}
    return sum(ids.numpy().tobytes() in known for ids in val.input_ids)


def _datasets(
    sides: RecordSides,
    config: TrainConfig,
    renderer: ChatRenderer,
    max_seq_length: int,
    *,
    is_pydoc: bool,
) -> tuple[SFTDataset, SFTDataset]:
    asked_for = config.mask_prompt
    train, val = (
        RecordsDataset(
            data=place_input(records, renderer.style),
            tokenizer=renderer.tokenizer,
            prompt_style=renderer.style,
            max_seq_length=max_seq_length,
            mask_prompt=is_pydoc if asked_for is None else asked_for,
            ignore_index=IGNORE_INDEX,
            renderer=renderer,
            # a conversation's prompts are turns of its own, which nobody wants to learn
            masks_turns=True if asked_for is None else asked_for,
        )
        for records in (sides.train, sides.val)
    )
    return train, val


def load_module(
    config: TrainConfig, style: str, tokenizer: Tokenizer, max_seq_length: int
) -> tuple[SFTDataset, SFTDataset]:
    """Training and validation side of the module that `config.data` names.

    Raises:
        Skip2BenchError: there is none of that name, or its data cannot be had.
    """
    module_class = _find_module(config.data)
    arguments = _read_arguments(config, module_class)
    try:
        module = module_class(
            mask_prompt=bool(config.mask_prompt),
            prompt_style=PromptStyle.from_name(style),
            **arguments,
        )
        module.connect(tokenizer=tokenizer, batch_size=1, max_seq_length=max_seq_length)
        module.prepare_data()
        module.setup()
        return module.train_dataset, module.test_dataset
    except ImportError as error:
        raise Skip2BenchError(
            f"data {config.data!r} needs a package: {error}; install it with pip"
        ) from error
    except OSError as error:  # every connection error is one
        _remove_empty(getattr(module, "download_dir", None))
        raise Skip2BenchError(
            f"data {config.data!r} could not be downloaded ({type(error).__name__}); connect this "
            f"machine to the network, or use --data {EMBEDDED_DATA} or a JSON file"
        ) from error
    except (TypeError, AttributeError, ValueError) as error:  # LIMA's missing token is the last
        raise Skip2BenchError(
            f"data {config.data!r} cannot be used ({error}); choose another, such as "
            f"{EMBEDDED_DATA} or a JSON file"
        ) from error


_SHARE = "val_split_fraction"
_SET_HERE = ("mask_prompt", "prompt_style", "ignore_index", "seed", "num_workers")
"""Arguments of modules that have an option of their own, or no effect."""


def _read_arguments(config: TrainConfig, module_class: Any) -> dict[str, Any]:
    """What the user has given of a module's own arguments.

    The share to validate on is one, where it differs from the default here.

    Raises:
        Skip2BenchError: the module has no such argument.
    """
    known = {item.name for item in dataclass_fields(module_class) if item.init} - {*_SET_HERE}
    given: dict[str, Any] = {}
    for name, text in read_pairs(config.data_options).items():
        if name not in known:
            raise Skip2BenchError(
                f"data_options names {name!r}, and data {config.data!r} has "
                f"{', '.join(sorted(known)) or 'no argument'}"
            )
        given[name] = Path(text) if name.endswith("_dir") else yaml.safe_load(text)
    share = config.val_split_fraction
    if share != TrainConfig.val_split_fraction and _SHARE not in given:
        if _SHARE in known:
            given[_SHARE] = share
        else:
            note(f"{_SHARE} {share:g} has no effect: {config.data} has a side to validate on")
    return given


def _find_module(data: str) -> Any:
    """The class of LitGPT's instruction data of that name."""
    import litgpt.data

    listed = [(name, getattr(litgpt.data, name)) for name in litgpt.data.__all__]
    modules = {
        name.lower(): kind
        for name, kind in listed
        if name != "JSON" and is_dataclass(kind) and "mask_prompt" in kind.__dataclass_fields__
    }
    if (module := modules.get(data.removeprefix("litgpt.data.").lower())) is not None:
        return module
    known = ", ".join(SUFFIXES)
    if os.path.isdir(data):
        raise Skip2BenchError(
            f"data {data!r} is a folder without train.json; give a file ({known}), or a folder "
            "with train.json and val.json"
        )
    if os.path.exists(data):
        raise Skip2BenchError(
            f"data {data!r} ends in {Path(data).suffix!r}; give a file that ends in {known}"
        )
    raise Skip2BenchError(
        f"data {data!r} is neither {EMBEDDED_DATA!r}, a file ({known}) nor a LitGPT data module; "
        f"modules: {', '.join(sorted(modules))}"
    )


def _remove_empty(folder: Path | None) -> None:
    """Remove what a download that failed has made, where it is empty."""
    with suppress(OSError):
        for path in (folder, folder.parent) if folder else ():
            path.rmdir()
