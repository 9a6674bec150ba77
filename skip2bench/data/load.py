"""Training and validation samples as token ids and labels.

Three sources: the embedded `pydoc` (see `stdlib`), records of the user's (see `files`), and
LitGPT's own data modules by name, most of which download. Prompting, tokenizing and label masking
are LitGPT's, but for conversations (see `chat`).
"""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from litgpt.data import SFTDataset
from litgpt.prompts import PromptStyle
from litgpt.tokenizer import Tokenizer
from torch import Tensor

from skip2bench.config.run import EMBEDDED_DATA
from skip2bench.config.train import TrainConfig
from skip2bench.data.chat import ChatRenderer, RecordsDataset, read_template
from skip2bench.data.files import SUFFIXES, is_data_place
from skip2bench.data.records import Record, RecordSides, load_records
from skip2bench.data.samples import IGNORE_INDEX, Samples, TokenizedData
from skip2bench.data.stdlib import INSTRUCTION, read_modules, sample_documented_functions
from skip2bench.data.styles import choose_prompt_style, note_style, place_input
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
        is_own = config.data == EMBEDDED_DATA
        name = EMBEDDED_DATA if is_own else Path(config.data).name
        sides = embedded_sides(config) if is_own else load_records(config)
        template = read_template(folder) if folder and config.prompt_style == "auto" else None
        form = PromptStyle.from_name(style)
        renderer = ChatRenderer(tokenizer=tokenizer, style=form, template=template)
        conversations = _count_chat(sides)
        if conversations:
            by = "the checkpoint's chat template" if template else f"prompt style {style}"
            amount = format_amount(conversations, "conversation")
            note(f"{amount}, rendered by {by}; loss on the assistant's turns")
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
    note_style(config.prompt_style, style, moved)
    train_samples, dropped = _tokenize(train, config.train_samples)
    val_samples, dropped_val = _tokenize(val, config.val_samples)
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
        sha256=_hash(train_samples, val_samples, tests=sides.test),
        held_out=tuple(sides.asked),
        conversations=conversations,
        renderer=renderer,
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


def _tokenize(dataset: SFTDataset, limit: int | None) -> tuple[Samples, int]:
    input_ids: list[Tensor] = []
    labels: list[Tensor] = []
    dropped = 0
    for i in range(len(dataset)):
        if limit is not None and len(input_ids) == limit:
            break
        item = dataset[i]
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


def _hash(*sides: Samples, tests: list[Record] | None) -> str:
    digest = hashlib.sha256()
    if tests is not None:  # what is asked is a part of the data, which no token says
        digest.update(json.dumps(tests, sort_keys=True).encode())
    for side in sides:
        for ids, labels in zip(side.input_ids, side.labels, strict=True):
            for tensor in (ids, labels):
                digest.update(tensor.numpy().astype("<i8").tobytes())
            digest.update(b"|")  # ends a sample
        digest.update(b"||")  # ends a side
    return digest.hexdigest()


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
    try:
        module = module_class(
            mask_prompt=bool(config.mask_prompt),
            prompt_style=PromptStyle.from_name(style),
            **_find_share(config, module_class),
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


def _find_share(config: TrainConfig, module_class: Any) -> dict[str, float]:
    """The share to validate on as the module's argument, where it differs from the default here."""
    share = config.val_split_fraction
    if share == TrainConfig.val_split_fraction:
        return {}
    if "val_split_fraction" in module_class.__dataclass_fields__:
        return {"val_split_fraction": share}
    note(f"val_split_fraction {share:g} has no effect: {config.data} has a side to validate on")
    return {}


def _find_module(data: str) -> Any:
    """The class of LitGPT's instruction data of that name."""
    import litgpt.data

    listed = [(name, getattr(litgpt.data, name)) for name in litgpt.data.__all__]
    modules = {
        name.lower(): kind
        for name, kind in listed
        if name != "JSON" and is_dataclass(kind) and "mask_prompt" in kind.__dataclass_fields__
    }
    if (module := modules.get(data.lower())) is not None:
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
