"""`--blocks auto`: the blocks whose outputs the loss's gradient has most to do with, on this data.

One pass of the frozen layers over the first training samples, before the model of a run is built;
how blocks are ranked is `cache.projection`'s, what they are ranked on `train.calibration`'s. The
choice depends on base model and data alone, so that a run which is resumed, and every cell of a
comparison, has the same blocks.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning.fabric import Fabric

from skip2bench.cache.projection import rank_features
from skip2bench.cache.streaming import StreamedBackbone
from skip2bench.config.blocks import count_auto
from skip2bench.config.methods import METHODS
from skip2bench.config.train import TrainConfig
from skip2bench.io.console import note
from skip2bench.machine.environment import weights_dtype
from skip2bench.models.methods import resolve_method
from skip2bench.models.skip import SkipGPT
from skip2bench.train.calibration import Probe, probe
from skip2bench.train.parts import load_model
from skip2bench.train.plan import TrainingPlan
from skip2bench.train.ranks.ranks import Ranks

Ranking = list[tuple[int, float]]
"""Blocks, the most useful first, each with its energy."""


def resolve_blocks(plan: TrainingPlan) -> TrainingPlan:
    """The plan with the blocks that "auto" means on its model and data; else the plan itself.

    Raises:
        Skip2BenchError: blocks give zeros, or what is not finite.
    """
    count, config = count_auto(plan.config.blocks), plan.config
    if count is None or not plan.settings.method.is_skip:
        return plan
    blocks = choose_blocks(rank_blocks(plan), count)
    settings = resolve_method(config.method, blocks, config, plan.model_config)
    return replace(plan, config=replace(config, blocks=blocks), settings=settings)


def choose_blocks(ranking: Ranking, count: int) -> str:
    """The best `count` blocks of a ranking, or all it has, as `--blocks` takes them; it says so."""
    best = ranking[:count]
    energies = ", ".join(f"{block} ({energy:.1e})" for block, energy in best)
    note(
        f"blocks auto: {len(best)} of {len(ranking)} by the energy of the loss's gradient on their "
        f"outputs: {energies}"
    )
    return ",".join(str(block) for block, _ in sorted(best))


def rank_blocks(plan: TrainingPlan) -> Ranking:
    """All blocks of a plan's model by what their outputs let an adapter learn of its data.

    The base model is loaded for it and dropped; nothing is written that stays.

    Args:
        plan: Any method's; of its configuration count the model, the data, the precision, and how
            Skip adapters read features.

    Returns:
        Every block with its energy, the most useful first; see `cache.projection.rank_features`.

    Raises:
        Skip2BenchError: blocks give zeros, or what is not finite.
    """
    # the default method is one of those with blocks
    method = plan.config.method if METHODS[plan.config.method].is_skip else TrainConfig.method
    config = replace(plan.config, method=method, blocks="all", cache_project=None, compile=False)
    settings = resolve_method(method, config.blocks, config, plan.model_config)
    found = _probe_all(replace(plan, config=config, settings=settings))
    columns = range(found.features.size(1))
    ranking = rank_features([found.read(column) for column in columns], found.gradients)
    return _name_blocks(ranking, settings.blocks or ())


def _probe_all(plan: TrainingPlan) -> Probe:
    """The probe of a plan whose adapters read all blocks."""
    model = load_model(plan, Ranks())
    assert isinstance(model, SkipGPT)
    place = Fabric(accelerator=plan.device.type, devices=1, precision=plan.precision)
    if not plan.config.stream_blocks:
        return probe(place, model, plan.data.train)
    with TemporaryDirectory() as scratch:
        streamed = StreamedBackbone(
            model=model,
            folder=plan.base_folder,
            device=plan.device,
            dtype=weights_dtype(plan.precision),
            scratch=Path(scratch),
        )
        return probe(place, model, plan.data.train, streamed)


def _name_blocks(ranking: Ranking, blocks: Sequence[int]) -> Ranking:
    """A ranking of places as one of blocks."""
    return [(blocks[place], energy) for place, energy in ranking]
