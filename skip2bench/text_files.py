"""Text files that a user names: read whole, or refused in one line that says what to do."""

import os
import shlex
from pathlib import Path

from skip2bench.errors import Skip2BenchError


def read_text(path: Path, what: str) -> str:
    """Read a UTF-8 file, with a byte order mark or without.

    Args:
        path: The file.
        what: What it is, to name it in errors: "data file".

    Raises:
        Skip2BenchError: there is no such file, or it cannot be read, or it is not UTF-8.
    """
    name = f"{what} {str(path)!r}"
    if os.path.isdir(path):  # of a name that no system takes, Path.is_dir would raise
        raise Skip2BenchError(f"{name} is a folder; give a file")
    if not os.path.isfile(path):
        raise Skip2BenchError(f"{name} does not exist; check the path")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Skip2BenchError(
            f"{name} cannot be read ({error.strerror}); check its permissions"
        ) from error
    try:
        text = content.decode("utf-8-sig")  # Windows editors put a byte order mark first
    except UnicodeDecodeError as error:
        raise _wrong_encoding(name, path, content) from error
    if "\0" in text[:4]:  # Latin letters of UTF-16 are valid UTF-8 with NULs between them
        raise _wrong_encoding(name, path, content)
    return text


def check_folder(name: str, folder: Path | None) -> None:
    """Check that `folder` is one that can be written to, or can be made; nothing is written.

    Args:
        name: The option that gave it.
        folder: None is good.

    Raises:
        Skip2BenchError: it is a file, lies below one, or may not be written to.
    """
    if folder is None:
        return
    remedy = f"choose another --{name.replace('_', '-')}"
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        relation = "is" if nearest == folder else f"lies below {str(nearest)!r}, which is"
        raise Skip2BenchError(f"{name} {str(folder)!r} {relation} no folder; {remedy}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise Skip2BenchError(
            f"{name} {str(folder)!r} cannot be written to ({str(nearest)!r} is read-only here); "
            f"{remedy}"
        )


def _wrong_encoding(name: str, path: Path, content: bytes) -> Skip2BenchError:
    guess = _guess_encoding(content)
    if guess is None:
        return Skip2BenchError(f"{name} is no text (it holds binary data); give a UTF-8 text file")
    new = path.with_name(f"{path.stem}-utf8{path.suffix}")
    command = shlex.join(["iconv", "-f", guess, "-t", "UTF-8", str(path)])
    return Skip2BenchError(
        f"{name} is not UTF-8 but perhaps {guess}; convert it: {command} > {shlex.quote(str(new))}"
    )


def _guess_encoding(content: bytes) -> str | None:
    """What a file that is not UTF-8 may be in, by iconv's name; None where it is no text."""
    if content.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    if content.startswith((b"\x1f\x8b", b"PK", b"PAR1")):  # gzip, zip, Parquet
        return None
    if b"\0" in content[:4]:
        for guess, bytes_above in (("UTF-16BE", content[:1000:2]), ("UTF-16LE", content[1:1000:2])):
            if bytes_above.count(0) > len(bytes_above) / 2:
                return guess
    if b"\0" in content:
        return None
    try:
        text = content.decode("cp932")
    except UnicodeDecodeError:
        return "ISO-8859-1"
    has_kana = any("\u3040" <= char <= "\u30ff" or "\u4e00" <= char <= "\u9fff" for char in text)
    return "CP932" if has_kana else "ISO-8859-1"
