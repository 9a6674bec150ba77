"""Hugging Face PEFT's LoRA, DoRA and rsLoRA, trained by transformers' Trainer on the same weights.

The weights are converted by LitGPT's own `convert_from_litgpt` and loaded by transformers. Batches,
micro-batches and their order are those of every method here: the samples of all steps are laid out
in one sequence, which the Trainer walks through once. What PEFT leaves is brought to the form of
LitGPT's LoRA, exactly: rsLoRA's scale goes into B, DoRA's magnitudes into B and the weight's rows.
"""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from skip2bench.compare.peers.dora import row_factors
from skip2bench.compare.peers.peer import PeerRun, offline_environment
from skip2bench.config.peers import PEERS, PeerKind
from skip2bench.data.samples import collate, micro_batches
from skip2bench.errors import Skip2BenchError
from skip2bench.machine.environment import weights_dtype
from skip2bench.machine.memory import read_peak_memory, reset_peak_memory
from skip2bench.models.optimizer import learning_rate_factor, scale_warmup
from skip2bench.train.parts import build_run_optimizer
from skip2bench.train.plan import TrainingPlan
from skip2bench.train.training import planned_batches

if TYPE_CHECKING:
    from transformers import LlamaConfig


_MODULES = {
    "lora_query": "q_proj",
    "lora_key": "k_proj",
    "lora_value": "v_proj",
    "lora_projection": "o_proj",
    "lora_head": "lm_head",
}
_MLP_MODULES = ("gate_proj", "up_proj", "down_proj")
DIFFERENCES = (
    "its clock is the whole of Trainer.train(), with the Trainer's own bookkeeping",
    "draws the initial values of A and the dropout masks by its own sequence",
    "runs transformers' model of the same weights, by scaled_dot_product_attention",
    "malloc gives freed memory back to the system, as it does by default",
)
OF_DORA = "trains the magnitude of every row of the adapted weights too, with the same weight decay"
OF_DORA_DROPPED = "applies the adapted weights once more, to the input after dropout"
OF_RSLORA = "multiplies its update by alpha / √rank, where LoRA's is multiplied by alpha / rank"


def make_hf_config(plan: TrainingPlan) -> "LlamaConfig":
    """The transformers configuration of a model in Llama's architecture.

    Raises:
        Skip2BenchError: the model has another one.
    """
    config = plan.model_config
    is_llama = (
        config.norm_class_name == "RMSNorm"
        and config.mlp_class_name == "LLaMAMLP"
        and not (config.bias or config.attn_bias or config.parallel_residual)
        and config.rotary_percentage == 1.0
        and config.rope_adjustments is None
        and not config.norm_qk
    )
    if not is_llama or plan.settings.lora is None:
        raise Skip2BenchError(
            f"the peer 'peft' takes models in Llama's architecture, and {plan.model_name!r} has "
            "another one; leave it out"
        )
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=config.padded_vocab_size,
        hidden_size=config.n_embd,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        num_key_value_heads=config.n_query_groups,
        head_dim=config.head_size,
        max_position_embeddings=config.block_size,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": float(config.rope_base)},
        tie_word_embeddings=False,
        use_cache=False,
    )


def train_with_peft(plan: TrainingPlan, folder: Path, kind: PeerKind = PEERS["peft"]) -> PeerRun:
    """Train PEFT's LoRA, or a kind of it, on the plan's data and settings, in this process."""
    os.environ.update(offline_environment())
    torch.manual_seed(plan.config.seed)
    model = _build_model(plan, folder / "base", kind)
    micro_batch_size = plan.micro_batch_size or 1
    samples, differences = _lay_out(plan, micro_batch_size)
    trainer = _build_trainer(plan, model, samples, micro_batch_size, folder / "out")
    reset_peak_memory(plan.device)
    seconds = float(trainer.train().metrics["train_runtime"])
    peak = read_peak_memory(plan.device)
    model.save_pretrained(folder / "out")
    file = folder / "out" / "adapter_model.safetensors"
    adapter, factors = _as_lora(model, load_file(file), plan, kind)
    return PeerRun(
        train_seconds=seconds,
        steps=int(trainer.state.global_step),
        tokens=sum(plan.data.train.lengths[i] for i in samples),
        peak_memory_bytes=peak,
        adapter_bytes=file.stat().st_size,
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        adapter=_to_litgpt(adapter, plan),
        row_factors=_factors_to_litgpt(factors, plan),
        differences=[*differences, *_list_own_differences(plan, kind)],
    )


def _list_own_differences(plan: TrainingPlan, kind: PeerKind) -> list[str]:
    """What a kind of LoRA does otherwise than LoRA."""
    found = [OF_DORA] if kind.has_magnitudes else []
    found += [OF_DORA_DROPPED] if kind.has_magnitudes and plan.config.lora_dropout else []
    return found + ([OF_RSLORA] if kind.scales_by_root else [])


def _build_model(plan: TrainingPlan, folder: Path, kind: PeerKind) -> Any:
    """The model in transformers with PEFT's LoRA, on the base's weights, which `folder` takes."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    config = plan.config
    _convert(plan, folder)
    model = LlamaForCausalLM.from_pretrained(
        folder, dtype=weights_dtype(plan.precision), attn_implementation="sdpa"
    )
    return get_peft_model(
        model,
        LoraConfig(
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=_target_modules(plan),
            use_dora=kind.has_magnitudes,
            use_rslora=kind.scales_by_root,
            task_type="CAUSAL_LM",
        ),
    )


def _build_trainer(
    plan: TrainingPlan, model: Any, samples: list[int], micro_batch_size: int, folder: Path
) -> Any:
    """A Trainer of transformers with the plan's optimizer, schedule and order of samples."""
    from transformers import Trainer, TrainingArguments

    config = plan.config
    steps = math.ceil(len(samples) / config.global_batch_size)
    warmup_steps = scale_warmup(plan.warmup_steps, plan.steps, steps)
    optimizer = build_run_optimizer(model, config, plan.device)
    scheduler = LambdaLR(optimizer, lambda step: learning_rate_factor(step, warmup_steps, steps))
    return Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=math.ceil(config.global_batch_size / micro_batch_size),
            num_train_epochs=1,
            max_steps=steps,
            max_grad_norm=0.0,
            train_sampling_strategy="sequential",
            bf16=plan.precision == "bf16-mixed",
            fp16=plan.precision == "16-mixed",
            use_cpu=plan.device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=config.seed,
            remove_unused_columns=False,
            dataloader_pin_memory=plan.device.type == "cuda",
        ),
        train_dataset=samples,
        data_collator=lambda ids: _collate(plan, ids),
        optimizers=(optimizer, scheduler),
    )


def _convert(plan: TrainingPlan, folder: Path) -> None:
    """Write the base model as a transformers folder, converted by LitGPT."""
    from contextlib import redirect_stdout
    from io import StringIO

    from litgpt.scripts.convert_lit_checkpoint import convert_lit_checkpoint

    with redirect_stdout(StringIO()):  # it prints its arguments
        convert_lit_checkpoint(plan.base_folder, folder)
    weights = torch.load(folder / "model.pth", weights_only=True)
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.pth").unlink()
    make_hf_config(plan).save_pretrained(folder)


def _target_modules(plan: TrainingPlan) -> list[str]:
    chosen = [module for key, module in _MODULES.items() if getattr(plan.config, key)]
    return [*chosen, *(_MLP_MODULES if plan.config.lora_mlp else ())]


def _lay_out(plan: TrainingPlan, micro_batch_size: int) -> tuple[list[int], list[str]]:
    """Sample ids of all steps in one sequence, cut as every method's micro-batches are."""
    config, lengths = plan.config, plan.data.train.lengths
    batches = planned_batches(config, plan.data, plan.steps)
    differences = list(DIFFERENCES)
    if any(len(batch) != config.global_batch_size for batch in batches[:-1]):
        differences.append("a global batch crosses the end of an epoch")
    return [
        i
        for batch in batches
        for part in micro_batches(batch, lengths, micro_batch_size)
        for i in part
    ], differences


def _collate(plan: TrainingPlan, ids: list[int]) -> dict[str, Tensor]:
    input_ids, labels = collate(plan.data.train, ids)
    lengths = torch.tensor([plan.data.train.lengths[i] for i in ids])
    mask = torch.arange(input_ids.size(1)) < lengths[:, None]
    return {"input_ids": input_ids, "labels": labels, "attention_mask": mask.long()}


def _as_lora(
    model: Any, adapter: dict[str, Tensor], plan: TrainingPlan, kind: PeerKind
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The adapter of a LoRA with the scale alpha / rank that computes the same.

    Returns:
        The adapter by PEFT's names; and by the name of a module there, what the rows of its weight
        are multiplied by.
    """
    adapter, factors = dict(adapter), {}
    if kind.scales_by_root:
        root = math.sqrt(plan.config.lora_r)
        adapter |= {name: root * b for name, b in adapter.items() if ".lora_B." in name}
    for name, module in model.named_modules() if kind.has_magnitudes else ():
        magnitudes = getattr(module, "lora_magnitude_vector", None)
        if not magnitudes:
            continue
        own = {side: adapter[f"{name}.lora_{side}.weight"] for side in "AB"}
        weight = module.get_base_layer().weight.detach().cpu()
        magnitude = magnitudes["default"].weight.detach().cpu()
        factors[name] = row_factors(weight, own, magnitude, module.scaling["default"])
        scaled = factors[name][:, None] * own["B"]
        adapter[f"{name}.lora_B.weight"] = scaled.to(own["B"].dtype)
    return adapter, factors


def _factors_to_litgpt(factors: dict[str, Tensor], plan: TrainingPlan) -> dict[str, Tensor]:
    """By the name of a weight in LitGPT's LoRA model; query, key and value are one weight there."""
    config, result = plan.model_config, {}
    rows = {"q_proj": config.n_head, "k_proj": config.n_query_groups}
    rows["v_proj"] = config.n_query_groups
    others = {"attn.proj": "self_attn.o_proj", "mlp.fc_1": "mlp.gate_proj"}
    others |= {"mlp.fc_2": "mlp.up_proj", "mlp.proj": "mlp.down_proj"}
    for block in range(config.n_layer if factors else 0):
        theirs, ours = f"base_model.model.model.layers.{block}", f"transformer.h.{block}"
        parts = [
            factors.get(f"{theirs}.self_attn.{name}", torch.ones(heads * config.head_size))
            for name, heads in rows.items()
        ]
        result[f"{ours}.attn.qkv.linear.weight"] = torch.cat(parts)
        for name, module in others.items():
            if (found := factors.get(f"{theirs}.{module}")) is not None:
                result[f"{ours}.{name}.linear.weight"] = found
    if (found := factors.get("base_model.model.lm_head")) is not None:
        result["lm_head.linear.weight"] = found
    return result


def _to_litgpt(adapter: dict[str, Tensor], plan: TrainingPlan) -> dict[str, Tensor]:
    """Names and layout of LitGPT's LoRA: query, key and value of a block in one A and one B.

    PEFT keeps A (r, d) and B (d_out, r) for each projection; LitGPT stacks them.
    """
    config = plan.config
    qkv = [key for key in ("lora_query", "lora_key", "lora_value") if getattr(config, key)]
    others = {
        "attn.proj": ("self_attn.o_proj", config.lora_projection),
        "mlp.fc_1": ("mlp.gate_proj", config.lora_mlp),
        "mlp.fc_2": ("mlp.up_proj", config.lora_mlp),
        "mlp.proj": ("mlp.down_proj", config.lora_mlp),
    }
    result: dict[str, Tensor] = {}
    for block in range(plan.model_config.n_layer):
        theirs = f"base_model.model.model.layers.{block}"
        for side in "AB":
            parts = [
                adapter[f"{theirs}.self_attn.{_MODULES[key]}.lora_{side}.weight"] for key in qkv
            ]
            if parts:
                result[f"transformer.h.{block}.attn.qkv.lora_{side}"] = torch.cat(parts)
            for ours, (module, is_on) in others.items():
                if is_on:
                    name = f"{theirs}.{module}.lora_{side}.weight"
                    result[f"transformer.h.{block}.{ours}.lora_{side}"] = adapter[name]
    if config.lora_head:
        for side in "AB":
            result[f"lm_head.lora_{side}"] = adapter[f"base_model.model.lm_head.lora_{side}.weight"]
    return result
