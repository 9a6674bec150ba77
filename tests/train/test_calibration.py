"""What scaled features are divided by: the same whatever the run, and kept with the adapter."""

import shutil

import pytest
import torch
from caches import make_model
from safetensors.torch import load_file

from skip2bench.config.train import TrainConfig
from skip2bench.errors import Skip2BenchError
from skip2bench.models.adapters import load_skip_model
from skip2bench.models.base import load_checkpoint
from skip2bench.models.methods import build_model
from skip2bench.train.calibration import calibration_ids
from skip2bench.train.plan import plan_training

FEW = {"max_steps": 2, "eval_interval": 2}


@pytest.fixture
def sizes(train):
    """The relative sizes that a run ends with."""

    def run(name, **changes):
        folder = train(name, **(FEW | changes))[3]
        return load_file(folder / "final" / "adapter.safetensors")["adapters.relative_sizes"]

    return run


def test_they_are_means_over_the_first_samples_whatever_the_run(train, sizes):
    """By hand, sample by sample and position by position."""
    config = TrainConfig(
        checkpoint_dir=train.checkpoint, data=str(train.data), blocks="0,1,3", device="cpu"
    )
    plan = plan_training(config)
    base = load_checkpoint(plan.base_folder, torch.device("cpu"), torch.float32)
    model = build_model(plan.settings, base, torch.device("cpu"), 0).eval()
    ratios = []
    for i in range(16):
        outputs = [h[0] for h in model.compute_features(plan.data.train.input_ids[i][None])]
        labels = plan.data.train.labels[i]
        for t in range(len(labels) - 1):
            if labels[t + 1] != -100:
                rms = [(h[t].square().mean() + 1e-5).sqrt() for h in outputs]
                ratios.append(torch.stack(rms) / rms[-1])
    expected = torch.stack(ratios).mean(0)
    assert expected.unique().numel() == 3
    for name, changes in {
        "skip2": {"method": "skip2"},
        "skip": {"method": "skip", "seed": 5, "max_steps": 1},
        "one": {"method": "skip2", "blocks": "1", "global_batch_size": 1, "max_steps": 1},
        "disk": {"method": "skip2", "cache_tier": "disk", "seed": 9},
        "partial": {"method": "skip2", "cache_max_bytes": "100000", "share_b": True},
        "streamed": {"method": "skip2", "stream_blocks": True, "global_batch_size": 2},
        "logits": {"method": "skip2", "target": "logits"},
    }.items():
        wanted = expected[1:2] if name == "one" else expected
        torch.testing.assert_close(sizes(name, **changes), wanted, rtol=1e-5, atol=0)


def test_raw_features_have_none(train):
    folder = train(method="skip2", features="raw", **FEW)[3]
    names = load_file(folder / "final" / "adapter.safetensors").keys()
    assert set(names) == {"adapters.lora_A", "adapters.lora_B"}


def test_it_has_a_clock_of_its_own_within_training_s(train):
    summary = train(method="skip", **FEW)[0]
    assert 0 < summary["calibration_seconds"] < summary["train_seconds"]
    assert (summary["features"], summary["share_b"]) == ("scaled", False)
    assert train("lora", method="lora", **FEW)[0]["features"] is None


@pytest.mark.parametrize("share_b", [False, True])
@pytest.mark.parametrize("features", ["scaled", "raw"])
def test_a_loaded_adapter_has_the_loss_that_the_run_ended_with(train, features, share_b):
    summary, _, _, folder = train(method="skip2", features=features, share_b=share_b, max_steps=6)
    model = load_skip_model(folder / "final")
    data = plan_training(
        TrainConfig(checkpoint_dir=train.checkpoint, data=str(train.data), device="cpu")
    ).data.val
    total = 0.0
    for ids, labels in zip(data.input_ids, data.labels, strict=True):
        logits = model(ids[None])[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum"))
    assert total / sum(data.supervised_counts) == pytest.approx(summary["final_val_loss"], rel=1e-5)


def test_few_samples_are_all_looked_at(samples):
    assert calibration_ids(samples) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "blocks give what is not finite; use --precision 32-true"),
        (float("inf"), "blocks give what is not finite; use --precision 32-true"),
        (0.0, "nothing but zeros at a position, so that features cannot be scaled"),
    ],
)
def test_last_outputs_that_cannot_divide_are_refused(value, message):
    model, features = make_model(), torch.ones(5, 3, 16)
    features[2, -1] = value
    with pytest.raises(Skip2BenchError, match=message):
        model.measure_relative_sizes(features)


def test_a_block_without_output_is_named():
    model, features = make_model(), torch.ones(5, 3, 16)
    features[:, 1] = 0
    with pytest.raises(Skip2BenchError, match="block 2 gives nothing but zeros"):
        model.measure_relative_sizes(features)


def test_a_checkpoint_that_cannot_be_scaled_ends_in_one_line(train, tmp_path):
    base = shutil.copytree(train.checkpoint, tmp_path / "base")
    weights = torch.load(base / "lit_model.pth", weights_only=True)
    weights["transformer.wte.weight"].zero_()
    torch.save(weights, base / "lit_model.pth")
    with pytest.raises(Skip2BenchError, match="nothing but zeros at a position"):
        train(method="skip2", checkpoint_dir=base, **FEW)
    assert not (tmp_path / "run" / "final").exists()
