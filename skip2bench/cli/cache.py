"""The commands of `skip2bench cache`: list, verify and remove what runs have kept."""

import shlex
from pathlib import Path
from typing import Annotated, Optional

import typer

from skip2bench.cli.standard_output import print_text
from skip2bench.errors import Skip2BenchError
from skip2bench.io.units import format_bytes

cache_app = typer.Typer(
    help="Skip-Caches that runs have kept with --cache-dir.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_CacheDir = Annotated[Path, typer.Option("--cache-dir", help="The folder that keeps them.")]
_Names = Annotated[Optional[list[str]], typer.Argument(help="Caches (default: all).")]


@cache_app.command("list")
def list_caches(cache_dir: _CacheDir) -> None:
    """List the caches of a folder: model, data, blocks, precision, size, age."""
    from skip2bench.cache.kept import CacheFolder
    from skip2bench.cli.screens import print_caches

    print_caches(CacheFolder(cache_dir).select(None))


@cache_app.command("verify")
def verify_caches(cache_dir: _CacheDir, names: _Names = None) -> None:
    """Check sizes and checksums of caches; exit status 1 where one is damaged."""
    from skip2bench.cache.kept import CacheFolder, DamagedError

    damaged = []
    entries = CacheFolder(cache_dir).select(names)
    if not entries:
        print_text(f"no cache in {cache_dir}\n")
    for entry in entries:
        try:
            entry.verify()
        except (DamagedError, OSError) as error:
            damaged.append(entry.name)
            print_text(f"{entry.name} damaged: {error}\n")
        else:
            print_text(f"{entry.name} ok\n")
    if damaged:
        words = ["skip2bench", "cache", "remove", "--cache-dir", str(cache_dir), *damaged]
        raise Skip2BenchError(f"damaged: {', '.join(damaged)}; remove with: {shlex.join(words)}")


@cache_app.command("remove")
def remove_caches(
    cache_dir: _CacheDir,
    names: _Names = None,
    all_caches: Annotated[bool, typer.Option("--all", help="Remove all of them.")] = False,
) -> None:
    """Remove caches by name, or all of a folder with --all."""
    from skip2bench.cache.kept import CacheFolder

    if bool(names) == all_caches:
        raise Skip2BenchError("say which caches to remove: their names, or --all")
    folder = CacheFolder(cache_dir)
    for entry in folder.select(names):
        folder.remove(entry.name)
        print_text(f"{entry.name} removed\n")
    if all_caches and (freed := folder.clear_left_over()):
        print_text(f"{format_bytes(freed)} that killed builds had left removed\n")
