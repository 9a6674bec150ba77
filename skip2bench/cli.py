"""The command line: parse flags, build a configuration, call one function, print.

Flags are made from the fields of the configurations, so that flag, YAML key and Python argument
share one name and one text. Heavy imports wait until a command runs: `--help` is instant.
"""

import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Optional, get_args, get_type_hints

import typer

from skip2bench import __version__
from skip2bench.config import EMBEDDED_DEFAULTS, BenchConfig, ReportConfig, TrainConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.results import to_json

app = typer.Typer(
    help="Is Skip2-LoRA worth it against traditional LoRA, "
    "on your model, your data and your machine?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_LITGPT_SPELLINGS = {
    "--skip2lora-block-indices": "--blocks",
    "--skip2lora-output-layer": "--target",
    "--logger-name": "--logger",
    "--eval.interval": "--eval-interval",
}


def main() -> None:
    """Run the command line; a Skip2BenchError becomes one line on stderr and exit status 1."""
    if sys.stdout is None:  # closed by the caller
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        app(args=normalise_flags(sys.argv[1:]), prog_name="skip2bench")
    except Skip2BenchError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        sys.exit(1)


def normalise_flags(arguments: list[str]) -> list[str]:
    """Bring LitGPT's spellings of flags to ours: underscores, `--train.`, `--skip2lora_*`."""
    result = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            name = name.replace("_", "-").replace("--train.", "--")
            argument = _LITGPT_SPELLINGS.get(name, name) + equals + value
        result.append(argument)
    return result


def _flags_from(
    config_class: type, *extra: inspect.Parameter
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: give a command a flag for each field of `config_class`, None where not typed."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(config_class)
        own_defaults = EMBEDDED_DEFAULTS if config_class is TrainConfig else {}
        # a command's own flags first, then those that it shares with others
        ordered = sorted(
            fields(config_class), key=lambda f: f.name not in config_class.__annotations__
        )
        parameters = [
            *(_flag(item, hints[item.name], own_defaults.get(item.name)) for item in ordered),
            *extra,
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _flag(item: Any, hint: Any, embedded_default: Any) -> inspect.Parameter:
    name = item.name.replace("_", "-")
    default = ""
    if item.default not in (None, MISSING, False):
        default = f" [default: {_default_text(item.default)}"
        if embedded_default is not None:
            default += f"; for the embedded model {embedded_default}"
        default += "]"
    if NoneType in get_args(hint):
        hint = next(inner for inner in get_args(hint) if inner is not NoneType)
    kind: Any = hint if hint in (int, float, bool, Path) else str
    if item.metadata.get("repeatable"):
        kind = list[str]
    flag = f"--{name}/--no-{name}" if kind is bool and item.name != "force" else f"--{name}"
    option = typer.Option(flag, help=item.metadata["help"] + default, show_default=False)
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Optional[kind], option],
    )


def _default_text(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else "yes" if value is True else str(value)


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """Only the flags that were typed."""
    return {name: value for name, value in flags.items() if value is not None and value != []}


def _extra(name: str, kind: Any, text: str, default: Any = None) -> inspect.Parameter:
    option = typer.Option(f"--{name}", help=text, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


_JSON = _extra("json", bool, "Print the summary as JSON.", default=False)


@app.command()
@_flags_from(BenchConfig, _JSON)
def bench(**flags: Any) -> None:
    """Measure parameters, forward, backward, FLOPs and memory of LoRA and Skip2-LoRA."""
    from skip2bench.config_file import coerce

    as_json = flags.pop("json")
    values = _given(flags)
    if "methods" in values:
        values["methods"] = tuple(name.strip() for name in values["methods"].split(","))
    config = BenchConfig(**coerce(BenchConfig, values))

    from skip2bench.bench import run_bench
    from skip2bench.screens import print_bench

    _print_result(run_bench(config, sys.argv[1:]), as_json, print_bench)


@app.command()
@_flags_from(
    TrainConfig,
    _JSON,
    _extra("config", Optional[Path], "YAML file, LitGPT's or a run's config.yaml."),
)
def train(**flags: Any) -> None:
    """Fine-tune with LoRA, Skip-LoRA or Skip2-LoRA; write metrics, adapter and summary."""
    from skip2bench.config_file import load_train_config

    as_json, path = flags.pop("json"), flags.pop("config")
    config, ignored = load_train_config(_given(flags), path)

    from skip2bench.console import note
    from skip2bench.screens import print_train
    from skip2bench.train import run_training

    if ignored:
        note(f"no effect here: {', '.join(ignored)}")
    _print_result(run_training(config, sys.argv[1:]), as_json, print_train)


@app.command()
@_flags_from(ReportConfig)
def report(**flags: Any) -> None:
    """Write the evaluation report, in Markdown, from the files in a results folder."""
    from skip2bench.report import render_report

    config = ReportConfig(**_given(flags))
    text = render_report(config)
    if config.output is None:
        _print_text(text)
        return
    try:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Skip2BenchError(
            f"cannot write {str(config.output)!r} ({error.strerror}); choose another --output"
        ) from error


@app.command()
def merge(
    adapter_dir: Annotated[Path, typer.Argument(help="The 'final' folder of a run.")],
) -> None:
    """Merge a LoRA adapter into its base model, with LitGPT's own merge.

    A Skip adapter cannot be merged.
    """
    from skip2bench.checkpoints import merge_adapter

    sys.stdout.write(f"{merge_adapter(adapter_dir)}\n")


_cache_app = typer.Typer(
    help="Skip-Caches that runs have kept with --cache-dir.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(_cache_app, name="cache")
_CacheDir = Annotated[Path, typer.Option("--cache-dir", help="The folder that keeps them.")]
_Names = Annotated[Optional[list[str]], typer.Argument(help="Caches (default: all).")]


@_cache_app.command("list")
def list_caches(cache_dir: _CacheDir) -> None:
    """List the caches of a folder: model, data, blocks, precision, size, age."""
    from skip2bench.cache_folder import CacheFolder
    from skip2bench.screens import print_caches

    print_caches(CacheFolder(cache_dir).select(None))


@_cache_app.command("verify")
def verify_caches(cache_dir: _CacheDir, names: _Names = None) -> None:
    """Check sizes and checksums of caches; exit status 1 where one is damaged."""
    from skip2bench.cache_entry import DamagedError
    from skip2bench.cache_folder import CacheFolder

    damaged = []
    for entry in CacheFolder(cache_dir).select(names):
        try:
            entry.verify()
        except (DamagedError, OSError) as error:
            damaged.append(entry.name)
            _print_text(f"{entry.name} damaged: {error}\n")
        else:
            _print_text(f"{entry.name} ok\n")
    if damaged:
        raise Skip2BenchError(
            f"{len(damaged)} caches are damaged; remove them: "
            f"skip2bench cache remove --cache-dir {cache_dir} {' '.join(damaged)}"
        )


@_cache_app.command("remove")
def remove_caches(
    cache_dir: _CacheDir,
    names: _Names = None,
    all_caches: Annotated[bool, typer.Option("--all", help="Remove all of them.")] = False,
) -> None:
    """Remove caches by name, or all of a folder with --all."""
    from skip2bench.cache_folder import CacheFolder

    if bool(names) == all_caches:
        raise Skip2BenchError("say which caches to remove: their names, or --all")
    folder = CacheFolder(cache_dir)
    for entry in folder.select(names):
        folder.remove(entry.name)
        _print_text(f"{entry.name} removed\n")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        sys.stdout.write(f"skip2bench {__version__}\n")
        raise typer.Exit


def _print_text(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = None  # the reader has seen enough, as `head` does
    except OSError as error:
        raise Skip2BenchError(
            f"cannot write to standard output ({error.strerror}); use --output or another file"
        ) from error


def _print_result(
    summary: dict[str, Any], as_json: bool, print_summary: Callable[[dict[str, Any]], None]
) -> None:
    if as_json:
        _print_text(to_json(summary))
    else:
        print_summary(summary)
