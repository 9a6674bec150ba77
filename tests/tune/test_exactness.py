"""Every configuration of a sweep follows the losses of the same configuration trained alone."""

import pytest

from skip2bench.config.blocks import parse_blocks
from skip2bench.models.skip import SkipSettings

MIXED = (
    {"blocks": "0,1,3", "skip_r": 2},
    {"blocks": "3", "skip_r": 5, "learning_rate": 3e-2},
    {"blocks": "all", "skip_r": 1, "weight_decay": 0.1, "max_norm": 0.05},
    {"blocks": "1,2", "skip_r": 3, "features": "raw", "learning_rate": 1e-3},
    {"blocks": "0,2", "skip_r": 4, "share_b": True, "lora_alpha": 32},
    {"blocks": "2", "skip_r": 2, "target": "logits"},
    {"blocks": "all", "skip_r": 16},  # wider than the model: by its own product with the head
)
PARTIAL = "160000"


def start(ground, changes):
    settings = SkipSettings(
        blocks=parse_blocks(changes["blocks"], 4),
        r=changes["skip_r"],
        alpha=changes.get("lora_alpha", 16),
        target=changes.get("target", "hidden"),
        features=changes.get("features", "scaled"),
        share_b=changes.get("share_b", False),
    )
    own = {name: changes[name] for name in ("weight_decay", "max_norm") if name in changes}
    return ground.start(settings, changes.get("learning_rate", 1e-2), **own)


@pytest.mark.parametrize(
    "where",
    [
        {"cache_tier": "ram"},
        {"cache_tier": "disk"},
        {"cache_tier": "ram", "algebra": "folded"},
        {"cache_max_bytes": PARTIAL},
    ],
    ids=str,
)
def test_a_sweep_follows_runs_of_their_own(ground, train, where):
    alone = [
        train(f"alone{number}", cache_tier="ram", eval_interval=5, **changes)
        for number, changes in enumerate(MIXED)
    ]
    made = ground(**where)
    trials = [start(made, changes) for changes in MIXED]
    ways = made.sweep.ways(trials)
    assert set(ways) == {"folded", "head"}
    val_losses = [made.sweep.validation_losses(trials)]
    for step in range(10):
        made.sweep.take_step(trials)
        if step % 5 == 4:
            val_losses.append(made.sweep.validation_losses(trials))
    for place, (trial, (_, metrics, steps, _)) in enumerate(zip(trials, alone, strict=True)):
        assert trial.losses == pytest.approx(steps["loss"].tolist(), abs=1e-5)
        own = [losses[place] for losses in val_losses]
        assert own == pytest.approx(metrics["val_loss"].tolist(), abs=1e-5)
