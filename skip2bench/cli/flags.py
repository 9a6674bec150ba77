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

from skip2bench.config.litgpt import OF_MODULES, Translated, read_betas, translate
from skip2bench.config.train import EMBEDDED_DEFAULTS, TrainConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note

_MODEL_FLAGS = {"--model", "--checkpoint-dir"}
_WITH_MODEL = ("train", "bench", "compare", "tune", "doctor")
"""Commands that take the model's folder as their first word, as LitGPT's do."""
_WORDS = {"true": True, "false": False}
_SWITCHES = {
    item.name: bool(item.metadata.get("one_way"))
    for item in fields(TrainConfig)
    if get_type_hints(TrainConfig)[item.name] in (bool, Optional[bool])
}
"""Options that are on or off, and whether there is no flag that turns them off."""


def normalise_flags(arguments: list[str]) -> list[str]:
    """Bring LitGPT's spellings of flags to ours, those of every release.

    Underscores; `--train.epochs 3`, `--data JSON --data.json_path FILE`, `--eval.interval 5`,
    `--optimizer.lr 1e-4`; `--lora_key true`; the model's folder as the first word; `skip2lora_*`.
    Flags that change nothing here are named, and dropped with their values.

    Raises:
        Skip2BenchError: the model is named twice, or a flag asks for what cannot be had.
    """
    words = list(arguments)
    if len(words) > 1 and words[0] in _WITH_MODEL and not words[1].startswith("-"):
        words.insert(1, "--checkpoint-dir")
    result: list[str] = []
    ignored: list[str] = []
    while words:
        word = words.pop(0)
        if word.startswith("--") and len(word) > 2:
            result += _normalise(word, words, ignored, is_train=arguments[0] == "train")
        else:
            result.append(word)
    if ignored:
        note(f"no effect here: {', '.join(ignored)}")
    if {argument.partition("=")[0] for argument in result} >= _MODEL_FLAGS:
        raise Skip2BenchError("--model and --checkpoint-dir mean the same; give one of them")
    return result


_OF_TRAIN = ("batch_size", "warmup_steps", "eval_iters", "log_interval", "max_iters")
"""LitGPT's spellings that mean something else, or nothing, in other commands."""


def _normalise(word: str, left: list[str], ignored: list[str], *, is_train: bool) -> list[str]:
    """What a flag is here; of those behind it, its value is taken where it goes with the flag."""
    typed, equals, value = word[2:].partition("=")
    key = typed.replace("-", "_").replace(".init_args.", ".")
    if key == "data.json_path":
        key = "data"
    special = _find_special(key, equals, value, left, ignored)
    if special is not None:
        return special
    is_theirs = "." in key or key.startswith("skip2lora_") or key in ("logger_name", "access_token")
    found = Translated()
    if is_theirs or (is_train and key in _OF_TRAIN):
        found.take(key, _SAID)
    else:
        found.values[key] = _SAID
    if found.problems:
        raise Skip2BenchError(f"--{typed}: {found.problems[0]}")
    if found.ignored:
        ignored += [f"--{it}" for it in found.ignored]
        _take_value(equals, left)
        return []
    (name,) = found.values
    if name in _SWITCHES and (is_on := _WORDS.get(_peek(value, left).lower())) is not None:
        _take_value(equals, left)
        no = "" if is_on else "no-"
        return [f"--{no}{name.replace('_', '-')}"] if is_on or not _SWITCHES[name] else []
    return [f"--{name.replace('_', '-')}{equals}{value}"]


def _find_special(
    key: str, equals: str, value: str, left: list[str], ignored: list[str]
) -> list[str] | None:
    """Flags that stand for one of LitGPT's that says more than a value of one option here."""
    told = value or (left[0] if left else "")
    is_module = key == "data" and _peek(value, left) == "JSON" and _has_path(left)
    made: list[str] = []
    if key == "optimizer":
        translate({"optimizer": told}).check()
    elif key == "optimizer.betas":
        first, second = read_betas(told)
        made = ["--adam-beta1", str(first), "--adam-beta2", str(second)]
    elif key.startswith("data.") and key.removeprefix("data.") in OF_MODULES:
        made = ["--data-options", f"{key.removeprefix('data.')}={told}"]
    elif key == "devices" and told == "auto":
        ignored.append("--devices auto (one is used; give their number)")
    elif not is_module:
        return None
    _take_value(equals, left)
    return made


_SAID = object()
"""Stands for the value of a flag, which is whatever follows it."""


def _has_path(left: list[str]) -> bool:
    return any(word.replace("-", "_").startswith("__data.json_path") for word in left)


def _peek(value: str, left: list[str]) -> str:
    return value or (left[0] if left and not left[0].startswith("-") else "")


def _take_value(equals: str, left: list[str]) -> None:
    """Take what follows a flag, where that is its value."""
    if not equals and left and not left[0].startswith("-"):
        left.pop(0)


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
