"""LoRA that others wrote, on the same data: a cell that runs a peer, with a run folder like any.

Its own loss is never taken for granted: the adapter that a peer leaves is loaded here and validated
as every other method's. What a peer does otherwise, it lists as `differences`.
"""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from lightning.fabric import Fabric
from litgpt.model import GPT
from torch import Tensor, nn

from skip2bench.compare.peers.peer import Peer
from skip2bench.config.options import CONDITIONS, switch_names, to_plain
from skip2bench.config.peers import PEERS
from skip2bench.config.run import EMBEDDED_DATA
from skip2bench.config.train import TrainConfig
from skip2bench.data.files import is_data_place
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import note
from skip2bench.io.text import read_yaml
from skip2bench.io.units import format_amount
from skip2bench.machine.environment import weights_dtype
from skip2bench.machine.processor_use import ProcessorMeter
from skip2bench.machine.signals import interrupted_by_sigterm
from skip2bench.models.base import load_checkpoint
from skip2bench.models.folders import CONFIG_FILE
from skip2bench.models.methods import build_model, count_parameters
from skip2bench.models.releases import is_older
from skip2bench.models.tokenizer import begins_by_name
from skip2bench.results.answers import write_answers
from skip2bench.results.run_folder import open_run_folder, record_run
from skip2bench.results.run_records import (
    ProcessorUse,
    ScoreFigures,
    TrainFigures,
    TrainResult,
    TrainStart,
    TrainSummary,
)
from skip2bench.train.objective import Validation, validate_tokens
from skip2bench.train.plan import TrainingPlan, plan_training
from skip2bench.train.score import hold_exam

OTHER_STEPS = (
    "makes fewer steps of full batches, where the others' last batch of an epoch is smaller"
)
OF_LAST_ADAPTER = (
    "its answers and forgetting are those of its last adapter, the others' those of the adapter "
    "with the lowest validation loss"
)


def check_peers(names: tuple[str, ...], plan: TrainingPlan) -> None:
    """Check that the peers can run on the data and model of a comparison.

    Raises:
        Skip2BenchError: a package is missing, a switch is on that peers do not have here, or the
            data is of a kind that peers cannot get.
    """
    config = plan.config
    for name in switch_names(config, *CONDITIONS) if names else ():
        if getattr(config, name):
            raise Skip2BenchError(
                f"peers run without {name}, so that they would not compare; leave it or --peers out"
            )
    _check_data(plan)
    size, batch = plan.micro_batch_size or 1, config.global_batch_size
    if names and batch % size and size < batch:
        raise Skip2BenchError(
            f"peers accumulate whole micro-batches, and global_batch_size {batch} is no multiple "
            f"of micro_batch_size {size}; give another --micro-batch-size, or leave --peers out"
        )
    programs = {PEERS[name].program for name in names}
    if "litgpt" in programs:
        _check_litgpt(plan)
    if "peft" in programs:
        missing = [name for name in ("transformers", "peft", "accelerate") if not find_spec(name)]
        if missing:
            raise Skip2BenchError(
                f"the peer 'peft' needs {', '.join(missing)}; pip install 'skip2bench[peers]'"
            )
        from skip2bench.compare.peers.peft import make_hf_config

        make_hf_config(plan)


def _check_litgpt(plan: TrainingPlan) -> None:
    """Raise a Skip2BenchError for what LitGPT's own command refuses, or does otherwise."""
    size, most = plan.micro_batch_size or 1, plan.config.global_batch_size
    if size > most:
        raise Skip2BenchError(
            f"the peer 'litgpt' refuses micro_batch_size {size} above "
            f"global_batch_size {most}; lower --micro-batch-size"
        )
    folder = plan.base_folder
    if is_older(read_yaml(folder / CONFIG_FILE, "file")):
        raise Skip2BenchError(
            f"the peer 'litgpt' cannot read {str(folder)!r}, which an older LitGPT has made; leave "
            "it out, or convert the model again"
        )
    if begins_by_name(folder) != plan.begins_prompts:
        raise Skip2BenchError(
            f"the peer 'litgpt' goes by the folder's name {folder.resolve().name!r} for how "
            f"prompts begin, which is otherwise here; call the folder {plan.model_config.name!r}"
        )


def _check_data(plan: TrainingPlan) -> None:
    """Raise a Skip2BenchError for data, or a prompt style, that peers cannot get."""
    config = plan.config
    if config.data != EMBEDDED_DATA and not is_data_place(config.data):
        raise Skip2BenchError(f"peers cannot train on {config.data!r}; give pydoc or a data file")
    if os.path.isfile(plan.prompt_style):
        raise Skip2BenchError(
            f"peers know LitGPT's prompt styles, and {plan.prompt_style!r} is a file; leave one of "
            "them out"
        )
    if plan.data.conversations:
        raise Skip2BenchError(
            f"peers cannot train on {format_amount(plan.data.conversations, 'conversation')} of "
            f"{config.data!r}; give records with an instruction and an output, or leave --peers out"
        )
    if plan.data.dropped:
        raise Skip2BenchError(
            f"peers cannot leave out {format_amount(plan.data.dropped, 'sample')} without a "
            "supervised token; "
            "raise --max-seq-length or remove them"
        )


def run_peer(name: str, config: TrainConfig, arguments: Sequence[str]) -> TrainResult:
    """Train with a peer, validate what it leaves, write the run folder, and return its summary.

    Raises:
        Skip2BenchError: bad input, or the peer failed.
    """
    started = time.monotonic()
    plan = plan_training(config)
    check_peers((name,), plan)
    environment = plan.describe_environment(arguments)
    known = plan.describe().joined(TrainStart(kind="train", label=PEERS[name].label, peer=name))
    with (
        interrupted_by_sigterm(),
        open_run_folder(
            "train", plan.model_name, name, config.out_dir, force=config.force
        ) as folder,
        record_run(
            folder, to_plain(config), environment, TrainSummary.begin(known), started
        ) as recording,
    ):
        recording.add(_train_and_validate(name, plan, folder / name))
    return TrainResult.of(recording.summary, folder=str(folder))


def _train_and_validate(name: str, plan: TrainingPlan, folder: Path) -> TrainFigures:
    folder.mkdir()
    fabric = Fabric(accelerator=plan.device.type, devices=1, precision=plan.precision)
    note(f"{PEERS[name].label}: training")
    meter = ProcessorMeter()
    meter.enter("peer")
    try:
        run = _find_peer(name)(plan, folder)
    finally:
        for copy in ("records", "base"):  # of the data and of the weights
            shutil.rmtree(folder / copy, ignore_errors=True)
    differences = [*run.differences]
    if run.steps != plan.steps:
        differences.append(OTHER_STEPS)
    if plan.config.keep == "best" and (plan.exam or plan.domain):
        differences.append(OF_LAST_ADAPTER)
    use = meter.total(["peer"])
    processor = ProcessorUse(**asdict(use)) if use else ProcessorUse()
    base = load_checkpoint(plan.base_folder, plan.device, weights_dtype(plan.precision))
    model = build_model(plan.settings, base, plan.device, plan.config.seed).eval()
    total, trainable = count_parameters(model)

    def losses() -> tuple[Validation, float | None]:
        with fabric.autocast():
            val = validate_tokens(fabric, model, plan.data.val)
            domain = validate_tokens(fabric, model, plan.domain).loss if plan.domain else None
        return val, domain

    initial, domain_before = losses()
    expected = {key for key, p in model.named_parameters() if p.requires_grad}
    if run.adapter.keys() != expected:
        raise RuntimeError(
            f"{name} left other tensors than LoRA's: {run.adapter.keys() ^ expected}"
        )
    model.load_state_dict({k: v.to(plan.device) for k, v in run.adapter.items()}, strict=False)
    _multiply_rows(model, run.row_factors)
    final, domain_after = losses()
    score = ScoreFigures()
    if plan.exam is not None:
        score, answers = hold_exam(plan.exam, fabric, model, lambda: None)
        write_answers(folder.parent, answers)
    own = ("adapter", "row_factors")
    figures = {key: value for key, value in asdict(run).items() if key not in own}
    return TrainFigures.of(
        score,
        **(figures | {"differences": differences}),
        processor={"training": processor, "steps": processor},  # its clock is inside its program
        epochs=min(
            run.steps * plan.config.global_batch_size / len(plan.data.train), plan.config.epochs
        ),
        total_parameters=total + run.trainable_parameters - trainable,
        cache_bytes=0,
        initial_val_loss=initial.loss,
        final_val_loss=final.loss,
        best_val_loss=min(initial.loss, final.loss),
        initial_next_token_accuracy=initial.next_token_accuracy,
        final_next_token_accuracy=final.next_token_accuracy,
        domain_loss_before=domain_before,
        domain_loss_after=domain_after,
        forgetting=None
        if domain_before is None or domain_after is None
        else domain_after - domain_before,
    )


@torch.no_grad()
def _multiply_rows(model: GPT, factors: Mapping[str, Tensor]) -> None:
    """Give weights (d_out, d_in) rows of other lengths; a tied one stays what it is elsewhere."""
    for name, factor in factors.items():
        place, _, own = name.rpartition(".")
        module = model.get_submodule(place)
        weight = getattr(module, own)
        scaled = (factor.to(weight.device)[:, None] * weight).to(weight.dtype)
        setattr(module, own, nn.Parameter(scaled, requires_grad=False))


def _find_peer(name: str) -> Peer:
    kind = PEERS[name]
    if kind.program == "litgpt":
        from skip2bench.compare.peers.litgpt import train_with_litgpt

        return train_with_litgpt
    from skip2bench.compare.peers.peft import train_with_peft

    return partial(train_with_peft, kind=kind)
