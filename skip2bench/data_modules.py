"""LitGPT's own data modules of instructions by name; most download their data."""

import os
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from litgpt.data import SFTDataset
from litgpt.prompts import PromptStyle
from litgpt.tokenizer import Tokenizer

from skip2bench.config import EMBEDDED_DATA, TrainConfig
from skip2bench.errors import Skip2BenchError


def load_module(
    config: TrainConfig, tokenizer: Tokenizer, max_seq_length: int
) -> tuple[SFTDataset, SFTDataset]:
    """Training and validation side of the module that `config.data` names.

    Raises:
        Skip2BenchError: there is none of that name, or its data cannot be had.
    """
    module_class = _find_module(config.data)
    try:
        module = module_class(
            mask_prompt=bool(config.mask_prompt),
            prompt_style=PromptStyle.from_name(config.prompt_style),
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
