"""Weights files: read without running anything in them, and checked against their model.

A `.pth` file is a pickle, which can hold code; torch's `weights_only` refuses it. The check costs
one pass over the file, tensor by tensor, and copies none of it.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from zipfile import is_zipfile

import torch
from litgpt.config import Config
from litgpt.model import GPT
from torch import Tensor

from skip2bench.errors import Skip2BenchError
from skip2bench.machine.out_of_memory import is_out_of_memory

_NAMED = 3
"""Names of tensors in an error."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def read_weights(path: Path, remedy: str) -> dict[str, Tensor]:
    """Map a file of tensors that torch.save wrote into memory.

    Args:
        path: The file; its tensors may stand under `model`.
        remedy: What to do where it is broken.

    Raises:
        Skip2BenchError: it cannot be read, or holds something else.
        MemoryError: there is no room to map it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of what is refused anyway
            content = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error).partition("\n")[0]) from error
        # torch raises many types for a broken file; whichever it is, the remedy is the same
        raise Skip2BenchError(
            f"{str(path)!r} cannot be read ({_explain(path, error)}); {remedy}"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise Skip2BenchError(f"{str(path)!r} holds no tensors by name; {remedy}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise Skip2BenchError(f"{str(path)!r} holds {name!r}, which is no tensor; {remedy}")
    return dict(content)


def _explain(path: Path, error: Exception) -> str:
    """Why torch cannot read it; its own text of a refused pickle advises to run that."""
    if path.stat().st_size == 0:
        return "it is empty"
    if not is_zipfile(path):
        return "it is no file that torch.save wrote, or an old one"
    if "weights only load failed" in str(error).lower():
        return "it holds something else than tensors, such as code, which is not run"
    return f"it is damaged: {str(error).partition(chr(10))[0]}"


def check_weights(path: Path, config: Config) -> None:
    """Check a base model's weights file: every tensor there, of its shape, and finite.

    Raises:
        Skip2BenchError: it is not so.
    """
    remedy = "download the checkpoint again"
    weights = read_weights(path, remedy)
    check_dtypes(path, weights, remedy)
    _check_names_and_shapes(path, weights, config)
    check_finite(path, weights, remedy)


def check_dtypes(path: Path, tensors: Mapping[str, Tensor], remedy: str) -> None:
    """Check that tensors are of the dtypes that training takes.

    Raises:
        Skip2BenchError: one is not.
    """
    for name, value in tensors.items():
        if value.dtype not in _DTYPES:
            dtype, *known = (str(kind).removeprefix("torch.") for kind in (value.dtype, *_DTYPES))
            raise Skip2BenchError(
                f"{name} in {str(path)!r} is {dtype}, none of {', '.join(known)}; {remedy}"
            )


def check_finite(path: Path, tensors: Mapping[str, Tensor], remedy: str) -> None:
    """Check that tensors hold neither NaN nor infinity, in one pass over each.

    Raises:
        Skip2BenchError: one does.
    """
    for name, value in tensors.items():
        if value.numel() == 0:
            continue
        bounds = torch.stack(torch.aminmax(value.detach()))
        if not bool(torch.isfinite(bounds).all()):
            raise Skip2BenchError(
                f"{name} in {str(path)!r} holds values that are not finite; {remedy}"
            )


def _check_names_and_shapes(path: Path, weights: dict[str, Tensor], config: Config) -> None:
    try:
        with torch.device("meta"):
            model = GPT(config)
    except Exception as error:
        # whatever LitGPT makes of its values, they describe no model
        raise Skip2BenchError(
            f"{str(path.with_name('model_config.yaml'))!r} describes no model that LitGPT can "
            f"build ({error}); download the checkpoint again"
        ) from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name, value in weights.items():
        if tuple(value.shape) != expected.get(name, tuple(value.shape)):
            raise _misfit(
                path, f"{name} has shape {tuple(value.shape)}, the model's {expected[name]}"
            )
    try:
        # LitGPT's own loading knows names of older checkpoints
        missing, unexpected = model.load_state_dict(dict(weights), strict=False, assign=True)
    except RuntimeError as error:
        raise _misfit(path, str(error).partition("\n")[0]) from error
    if missing or unexpected:
        raise _misfit(
            path,
            " and ".join(
                filter(None, (_name("it lacks", missing), _name("it has also", unexpected)))
            ),
        )


def _misfit(path: Path, reason: str) -> Skip2BenchError:
    return Skip2BenchError(
        f"the weights in {str(path)!r} are not those of the model_config.yaml beside them "
        f"({reason}); download the checkpoint again"
    )


def _name(verb: str, names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{verb} {', '.join(names[:_NAMED])}{more}" if names else ""
