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
from skip2bench.models.folders import HUGGING_FACE_FILES, find_model_name, is_hugging_face

_SUFFIX = "-litgpt"


def convert_checkpoint(folder: Path) -> Path:
    """The LitGPT checkpoint made of a Hugging Face folder; one that is none stays as it is.

    What was converted before is not converted again.

    Raises:
        Skip2BenchError: LitGPT has no such model, or cannot convert it.
    """
    if not is_hugging_face(folder) or (folder / "lit_model.pth").exists():
        return folder
    target = folder.with_name(folder.name + _SUFFIX)
    if target.exists():
        check_checkpoint(target)
        note(f"converted before: {target}")
        return target
    name = find_model_name(folder)
    if name is None:
        raise Skip2BenchError(
            f"{str(folder)!r} has the sizes of no model that LitGPT knows, so it cannot be "
            "converted"
        )
    weights = [path for pattern in HUGGING_FACE_FILES for path in folder.glob(pattern)]
    size = sum(path.stat().st_size for path in weights)
    with making_folder(target, size, what="converting", flag="--convert") as aside:
        for path in folder.iterdir():
            if path.is_file():
                _bring(path, aside / path.name, is_large=path in weights)
        with Waiting(f"converting {folder.name} as {name}"), contextlib.redirect_stdout(sys.stderr):
            try:
                convert_hf_checkpoint(checkpoint_dir=aside, model_name=name)
            except Exception as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise Skip2BenchError(
                    f"LitGPT cannot convert {str(folder)!r} as {name} ({reason})"
                ) from error
        for path in weights:
            (aside / path.name).unlink()
    note(f"converted as {name}: {target}")
    return target


def _bring(path: Path, target: Path, *, is_large: bool) -> None:
    """Copy a file; of a large one a link, where the system has them."""
    if is_large:
        with contextlib.suppress(OSError):
            os.symlink(path.absolute(), target)
            return
    shutil.copy(path, target)
