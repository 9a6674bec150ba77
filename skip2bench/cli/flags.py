"""Flags of the commands, made from the fields of their configurations.

Flag, YAML key and Python argument share one name and one text; LitGPT's spellings are taken too.
"""

import inspect
from collections.abc import Callable, Collection
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Optional, get_args, get_type_hints

import typer

from skip2bench.config.train import EMBEDDED_DEFAULTS, TrainConfig
from skip2bench.errors import Skip2BenchError

_MODEL_FLAGS = {"--model", "--checkpoint-dir"}
_LITGPT_SPELLINGS = {
    "--skip2lora-block-indices": "--blocks",
    "--skip2lora-output-layer": "--target",
    "--logger-name": "--logger",
    "--eval.interval": "--eval-interval",
}


def normalise_flags(arguments: list[str]) -> list[str]:
    """Bring LitGPT's spellings of flags to ours: underscores, `--train.`, `--skip2lora_*`.

    Raises:
        Skip2BenchError: the model is named twice.
    """
    result = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            name = name.replace("_", "-").replace("--train.", "--")
            argument = _LITGPT_SPELLINGS.get(name, name) + equals + value
        result.append(argument)
    if {argument.partition("=")[0] for argument in result} >= _MODEL_FLAGS:
        raise Skip2BenchError("--model and --checkpoint-dir mean the same; give one of them")
    return result


def flags_from(
    *config_classes: type, extra: tuple[inspect.Parameter, ...] = (), without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: give a command a flag for each field of the classes, None where not typed.

    Of two fields of one name the first class's counts; fields without a help text, and those named
    in `without`, get no flag.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        flags: dict[str, inspect.Parameter] = {}
        for config_class in config_classes:
            hints = get_type_hints(config_class)
            own_defaults = EMBEDDED_DEFAULTS if config_class is TrainConfig else {}
            for item in _own_first(config_class):
                if item.metadata["help"] and item.name not in without:
                    flag = _flag(item, hints[item.name], own_defaults.get(item.name))
                    flags.setdefault(item.name, flag)
        parameters = [*flags.values(), *extra]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _own_first(config_class: type) -> list[Field[Any]]:
    """Fields of a configuration: a command's own, then those that it shares with others."""
    own = config_class.__annotations__
    return sorted(fields(config_class), key=lambda item: item.name not in own)


def _flag(item: Any, hint: Any, embedded_default: Any) -> inspect.Parameter:
    name = item.name.replace("_", "-")
    default = ""
    if item.default not in (None, MISSING, False, ()):
        default = f" [default: {_default_text(item.default)}"
        if embedded_default is not None:
            default += f"; for the embedded model {embedded_default}"
        default += "]"
    if NoneType in get_args(hint):
        left = [inner for inner in get_args(hint) if inner is not NoneType]
        hint = left[0] if len(left) == 1 else hint  # of several, the field's own check decides
    # tuples are comma-separated text; of a path, Path("") would hide that nothing was given
    kind: Any = hint if hint in (int, float, bool) else str
    if item.metadata.get("repeatable"):
        kind = list[str]
    can_negate = kind is bool and not item.metadata.get("one_way")
    flag = f"--{name}/--no-{name}" if can_negate else f"--{name}"
    also = item.metadata.get("also")
    option = typer.Option(
        flag,
        *([f"--{also.replace('_', '-')}"] if also else []),
        help=item.metadata["help"] + default,
        show_default=False,
        metavar="PATH" if hint is Path else None,
    )
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Optional[kind], option],
    )


def _default_text(value: Any) -> str:
    return (
        ",".join(map(str, value))
        if isinstance(value, tuple)
        else "yes"
        if value is True
        else str(value)
    )


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """Only the flags that were typed."""
    return {name: value for name, value in flags.items() if value is not None and value != []}


def extra_flag(name: str, kind: Any, text: str, default: Any = None) -> inspect.Parameter:
    """A flag that is no field of a configuration."""
    option = typer.Option(f"--{name}", help=text, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )
