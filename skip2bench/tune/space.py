"""The space of configurations, and which of them a sweep begins with.

The whole grid where it is small enough; else points of a scrambled Sobol sequence, which cover
every choice evenly however few they are. Source: I. M. Sobol', USSR Comput. Math. Math. Phys. 7
(1967) 86; scrambling after A. B. Owen.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from litgpt.config import Config

from skip2bench.config.blocks import BLOCK_PRESETS, count_top, parse_blocks
from skip2bench.config.methods import METHODS
from skip2bench.config.rates import rates_around
from skip2bench.config.train import TrainConfig, usual_learning_rate
from skip2bench.config.tune import TuneConfig
from skip2bench.models.skip import SkipSettings

GUIDES_PRESET = "balanced"
"""What the guide recommends, and the finalists are compared with."""
_NO_FEATURES = "-"
"""Of a method whose adapters read none that are stored."""
_TOP_SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Of the model's blocks, how many of the last ones are tried where nobody says."""
_MOST_DRAWS = 64
"""Points of the sequence for each configuration that is asked for, before the search ends."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One point of the space: all that tells a configuration from the others."""

    blocks: tuple[int, ...]
    blocks_text: str
    """As a person gives them: a preset, last:8, or numbers."""
    rank: int
    learning_rate: float
    alpha: int
    dropout: float
    weight_decay: float
    features: str

    @property
    def name(self) -> str:
        """Short, and unique among the choices of one sweep."""
        text = self.blocks_text.replace(":", "").replace(",", "_")
        parts = [f"{text}-r{self.rank}-lr{self.learning_rate:.3g}"]
        usual = TrainConfig
        parts += [f"a{self.alpha}"] if self.alpha != usual.lora_alpha else []
        parts += [f"d{self.dropout:g}"] if self.dropout != usual.lora_dropout else []
        parts += [f"wd{self.weight_decay:g}"] if self.weight_decay != usual.weight_decay else []
        parts += [self.features] if self.features not in (usual.features, _NO_FEATURES) else []
        return "-".join(parts)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for choices that train the same."""
        return (
            *(self.blocks, self.rank, f"{self.learning_rate:.6g}", self.alpha),
            *(self.dropout, self.weight_decay, self.features),
        )

    def settings(self, config: TuneConfig) -> SkipSettings:
        """Shape of its adapters."""
        common = config.train_config({})
        return SkipSettings(
            blocks=self.blocks,
            r=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            target=common.target,
            features=self.features,  # type: ignore[arg-type]
            share_b=common.share_b,
        )

    def values(self) -> dict[str, Any]:
        """Of `train`, by field name: what makes a run this configuration."""
        return {
            "blocks": self.blocks_text,
            "skip_r": self.rank,
            "learning_rate": self.learning_rate,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "weight_decay": self.weight_decay,
            "features": self.features,
        }

    @property
    def needed(self) -> tuple[str, ...]:
        """Values that a command names even where they are the usual ones."""
        return ("blocks", "skip_r", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class TopChoice(Choice):
    """The same of LoRA on the last blocks, over a cached trunk."""

    def values(self) -> dict[str, Any]:
        """Of `train`, by field name."""
        return {
            "top_blocks": len(self.blocks),
            "lora_r": self.rank,
            "learning_rate": self.learning_rate,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "weight_decay": self.weight_decay,
        }

    @property
    def needed(self) -> tuple[str, ...]:
        """Values that a command names even where they are the usual ones."""
        return ("top_blocks", "lora_r", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class Space:
    """Values of every choice; configurations are their combinations."""

    blocks: tuple[tuple[str, tuple[int, ...]], ...]
    """As text and resolved; no two are the same blocks."""
    ranks: tuple[int, ...]
    learning_rates: tuple[float, ...]
    alphas: tuple[int, ...]
    dropouts: tuple[float, ...]
    weight_decays: tuple[float, ...]
    features: tuple[str, ...]
    kind: type[Choice] = Choice

    @classmethod
    def of(
        cls, config: TuneConfig, model: Config, chosen: Mapping[str, str] | None = None
    ) -> "Space":
        """The space of a configuration on a model.

        Args:
            config: What to try.
            model: The base model's.
            chosen: By text of blocks such as auto, the numbers that it stands for.

        Raises:
            Skip2BenchError: blocks that the model does not have.
        """
        common = config.train_config({})
        is_top = METHODS[config.method].is_top
        sets: dict[tuple[int, ...], str] = {}
        for given in () if is_top else config.blocks:
            text = (chosen or {}).get(given, given)
            sets.setdefault(parse_blocks(text, model.n_layer), text)
        for count in _list_top(config, model.n_layer) if is_top else ():
            sets[tuple(range(model.n_layer))[-count:]] = f"top{count}"
        middle = usual_learning_rate(common)
        around = rates_around(middle)
        return cls(
            blocks=tuple((text, blocks) for blocks, text in sets.items()),
            ranks=config.ranks,
            learning_rates=config.learning_rates or around,
            alphas=config.alphas or (common.lora_alpha,),
            dropouts=config.dropouts or (common.lora_dropout,),
            weight_decays=config.weight_decays or (common.weight_decay,),
            features=(_NO_FEATURES,) if is_top else config.features,
            kind=TopChoice if is_top else Choice,
        )

    @property
    def _axes(self) -> tuple[Sequence[Any], ...]:
        return (
            *(self.blocks, self.ranks, self.learning_rates, self.alphas),
            *(self.dropouts, self.weight_decays, self.features),
        )

    @property
    def size(self) -> int:
        """All combinations."""
        return math.prod(map(len, self._axes))

    def draw(self, n: int, seed: int) -> list[Choice]:
        """Configurations to begin with, no two the same.

        Args:
            n: How many; all there are, where these are fewer.
            seed: Of the sequence.
        """
        axes = self._axes
        if n >= self.size:
            return [self._make(point) for point in itertools.product(*axes)]
        engine = torch.quasirandom.SobolEngine(len(axes), scramble=True, seed=seed)  # type: ignore[no-untyped-call]
        found: dict[tuple[Any, ...], Choice] = {}
        for _ in range(n * _MOST_DRAWS):
            (point,) = engine.draw(1).tolist()
            picked = [axis[int(u * len(axis))] for axis, u in zip(axes, point, strict=True)]
            choice = self._make(picked)
            found.setdefault(choice.key, choice)
            if len(found) == n:
                break
        return list(found.values())

    def middle(self, blocks_text: str, blocks: tuple[int, ...]) -> Choice:
        """Given blocks with the middle one of every other choice."""
        middle = (axis[len(axis) // 2] for axis in self._axes[1:])
        return self._make([(blocks_text, blocks), *middle])

    def _make(self, point: Sequence[Any]) -> Choice:
        (text, blocks), rank, rate, alpha, dropout, decay, features = point
        return self.kind(
            blocks=blocks,
            blocks_text=text,
            rank=rank,
            learning_rate=rate,
            alpha=alpha,
            dropout=dropout,
            weight_decay=decay,
            features=features,
        )


def _list_top(config: TuneConfig, n_layer: int) -> list[int]:
    """How many of the last blocks are tried: those that are given, else parts of the model."""
    given = config.top_blocks or [max(1, round(share * n_layer)) for share in _TOP_SHARES]
    return sorted({count_top(str(count), n_layer) for count in given})


def guides_choice(space: Space, model: Config) -> Choice:
    """What the guide recommends: its preset, with the middle one of every other choice."""
    assert GUIDES_PRESET in BLOCK_PRESETS
    return space.middle(GUIDES_PRESET, parse_blocks(GUIDES_PRESET, model.n_layer))


def default_choice(space: Space, model: Config) -> Choice:
    """What is compared with where the guide says nothing: the usual number of last blocks."""
    count = count_top("", model.n_layer)
    return space.middle(f"top{count}", tuple(range(model.n_layer))[-count:])


def single_choices(space: Space, model: Config) -> list[Choice]:
    """Every block alone."""
    return [space.middle(str(block), (block,)) for block in range(model.n_layer)]
