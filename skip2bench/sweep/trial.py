"""One configuration of a sweep: its adapters, its optimizer, and how far it has come."""

from dataclasses import dataclass, field, replace

import torch

from skip2bench.models.optimizer import build_optimizer, set_learning_rate
from skip2bench.models.skip import SkipAdapters, SkipGPT, SkipSettings


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A configuration: what trains, and how."""

    settings: SkipSettings
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    max_norm: float | None = None
    """What the gradient's norm is clipped to; None for no clipping."""


@dataclass(kw_only=True)
class Trial:
    """A configuration in training."""

    recipe: Recipe
    adapters: SkipAdapters
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Updates so far."""
    losses: list[float] = field(default_factory=list)
    """Of every step, before its update."""
    diverged_at_step: int | None = None

    @property
    def settings(self) -> SkipSettings:
        """Shape of its adapters."""
        return self.recipe.settings

    def update(self, factor: float) -> None:
        """Make one update by the gradients that are there, and clear them.

        Args:
            factor: Of the schedule, on the configuration's learning rate.
        """
        recipe = self.recipe
        if recipe.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.adapters.parameters(), recipe.max_norm)
        set_learning_rate(self.optimizer, recipe.learning_rate * factor)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1


def start_trial(model: SkipGPT, recipe: Recipe, seed: int, dtype: torch.dtype) -> Trial:
    """A configuration before its first step, its values those of a run of its own.

    Args:
        model: Reads at least the blocks of the configuration, and knows their relative sizes; what
            it projects them by, the configuration does too.
        recipe: The configuration.
        seed: What the adapters' initial values depend on.
        dtype: Of the adapters.
    """
    settings, config = replace(recipe.settings, projected=model.settings.projected), model.config
    is_hidden = settings.target == "hidden"
    device = model.lm_head.weight.device if hasattr(model.lm_head, "weight") else None
    assert isinstance(device, torch.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapters = SkipAdapters(
            settings, config.n_embd, config.n_embd if is_hidden else config.padded_vocab_size
        )
    adapters = adapters.to(device=device, dtype=dtype)
    _take_over(adapters, model, settings)
    optimizer = build_optimizer(
        adapters.parameters(),
        device,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        betas=recipe.betas,
    )
    recipe = replace(recipe, settings=settings)
    return Trial(recipe=recipe, adapters=adapters, optimizer=optimizer)


def _take_over(adapters: SkipAdapters, model: SkipGPT, settings: SkipSettings) -> None:
    """Set relative sizes and projection of the configuration's blocks as the model has them."""
    places = [model.settings.blocks.index(block) for block in settings.blocks]
    sizes, projection = model.adapters.relative_sizes, model.adapters.projection
    if adapters.relative_sizes is not None:
        assert sizes is not None
        adapters.relative_sizes.copy_(sizes[places])
    if adapters.projection is not None:
        assert projection is not None
        adapters.projection.copy_(projection[places])
