"""`--cache-project`: adapters that read a few directions of each block's output."""

import pytest
import torch
import yaml
from caches import make_model
from lightning.fabric import Fabric
from safetensors.torch import load_file

import skip2bench.train.loop
from skip2bench.cache.kept import CacheFolder
from skip2bench.cache.skip_cache import supervised_rows
from skip2bench.config.train import TrainConfig
from skip2bench.data.samples import collate
from skip2bench.errors import Skip2BenchError
from skip2bench.models.adapters import load_skip_model
from skip2bench.models.loss import token_loss
from skip2bench.models.skip import SkipGPT, SkipSettings
from skip2bench.train import calibration
from skip2bench.train.plan import plan_training

PROJECTED = {"cache_project": 6, "max_steps": 10, "eval_interval": 5}


def measure_val_loss(train, model):
    """Of a model on tokens, over the validation samples of the run's data."""
    config = TrainConfig(checkpoint_dir=train.checkpoint, data=str(train.data), device="cpu")
    val = plan_training(config).data.val
    total, positions = 0.0, 0
    for i in range(len(val)):
        input_ids, labels = collate(val, [i])
        rows, targets = supervised_rows(labels)
        with torch.no_grad():
            total += float(token_loss(model, input_ids, rows, targets))
        positions += len(rows)
    return total / positions


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "skip2"},
        {"method": "skip"},
        {"method": "skip2", "cache_projection": "random"},
        {"method": "skip2", "cache_projection": "pca", "share_b": True},
        {"method": "skip2", "features": "raw", "learning_rate": 1e-3},
        {"method": "skip2", "target": "logits"},
        {"method": "skip2", "algebra": "folded"},
        {"method": "skip2", "cache_tier": "disk"},
    ],
    ids=str,
)
def test_the_saved_adapter_is_an_ordinary_one_with_the_same_loss(train, changes):
    summary, _, _, folder = train(**(PROJECTED | changes))
    final = folder / "final"
    tensors = load_file(final / "adapter.safetensors")
    assert tensors["adapters.lora_A"].shape == (3, 16, 16)
    assert not any("projection" in name for name in tensors)
    assert "projected" not in yaml.safe_load((final / "adapter_config.yaml").read_text())
    model = load_skip_model(final)
    assert model.settings.projected is None
    assert summary["kept_val_loss"] < summary["initial_val_loss"] - 1e-3
    assert abs(measure_val_loss(train, model) - summary["kept_val_loss"]) < 1e-5
    assert summary["trainable_parameters"] == count_trainable(**changes)


def count_trainable(share_b=False, target="hidden", **_):
    return 3 * 16 * 6 + (1 if share_b else 3) * 16 * (16 if target == "hidden" else 320)


@pytest.mark.parametrize(
    "changes",
    [{}, {"cache_max_bytes": "60000"}, {"stream_blocks": True}, {"target": "logits"}],
    ids=str,
)
def test_losses_are_those_without_a_cache(train, changes):
    """Dropout is off; samples without room pass the blocks, and the projection, anew."""
    target = {name: changes[name] for name in changes if name == "target"}
    _, expected, expected_steps, _ = train("skip", method="skip", **PROJECTED, **target)
    summary, metrics, steps, _ = train("skip2", method="skip2", **PROJECTED, **changes)
    assert (metrics["val_loss"] - expected["val_loss"]).abs().max() < 1e-5
    assert (steps["loss"] - expected_steps["loss"]).abs().max() < 1e-5
    assert (summary["recomputed_samples"] > 0) == ("cache_max_bytes" in changes)


def test_all_of_a_block_s_directions_are_the_block(train):
    """A square P only turns A: with A fixed at zero learning, the relative sizes are the same."""
    whole = train("whole", method="skip2", **{"max_steps": 2, "eval_interval": 2})[3]
    turned = train("turned", method="skip2", cache_project=16, max_steps=2, eval_interval=2)[3]
    sizes = [
        load_file(folder / "final" / "adapter.safetensors")["adapters.relative_sizes"]
        for folder in (whole, turned)
    ]
    torch.testing.assert_close(sizes[0], sizes[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_narrow_caches_hold_projections_too(train, dtype):
    exact = train("exact", method="skip2", **PROJECTED)[0]
    narrow = train("narrow", method="skip2", cache_dtype=dtype, **PROJECTED)[0]
    rows = exact["cache_bytes"] // (16 * 4 + 3 * 6 * 4 + 8)
    scales = 4 * 4 if dtype == "int8" else 0
    width = 1 if dtype == "int8" else 2
    assert narrow["cache_bytes"] == rows * ((16 + 3 * 6) * width + scales + 8)
    assert narrow["final_val_loss"] == pytest.approx(exact["final_val_loss"], abs=2e-2)


def test_the_projection_is_the_same_whatever_the_seed(train, tmp_path):
    """So a cache that was kept serves runs of other seeds, and none of another projection."""
    settings = {"method": "skip2", "cache_dir": tmp_path / "kept", **PROJECTED}
    assert not train("first", **settings)[0]["cache_kept"]
    entries = CacheFolder(tmp_path / "kept").entries()
    assert [entry.layout.projected_blocks for entry in entries] == [(0, 1, 3)] * 2
    assert train("again", seed=7, skip_r=4, **settings)[0]["cache_kept"]
    for name, changes in {
        "random": {"cache_projection": "random"},
        "fewer": {"blocks": "0,1"},
        "smaller": {"cache_project": 5},
        "whole": {"cache_project": None},
    }.items():
        assert not train(name, **(settings | changes))[0]["cache_kept"]


def stop_after(monkeypatch, step):
    take_step = skip2bench.train.loop.take_step

    def take(run, number, *arguments):
        if number + 1 == step:
            run.stop.make()
        return take_step(run, number, *arguments)

    monkeypatch.setattr(skip2bench.train.loop, "take_step", take)


@pytest.mark.parametrize("changes", [{}, {"cache_tier": "disk"}, {"method": "skip"}], ids=str)
def test_a_stopped_run_goes_on_with_the_projection_it_had(train, monkeypatch, changes):
    settings = {"method": "skip2", "lora_dropout": 0.1, **PROJECTED, **changes}
    _, _, expected, undisturbed = train("undisturbed", **settings)
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            train(**settings)
    # not by finding it again, which other threads or versions might do differently
    monkeypatch.setattr("skip2bench.train.parts.project_features", None)
    summary, _, steps, folder = train(resume=True, **settings)
    assert (summary["status"], summary["resumed_at_steps"]) == ("ok", [7])
    assert steps["loss"].equals(expected["loss"])
    name = "final/adapter.safetensors"
    assert (folder / name).read_bytes() == (undisturbed / name).read_bytes()


def test_outputs_that_are_not_finite_are_one_line_for_raw_features_too(samples):
    model = SkipGPT(make_model().config, SkipSettings(blocks=(0,), r=2, alpha=4, features="raw"))
    torch.nn.init.constant_(model.transformer.h[0].mlp.proj.weight, torch.inf)
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    with pytest.raises(Skip2BenchError, match="not finite; use --precision 32-true"):
        calibration.probe(fabric, model, samples)


def test_few_supervised_positions_are_enough(train):
    summary = train(method="skip2", train_samples=2, global_batch_size=2, **PROJECTED)[0]
    assert summary["status"] == "ok"


def test_it_looks_at_the_first_samples_until_it_has_positions_enough(train, monkeypatch):
    config = TrainConfig(checkpoint_dir=train.checkpoint, data=str(train.data), device="cpu")
    samples = plan_training(config).data.train
    counts = samples.supervised_counts
    assert calibration._ids_to_probe(samples) == list(range(16))
    monkeypatch.setattr(calibration, "_MOST_PROBED", 10**7)
    monkeypatch.setattr(calibration, "_FEWEST_PROBED", sum(counts[:20]))
    assert calibration._ids_to_probe(samples) == list(range(20))
    monkeypatch.setattr(calibration, "_FEWEST_PROBED", 10**6)
    assert calibration._ids_to_probe(samples) == list(range(len(samples)))


def test_its_time_is_in_the_training_clock(train):
    summary = train(method="skip2", **PROJECTED)[0]
    assert 0 < summary["calibration_seconds"] < summary["train_seconds"]
