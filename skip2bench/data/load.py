"""Training and validation samples as token ids and labels.

Three sources: the embedded `pydoc` (see `stdlib`), an Alpaca JSON or JSONL file, and LitGPT's own
data modules by name, most of which download. Prompting, tokenizing and label masking are LitGPT's.
"""

import hashlib
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
from skip2bench.data.records import Record, is_records_file, load_records
from skip2bench.data.samples import IGNORE_INDEX, Samples, TokenizedData
from skip2bench.data.stdlib import INSTRUCTION, read_modules, sample_documented_functions
from skip2bench.data.styles import choose_prompt_style, note_style, place_input
from skip2bench.errors import Skip2BenchError

PYDOC_TRAIN, PYDOC_VAL = 2000, 200


def load_data(
    config: TrainConfig, tokenizer: Tokenizer, max_seq_length: int, model: str = ""
) -> TokenizedData:
    """Load what `config.data` names and tokenize it.

    Args:
        config: Uses data, mask_prompt, prompt_style, val_split_fraction, train_samples and
            val_samples.
        tokenizer: The base model's.
        max_seq_length: Samples are cut to this many tokens.
        model: LitGPT's name of the model, which decides what prompt_style `auto` is.

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
    path = Path(config.data)
    sides: tuple[list[Record], list[Record]] = ([], [])
    if config.data == EMBEDDED_DATA:
        name, sides = EMBEDDED_DATA, pydoc_records()
        train, val = _datasets(sides, config, style, tokenizer, max_seq_length, mask_prompt=True)
    elif is_records_file(config.data):
        name, sides = path.name, load_records(path, config.val_split_fraction)
        train, val = _datasets(sides, config, style, tokenizer, max_seq_length, mask_prompt=False)
    else:
        name, (train, val) = config.data, load_module(config, style, tokenizer, max_seq_length)
    moved = sum(
        placed is not record
        for dataset, side in zip((train, val), sides, strict=True)
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
        empty=sum(not record["output"].strip() for side in sides for record in side),
        shared=_count_shared(train_samples, val_samples),
        sha256=_hash(train_samples, val_samples),
        held_out=tuple(sides[1]),
    )


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


def _hash(*sides: Samples) -> str:
    digest = hashlib.sha256()
    for side in sides:
        for ids, labels in zip(side.input_ids, side.labels, strict=True):
            for tensor in (ids, labels):
                digest.update(tensor.numpy().astype("<i8").tobytes())
            digest.update(b"|")  # ends a sample
        digest.update(b"||")  # ends a side
    return digest.hexdigest()


def _datasets(
    sides: tuple[list[Record], list[Record]],
    config: TrainConfig,
    style: str,
    tokenizer: Tokenizer,
    max_seq_length: int,
    *,
    mask_prompt: bool,
) -> tuple[SFTDataset, SFTDataset]:
    train, val = (
        SFTDataset(
            data=place_input(records, style),
            tokenizer=tokenizer,
            prompt_style=style,
            max_seq_length=max_seq_length,
            mask_prompt=mask_prompt if config.mask_prompt is None else config.mask_prompt,
            ignore_index=IGNORE_INDEX,
        )
        for records in sides
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
    if os.path.exists(data):
        reason = (
            "is a folder, not" if os.path.isdir(data) else f"ends in {Path(data).suffix!r}, not"
        )
        raise Skip2BenchError(f"data {data!r} {reason} .json or .jsonl; give an Alpaca JSON file")
    raise Skip2BenchError(
        f"data {data!r} is neither {EMBEDDED_DATA!r}, a .json or .jsonl file nor a LitGPT data "
        f"module; modules: {', '.join(sorted(modules))}"
    )


def _remove_empty(folder: Path | None) -> None:
    """Remove what a download that failed has made, where it is empty."""
    with suppress(OSError):
        for path in (folder, folder.parent) if folder else ():
            path.rmdir()
