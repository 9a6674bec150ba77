"""The parts of a training run: its model, objective, optimizer and schedule, from its plan."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from litgpt.model import GPT
from torch import nn

from skip2bench.cache.arrays import Tier
from skip2bench.cache.build import CacheBuilder
from skip2bench.cache.kept import CacheFolder
from skip2bench.cache.plan import CacheUse, free_of_rank, plan_cache
from skip2bench.cache.streaming import StreamedBackbone, load_without_blocks
from skip2bench.config.options import default_of, list_options
from skip2bench.config.train import TrainConfig
from skip2bench.io.units import parse_bytes
from skip2bench.machine.environment import weights_dtype
from skip2bench.models.base import load_checkpoint
from skip2bench.models.methods import build_model
from skip2bench.models.quantised import quantise
from skip2bench.models.skip import SkipGPT
from skip2bench.models.switches import checkpoint_blocks, compile_model
from skip2bench.train.cached_objective import CachedObjective, own_val_ids
from skip2bench.train.micro_batch import find_micro_batch_size
from skip2bench.train.objective import Objective, TokenObjective
from skip2bench.train.plan import TrainingPlan
from skip2bench.train.ranks.ranks import Ranks, share
from skip2bench.train.ranks.sharded import shard_blocks
from skip2bench.train.resume import RunPlace

SCRATCH = ".cache"
"""Below the run folder: a cache on disk that ends with the run, and is found when it is resumed."""


def load_model(plan: TrainingPlan, ranks: Ranks) -> GPT:
    """The method's model on its base, of which a streamed run loads what follows the blocks.

    With strategy fsdp its blocks are spread over the ranks.
    """
    is_sharded = plan.config.strategy == "fsdp"
    quantize, dtype = plan.config.quantize, weights_dtype(plan.precision)
    # what may not fit one device stays in memory until each rank has its part, or until quantised
    place = torch.device("cpu") if is_sharded or quantize else plan.device
    load = load_without_blocks if plan.config.stream_blocks else load_checkpoint
    base = load(plan.base_folder, place, dtype)
    # the model holds the base's tensors, until it drops the backbone
    model = build_model(plan.settings, base, place, plan.config.seed)
    if quantize is not None:
        quantise(model, quantize, dtype, plan.device)
    if plan.config.gradient_checkpointing:
        checkpoint_blocks(model)
    if plan.config.compile:
        compile_model(model)
    if is_sharded and isinstance(model, SkipGPT):
        shard_blocks(model, ranks)
    return model


def stream_backbone(plan: TrainingPlan, model: GPT, folder: Path) -> StreamedBackbone:
    """The backbone whose blocks are in the checkpoint; `folder` is the run's."""
    assert isinstance(model, SkipGPT)
    return StreamedBackbone(
        model=model,
        folder=plan.base_folder,
        device=plan.device,
        dtype=weights_dtype(plan.precision),
        scratch=folder / SCRATCH,
    )


def build_objective(
    plan: TrainingPlan,
    fabric: Fabric,
    model: GPT,
    batches: list[list[int]],
    place: RunPlace,
    environment: dict[str, Any],
    ranks: Ranks,
) -> Objective:
    """How the method's losses are computed, from the model or from Skip-Cache.

    Args:
        plan: Of the run.
        fabric: Of the run.
        model: The method's model.
        batches: Sample ids of every step.
        place: The run's folder, and the state it goes on from.
        environment: Content of `environment.json`.
        ranks: Those of the run; each caches its share of the samples.

    Raises:
        Skip2BenchError: the backbone is random in training, so a cache would be inexact.
    """
    config, data = plan.config, plan.data
    if not plan.settings.method.is_cached:
        objective = TokenObjective(
            fabric, fabric.setup_module(model), data, plan.micro_batch_size or 1, ranks
        )
        if plan.micro_batch_size is None:
            _settle_micro_batch(plan, fabric, model, objective, place, ranks)
        return objective
    assert isinstance(model, SkipGPT)
    model.check_is_deterministic()
    used = sorted({i for batch in batches for i in batch})
    passes = sum(map(len, batches)) / len(used)
    used = share(used, data.train.lengths, ranks.size)[ranks.rank]
    scratch = place.folder / SCRATCH
    earlier = place.objective_state(ranks.rank)
    cache_plan = plan_cache(
        model,
        CacheUse(
            train=data.train,
            train_ids=used,
            val=data.val,
            steps=len(batches),
            passes=passes,
            own_val_ids=own_val_ids(data, ranks),
        ),
        plan.device,
        weights_dtype(plan.precision),
        tier=config.cache_tier,
        dtype=config.cache_dtype,
        max_bytes=None
        if config.cache_max_bytes is None
        else parse_bytes("cache_max_bytes", config.cache_max_bytes) // ranks.size,
        folder=config.cache_dir or scratch,
        free=free_of_rank(plan.device, config.cache_dir or scratch, ranks.local_size),
        decided=None if earlier is None else (earlier["tier"], earlier["capacity_bytes"]),
    )
    versions = {name: environment[name] for name in ("torch", "litgpt")}
    if config.quantize is not None:
        versions["bitsandbytes"] = environment["bitsandbytes"]
    builder = CacheBuilder(
        model=model,
        device=plan.device,
        plan=cache_plan,
        folder=_cache_folder(config, cache_plan.tier, scratch),
        key={
            "checkpoint_sha256": environment["checkpoint"]["sha256"],
            "model_config_sha256": environment["checkpoint"]["model_config_sha256"],
            "precision": plan.precision,
            "device": plan.device.type,
            **versions,
            **_backbone_switches(config),
        },
        about={"model": plan.base_folder.name, "data": data.name},
        backbone=stream_backbone(plan, model, place.folder) if config.stream_blocks else None,
    )
    # what lies in the scratch folder is this run's own; the cache of a run that goes on is where it
    # was, or made again, which none of its figures shows
    was_kept = None if config.cache_dir else False
    if earlier is not None:
        was_kept = bool(earlier["was_kept"])
    return CachedObjective(
        fabric, model, data, builder, used, passes, was_kept=was_kept, ranks=ranks
    )


def _backbone_switches(config: TrainConfig) -> dict[str, Any]:
    """Options that decide what the frozen layers compute and that the plan does not settle.

    Only where they are not what they are without being asked for, so that caches kept from before
    an option was there go on to serve.
    """
    return {
        item.name: value
        for item in list_options(config, "backbone")
        if "recorded_as" not in item.metadata
        and (value := getattr(config, item.name)) != default_of(item)
    }


def _settle_micro_batch(
    plan: TrainingPlan,
    fabric: Fabric,
    model: GPT,
    objective: TokenObjective,
    place: RunPlace,
    ranks: Ranks,
) -> None:
    """Give the objective the largest micro-batch that fits, or the one that the run had before."""
    earlier = place.objective_state(ranks.rank)
    if earlier is None:
        most = -(-plan.config.global_batch_size // ranks.size)
        found = find_micro_batch_size(fabric, model, objective, most, ranks)
        earlier = {
            "micro_batch_size": found.micro_batch_size,
            "micro_batch_search_seconds": found.seconds,
        }
    objective.micro_batch_size = earlier["micro_batch_size"]
    objective.search_seconds = earlier["micro_batch_search_seconds"]


def _cache_folder(config: TrainConfig, tier: Tier, scratch: Path) -> CacheFolder | None:
    """Where the run's caches are kept; on disk, a run that is resumed finds its own again."""
    if config.cache_dir is not None:
        return CacheFolder(config.cache_dir)
    return CacheFolder(scratch) if tier == "disk" else None


def build_optimizer(
    model: nn.Module, config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW over what trains, the same for every method."""
    return torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """Factor on the peak learning rate for one update.

    Args:
        step: The update, counted from 0.
        warmup_steps: Updates until the peak; a run may be shorter and then ends on the way up.
        total_steps: Updates of the whole run.

    Returns:
        (step + 1) / warmup_steps during the warm-up, so that no update is wasted on a rate of zero;
        after it a half cosine from 1 that would reach 0 one update past the end.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))
