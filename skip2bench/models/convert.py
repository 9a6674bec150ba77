"""`--convert`: a Hugging Face checkpoint, converted by LitGPT into a folder beside it."""

import contextlib
import os
import shutil
import sys
from pathlib import Path

from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import Waiting, note
from skip2bench.io.whole import making_folder
from skip2bench.models.base import check_checkpoint
from skip2bench.models.folders import (
    HUGGING_FACE_FILES,
    WEIGHTS_FILE,
    convert_command,
    is_hugging_face,
    list_model_names,
)

_SUFFIX = "-litgpt"


def convert_checkpoint(folder: Path) -> Path:
    """The LitGPT checkpoint made of a Hugging Face folder; one that is none stays as it is.

    What was converted before is not converted again.

    Raises:
        Skip2BenchError: LitGPT has no such model, or cannot convert it.
    """
    if not is_hugging_face(folder) or (folder / WEIGHTS_FILE).exists():
        return folder
    named = folder if folder.name not in ("", "..") else folder.resolve()
    target = named.with_name(named.name + _SUFFIX)
    if target.exists():
        check_checkpoint(target)
        note(f"converted before: {target}")
        return target
    names = list_model_names(folder)
    if not names:
        raise Skip2BenchError(
            f"{str(folder)!r} has the sizes of no model that LitGPT knows, so it cannot be "
            "converted"
        )
    if len(names) > 1:
        raise Skip2BenchError(
            f"{str(folder)!r} may be one of several models, and nothing in its config.json says "
            f"which; convert it: {convert_command(folder)}"
        )
    (name,) = names
    weights = [path for pattern in HUGGING_FACE_FILES for path in folder.glob(pattern)]
    size = sum(path.stat().st_size for path in weights)
    try:
        _convert(folder, target, weights, size, name)
    except OSError as error:
        raise Skip2BenchError(
            f"cannot write {str(target)!r} ({error.strerror or error}); copy the model to where "
            "there is room, and convert it there"
        ) from error
    note(f"converted as {name}: {target}")
    return target


def _convert(folder: Path, target: Path, weights: list[Path], size: int, name: str) -> None:
    with making_folder(target, size, what="converting", flag="--convert") as aside:
        for path in folder.iterdir():
            if path.is_file():
                _bring(path, aside / path.name, is_large=path in weights)
        with Waiting(f"converting {folder.name} as {name}"), contextlib.redirect_stdout(sys.stderr):
            try:
                convert_hf_checkpoint(checkpoint_dir=aside, model_name=name)
            except OSError:
                raise
            except Exception as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise Skip2BenchError(
                    f"LitGPT cannot convert {str(folder)!r} as {name} ({reason})"
                ) from error
        for path in weights:
            (aside / path.name).unlink()


def _bring(path: Path, target: Path, *, is_large: bool) -> None:
    """Copy a file; of a large one a link, where the system has them."""
    if is_large:
        with contextlib.suppress(OSError):
            os.symlink(path.absolute(), target)
            return
    shutil.copy(path, target)
