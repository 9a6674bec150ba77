"""Every configuration of a sweep follows the losses of the same configuration trained alone."""

import shutil

import pytest
import yaml

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


def start(ground, changes, dropout=0.0):
    settings = SkipSettings(
        blocks=parse_blocks(changes["blocks"], 4),
        r=changes["skip_r"],
        dropout=dropout,
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
        {"cache_project": 5},
    ],
    ids=str,
)
def test_a_sweep_follows_runs_of_their_own(ground, train, where):
    # a projection is of one kind of features
    mixed = [it for it in MIXED if "cache_project" not in where or "features" not in it]
    assert_follows(ground, train, mixed, where, {"folded", "head"})


@pytest.mark.gpu
def test_so_it_does_on_a_gpu(ground, train):
    device = {"device": "cuda", "precision": "32-true"}
    mixed = [changes | device for changes in MIXED]
    alone = [train(f"alone{n}", eval_interval=5, **changes) for n, changes in enumerate(mixed)]
    made = ground(**device)
    trials = [start(made, changes) for changes in mixed]
    for _ in range(10):
        made.sweep.take_step(trials)
    for trial, (_, _, steps, _) in zip(trials, alone, strict=True):
        assert trial.losses == pytest.approx(steps["loss"].tolist(), abs=1e-4)


def test_so_it_does_where_logits_are_capped(ground, train, tmp_path):
    folder = shutil.copytree(train.checkpoint, tmp_path / "capped")
    config = yaml.safe_load((folder / "model_config.yaml").read_text())
    (folder / "model_config.yaml").write_text(
        yaml.safe_dump(config | {"final_logit_softcapping": 3.0})
    )
    mixed = [changes | {"checkpoint_dir": folder} for changes in (MIXED[0], MIXED[4], MIXED[5])]
    assert_follows(ground, train, mixed, {"checkpoint_dir": folder}, {"capped", "head"})


def test_masks_do_not_depend_on_the_company(ground):
    made = ground()
    changes = {"blocks": "1,3", "skip_r": 3}
    company = [start(made, changes, dropout=0.4), start(made, MIXED[0], dropout=0.1)]
    alone, without = start(made, changes, dropout=0.4), start(made, changes)
    for _ in range(4):
        made.sweep.take_step(company)
    for _ in range(4):
        made.sweep.take_step([alone])
        made.sweep.take_step([without])
    assert alone.losses == pytest.approx(company[0].losses, abs=1e-6)
    assert alone.losses[3] != pytest.approx(without.losses[3], abs=1e-4)


def test_one_that_diverges_leaves_the_others_alone(ground):
    made = ground()
    good, bad = start(made, MIXED[0]), start(made, MIXED[2] | {"learning_rate": 1e20})
    alone = start(made, MIXED[0])
    while bad.diverged_at_step is None:
        made.sweep.take_step([good, bad])
        made.sweep.take_step([alone])
    assert good.losses == pytest.approx(alone.losses, abs=1e-6)
    assert good.step == alone.step == bad.step + 1


_ALONE = {}
"""Runs of their own, by what they differ in: where their cache lives is no part of it."""


def _run_alone(train, changes):
    key = repr(sorted(changes.items()))
    if key not in _ALONE:
        name = f"alone{len(_ALONE)}"
        _, metrics, steps, _ = train(name, cache_tier="ram", eval_interval=5, **changes)
        _ALONE[key] = metrics, steps
    return _ALONE[key]


def assert_follows(ground, train, mixed, where, expected_ways):
    projected = {k: v for k, v in where.items() if k == "cache_project"}
    alone = [_run_alone(train, changes | projected) for changes in mixed]
    made = ground(**where)
    trials = [start(made, changes) for changes in mixed]
    assert set(made.sweep.ways(trials)) == expected_ways
    val_losses = [made.sweep.validation_losses(trials)]
    for step in range(10):
        made.sweep.take_step(trials)
        if step % 5 == 4:
            val_losses.append(made.sweep.validation_losses(trials))
    for place, (trial, (metrics, steps)) in enumerate(zip(trials, alone, strict=True)):
        assert trial.losses == pytest.approx(steps["loss"].tolist(), abs=1e-5)
        own = [losses[place] for losses in val_losses]
        assert own == pytest.approx(metrics["val_loss"].tolist(), abs=1e-5)
