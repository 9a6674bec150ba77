"""What answers cost: tokens/s and memory of the base and of what training makes of it.

A prompt is read at once (prefill), then tokens come one by one (decode), with LitGPT's key-value
cache and generation. Forms: the base; LoRA merged into it, which is the base's own shape; Skip
adapters beside it, as hooks; and the ordinary model that `export` makes of both. They are timed in
interleaved rounds and compared by round with the base; memory comes from processes of their own.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from litgpt.config import Config
from litgpt.generate.base import next_token
from litgpt.model import GPT
from torch import Tensor

from skip2bench.bench.own_process import measure_in_own_process
from skip2bench.bench.summary import (
    Rows,
    blocks_text,
    by_round,
    compare_rounds,
    summarise_rounds,
)
from skip2bench.config.commands import BenchConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.io.console import Bar, note
from skip2bench.machine.clock import stopwatch
from skip2bench.machine.environment import weights_dtype
from skip2bench.machine.memory import read_peak_memory, release_memory, reset_peak_memory
from skip2bench.machine.out_of_memory import DoesNotFitError, fitting
from skip2bench.machine.processor_use import ProcessorMeter
from skip2bench.models.adapters import merged_weights
from skip2bench.models.base import EMBEDDING, Base, build_plain_model, load_base
from skip2bench.models.generation import key_value_cache
from skip2bench.models.methods import MethodSettings, build_model
from skip2bench.models.skip import SkipGPT
from skip2bench.models.widen import (
    Widening,
    check_can_widen,
    choose_epsilon,
    plan_layout,
    widened_config,
)
from skip2bench.results.bench_records import InferenceFigures

Form = Literal["base", "merged", "adapters", "exported"]
NEW_TOKENS = 32
"""Of an answer."""
_WARMUPS = 2
_SPREAD = 64.0
"""A block's output is at least so small a share of the last one's, in mean squares."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A form to measure."""

    form: Form
    settings: MethodSettings | None
    """None for the base."""

    @property
    def key(self) -> tuple[str, str]:
        """Of its measurements."""
        return self.form, self.settings.slug if self.settings else ""


_BASE = Candidate(form="base", settings=None)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """One candidate's memory."""

    config: BenchConfig
    candidate: Candidate
    device: torch.device
    precision: str
    threads: int


def list_candidates(all_settings: Sequence[MethodSettings], model: Config) -> list[Candidate]:
    """The base, then what becomes of each method that has adapters; what cannot be is noted."""
    found = [_BASE]
    for settings in all_settings:
        if settings.skip is not None:
            forms: tuple[Form, ...] = ("adapters", "exported")
            try:
                check_can_widen(model, settings.skip)
            except Skip2BenchError as error:
                note(f"{settings.label}: its exported model is left out: {error}")
                forms = ("adapters",)
        elif settings.lora is not None:
            forms = ("merged",)
        else:
            continue  # the base's own shape, without a word of adapters
        found += [Candidate(form=form, settings=settings) for form in forms]
    # skip and skip2 train the same adapters
    seen: dict[Any, Candidate] = {}
    for candidate in found:
        own = candidate.settings
        adapters = (own.skip or own.slug) if own else None
        seen.setdefault((candidate.form, adapters), candidate)
    return list(seen.values())


def measure_inference(
    config: BenchConfig,
    all_settings: Sequence[MethodSettings],
    model: Config,
    device: torch.device,
    precision: str,
    meter: ProcessorMeter,
) -> tuple[tuple[InferenceFigures, ...], Rows]:
    """Measure all forms; the meter is told of what is timed, as part `inference`.

    Returns:
        A record each, the base first; and the raw measurements.
    """
    candidates = list_candidates(all_settings, model)
    entries = {it.key: _measure_memory(config, it, device, precision) for it in candidates}
    to_time = [it for it in candidates if entries[it.key].status == "ok"]
    rows = _measure_times(config, to_time, device, precision, meter)
    return tuple(_summarise(entries[it.key], it, rows) for it in candidates), rows


def _name(candidate: Candidate) -> str:
    label = candidate.settings.label if candidate.settings else "base model"
    return f"{label}, {candidate.form}" if candidate.settings else label


def _measure_memory(
    config: BenchConfig, candidate: Candidate, device: torch.device, precision: str
) -> InferenceFigures:
    note(f"{_name(candidate)}: memory of answers in a process of its own")
    request = _Request(
        config=config,
        candidate=candidate,
        device=device,
        precision=precision,
        threads=torch.get_num_threads(),
    )
    figures = measure_in_own_process(_measure_here, request, device.type)
    own = candidate.settings
    figures = {key: value for key, value in figures.items() if key in InferenceFigures.model_fields}
    return InferenceFigures(
        form=candidate.form,
        label=own.label if own else None,
        method=own.method.name if own else None,
        blocks=own.blocks if own else None,
        rank=own.rank if own else None,
        new_tokens=NEW_TOKENS,
        **figures,
    )


def _measure_here(request: _Request) -> dict[str, Any]:
    torch.set_num_threads(request.threads)
    try:
        with fitting("weights"):
            dtype = weights_dtype(request.precision)
            base = load_base(request.config.model, request.device, dtype, request.config.seed)
            asked = _prepare(request.config, request.candidate, base, request.precision)
            difference = None
            if request.candidate.form == "exported":
                adapted = replace(request.candidate, form="adapters")
                difference = _difference(
                    asked, _prepare(request.config, adapted, base, request.precision)
                )
        del base  # beside merged and exported weights it is not needed
        reset_peak_memory(request.device)
        with fitting("inference"):
            asked.answer()
        return {
            "status": "ok",
            "parameters": asked.parameters,
            "width": asked.model.config.n_embd,
            "prompt_tokens": len(asked.prompt),
            "peak_memory_bytes": read_peak_memory(request.device),
            "relative_difference": difference,
        }
    except DoesNotFitError as error:
        return error.describe()


class _Asked:
    """A model and a prompt."""

    def __init__(self, model: GPT, prompt: Tensor, fabric: Fabric) -> None:
        self.model, self.prompt, self._fabric = model, prompt, fabric

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @torch.inference_mode()
    def answer(self) -> dict[str, float]:
        """Read the prompt and make the new tokens; seconds of the prompt, and of a token."""
        device, length = self.prompt.device, len(self.prompt)
        with self._fabric.autocast(), key_value_cache(self.model, length + NEW_TOKENS):
            with stopwatch(device) as read:
                places = torch.arange(length, device=device)
                token = self._next(places, self.prompt[None], length)
            with stopwatch(device) as written:
                for place in range(length, length + NEW_TOKENS - 1):
                    places = torch.tensor([place], device=device)
                    token = self._next(places, token.view(1, -1), place + 1)
        return {"prefill": read(), "decode": written() / (NEW_TOKENS - 1)}

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """Of the prompt, (1, T, V)."""
        with self._fabric.autocast():
            result: Tensor = self.model(self.prompt[None])
        return result.float()

    def _next(self, places: Tensor, tokens: Tensor, end: int) -> Tensor:
        result: Tensor = next_token(
            self.model, places, tokens, input_pos_maxp1=end, temperature=0.0
        )
        return result


def _difference(exported: _Asked, adapted: _Asked) -> float:
    """Largest difference of logits, as a share of the largest logit."""
    wanted = adapted.logits()
    return float((exported.logits() - wanted).abs().max() / wanted.abs().max())


def _prepare(config: BenchConfig, candidate: Candidate, base: Base, precision: str) -> _Asked:
    device = base.weights[EMBEDDING].device
    generator = torch.Generator().manual_seed(config.seed)
    length = max(1, min(config.seq_length, base.config.block_size - NEW_TOKENS))
    prompt = torch.randint(base.config.vocab_size, (length,), generator=generator).to(device)
    if candidate.form == "base":
        model = build_plain_model(base.config, base.weights)
    elif candidate.form == "merged":
        model = _merge(candidate, base, config)
    elif candidate.form == "adapters":
        model = _adapt(candidate, base, config)
    else:
        model = _widen(_adapt(candidate, base, config))
    fabric = Fabric(accelerator=device.type, devices=1, precision=precision)
    return _Asked(model.eval(), prompt, fabric)


def _merge(candidate: Candidate, base: Base, config: BenchConfig) -> GPT:
    assert candidate.settings is not None
    own = replace(base, weights={name: value.clone() for name, value in base.weights.items()})
    device = base.weights[EMBEDDING].device
    model = build_model(candidate.settings, own, device, config.seed)
    _fill_seconds(model, config.seed)
    weights = {name: value.to(device) for name, value in merged_weights(model).items()}
    return build_plain_model(base.config, weights)


def _adapt(candidate: Candidate, base: Base, config: BenchConfig) -> SkipGPT:
    assert candidate.settings is not None
    device = base.weights[EMBEDDING].device
    model = build_model(candidate.settings, base, device, config.seed)
    assert isinstance(model, SkipGPT)
    _fill_seconds(model, config.seed)
    return model


def _fill_seconds(model: GPT, seed: int) -> None:
    """Give B numbers, as if it had been trained; it begins with zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def _widen(model: SkipGPT) -> GPT:
    """The ordinary model of a Skip model, on its device and in its dtype."""
    weight = model.transformer.wte.weight
    layout = plan_layout(model.config, model.settings)
    epsilon = choose_epsilon(model, weight.dtype, _SPREAD)
    weights = {
        name: value.to(weight.device)
        for name, value in Widening(model, layout, epsilon, weight.dtype).weights()
    }
    return build_plain_model(widened_config(model.config, layout), weights)


def _measure_times(
    config: BenchConfig,
    candidates: Sequence[Candidate],
    device: torch.device,
    precision: str,
    meter: ProcessorMeter,
) -> Rows:
    """Seconds of both phases, in interleaved rounds, on one base.

    On CUDA one of the models is there at a time.
    """
    if not candidates:
        return []
    stays = device.type != "cuda"
    made: dict[tuple[str, str], _Asked] = {}
    rows: Rows = []
    base = load_base(config.model, device, weights_dtype(precision), config.seed)
    total = len(candidates) * config.rounds * config.iterations
    with Bar("answers", total, "iterations") as bar:
        for number in range(1, config.rounds + 1):
            for candidate in candidates:
                asked = made.get(candidate.key)
                if asked is None:
                    asked = _prepare(config, candidate, base, precision)
                    for _ in range(_WARMUPS):
                        asked.answer()
                    if stays:
                        made[candidate.key] = asked
                gc.collect()
                meter.enter("inference")
                for iteration in range(1, config.iterations + 1):
                    about = {"round": number, **_about(candidate), "iteration": iteration}
                    rows += [
                        {**about, "phase": phase, "seconds": value}
                        for phase, value in asked.answer().items()
                    ]
                    bar.advance(1, f"round {number}/{config.rounds} {_name(candidate)}")
                meter.enter("")
                del asked
                release_memory(device)
    return rows


def _about(candidate: Candidate) -> dict[str, str]:
    """What the rows of a candidate have."""
    own = candidate.settings
    return {
        "form": candidate.form,
        "method": own.method.name if own else "",
        "blocks": blocks_text(own.blocks) if own else "",
    }


def _summarise(entry: InferenceFigures, candidate: Candidate, rows: Rows) -> InferenceFigures:
    changes: dict[str, Any] = {}
    for phase, tokens in (("prefill", entry.prompt_tokens or 0), ("decode", 1)):
        rounds = by_round(rows, **_about(candidate), phase=phase)
        if not rounds:
            continue
        times = summarise_rounds(rounds)
        assert times.median_seconds is not None
        changes[phase] = times
        changes[f"{phase}_tokens_per_second"] = tokens / times.median_seconds
        base_rounds = by_round(rows, **_about(_BASE), phase=phase)
        if candidate != _BASE and base_rounds:
            changes[f"{phase}_ratio"] = compare_rounds(rounds, base_rounds)
    return InferenceFigures.of(entry, **changes)
