"""The parts of a training run: its model, caches, objective on tokens and optimizer."""

import hashlib
from dataclasses import replace
from typing import Any

import torch
from litgpt.model import GPT
from torch import nn

from skip2bench.cache.arrays import Tier, raw_bytes
from skip2bench.cache.build import CacheBuilder
from skip2bench.cache.kept import CacheFolder
from skip2bench.cache.plan import CacheRoom, CacheUse, free_of_rank, plan_cache
from skip2bench.cache.streaming import StreamedBackbone, load_without_blocks
from skip2bench.config.options import default_of, list_options
from skip2bench.config.train import TrainConfig, usual_learning_rate
from skip2bench.io.units import parse_bytes
from skip2bench.machine.clock import Clock
from skip2bench.machine.environment import weights_dtype
from skip2bench.models.base import load_checkpoint
from skip2bench.models.methods import build_model
from skip2bench.models.optimizer import build_optimizer
from skip2bench.models.quantised import quantise
from skip2bench.models.skip import SkipGPT
from skip2bench.models.switches import checkpoint_blocks, compile_model
from skip2bench.models.top import CachedGPT, TopGPT
from skip2bench.train.attempt import Attempt
from skip2bench.train.caches import RunCaches
from skip2bench.train.calibration import calibration_ids, needs_sizes, project_features
from skip2bench.train.micro_batch import find_micro_batch_size
from skip2bench.train.objective import TokenObjective
from skip2bench.train.plan import TrainingPlan
from skip2bench.train.ranks.ranks import Ranks, share
from skip2bench.train.ranks.sharded import shard_blocks
from skip2bench.train.saving import restore_projection
from skip2bench.train.trunk_objective import TrunkObjective


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


def stream_backbone(attempt: Attempt, model: SkipGPT) -> StreamedBackbone:
    """The backbone whose blocks are in the checkpoint."""
    plan = attempt.plan
    return StreamedBackbone(
        model=model,
        folder=plan.base_folder,
        device=plan.device,
        dtype=weights_dtype(plan.precision),
        scratch=attempt.scratch,
    )


def provide_projection(attempt: Attempt, model: SkipGPT, clock: Clock) -> None:
    """What a stopped run projected its features by, or one found now: caches are made of it."""
    plan, state = attempt.plan, attempt.place.state
    if state is not None and restore_projection(model, state):
        return
    streamed = stream_backbone(attempt, model) if plan.config.stream_blocks else None
    with clock.part("calibration"):
        kind = plan.config.cache_projection
        project_features(attempt.fabric, model, plan.data.train, kind, streamed)


def build_token_objective(attempt: Attempt, model: GPT) -> TokenObjective:
    """Losses by the model; where nobody gave a micro-batch, with the largest that fits."""
    plan, ranks, fabric = attempt.plan, attempt.ranks, attempt.fabric
    module = fabric.setup_module(model)
    if plan.micro_batch_size is not None:
        return TokenObjective(fabric, module, plan.data, plan.micro_batch_size, ranks)
    if (earlier := attempt.objective_state) is not None:  # memory may be another by now
        size, seconds = earlier["micro_batch_size"], earlier["micro_batch_search_seconds"]
    else:
        most = -(-plan.config.global_batch_size // ranks.size)
        trial = TokenObjective(fabric, module, plan.data, 1, ranks)
        found = find_micro_batch_size(fabric, model, trial, most, ranks)
        size, seconds = found.micro_batch_size, found.seconds
    return TokenObjective(fabric, module, plan.data, size, ranks, seconds)


def build_trunk_objective(attempt: Attempt, model: TopGPT, caches: RunCaches) -> TrunkObjective:
    """Losses by the blocks above a cached trunk, in the micro-batches of the whole model."""
    return TrunkObjective(build_token_objective(attempt, model), attempt, model, caches)


def plan_caches(
    attempt: Attempt, model: CachedGPT, batches: list[list[int]], readers: int = 1
) -> RunCaches:
    """Decide what of the run is cached, and where.

    Args:
        attempt: Of the run.
        model: A Skip model, or LoRA on the last blocks.
        batches: Sample ids of every step.
        readers: Configurations that train from the caches.

    Raises:
        Skip2BenchError: the backbone is random in training, so a cache would be inexact.
    """
    model.check_is_deterministic()
    plan, config, environment = attempt.plan, attempt.plan.config, attempt.environment
    use = _describe_use(attempt, model, batches)
    dtype = weights_dtype(plan.precision)
    cache_plan = plan_cache(
        model, use, _find_room(attempt), dtype, config.cache_dtype, config.algebra
    )
    versions = {"torch": environment.torch, "litgpt": environment.litgpt}
    assert environment.checkpoint is not None
    if config.quantize is not None:
        versions["bitsandbytes"] = environment.bitsandbytes
    builder = CacheBuilder(
        model=model,
        device=plan.device,
        plan=cache_plan,
        folder=_cache_folder(attempt, cache_plan.tier),
        key={
            "checkpoint_sha256": environment.checkpoint.sha256,
            "model_config_sha256": environment.checkpoint.model_config_sha256,
            "precision": plan.precision,
            "device": plan.device.type,
            **versions,
            **_backbone_switches(config),
            **_describe_projection(model),
        },
        about={"model": plan.base_folder.name, "data": plan.data.name},
        backbone=stream_backbone(attempt, model)
        if config.stream_blocks and isinstance(model, SkipGPT)
        else None,
    )
    return RunCaches(attempt, builder, use, readers)


def _describe_use(attempt: Attempt, model: CachedGPT, batches: list[list[int]]) -> CacheUse:
    """What this rank's share of the batches asks of a cache."""
    data, ranks, plan_config = attempt.plan.data, attempt.ranks, attempt.plan.config
    used = sorted({i for batch in batches for i in batch})
    uses = sum(map(len, batches)) / len(used)
    if needs_sizes(model):
        used = sorted({*used, *calibration_ids(data.train)})
    return CacheUse(
        train=data.train,
        train_ids=share(used, data.train.lengths, ranks.size)[ranks.rank],
        val=data.val,
        steps=len(batches),
        passes=uses,
        evaluations=1 + -(-len(batches) // plan_config.eval_interval),
        own_val_ids=share(range(len(data.val)), data.val.lengths, ranks.size)[ranks.rank],
    )


def _find_room(attempt: Attempt) -> CacheRoom:
    """Where this rank's caches may live; of a run that goes on, where they did."""
    plan, config, ranks = attempt.plan, attempt.plan.config, attempt.ranks
    most = None
    if config.cache_max_bytes is not None:
        most = parse_bytes("cache_max_bytes", config.cache_max_bytes) // ranks.size
    free = free_of_rank(plan.device, config.cache_dir or attempt.scratch, ranks.local_size)
    room = CacheRoom.of(plan.device, free, config.cache_tier, most)
    if (earlier := attempt.objective_state) is not None:
        return replace(room, capacity_bytes={earlier["tier"]: earlier["capacity_bytes"]})
    return room


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


def _describe_projection(model: CachedGPT) -> dict[str, Any]:
    """What a projected cache depends on: the very numbers, whichever way they were found."""
    projection = model.adapters.projection if isinstance(model, SkipGPT) else None
    if projection is None:
        return {}
    content = raw_bytes(projection.cpu().contiguous())
    return {"projection_sha256": hashlib.sha256(content).hexdigest()}


def _cache_folder(attempt: Attempt, tier: Tier) -> CacheFolder | None:
    """Where the run's caches are kept; on disk, a run that is resumed finds its own again."""
    if (cache_dir := attempt.plan.config.cache_dir) is not None:
        return CacheFolder(cache_dir)
    return CacheFolder(attempt.scratch) if tier == "disk" else None


def build_run_optimizer(
    model: nn.Module, config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer of a run over what trains of its model, at the rate that it was given."""
    given = config.learning_rate
    return build_optimizer(
        [p for p in model.parameters() if p.requires_grad],
        device,
        learning_rate=usual_learning_rate(config) if given == "auto" else given,
        weight_decay=config.weight_decay,
        betas=(config.adam_beta1, config.adam_beta2),
        is_scaled=config.precision == "16-mixed",
    )
