"""`--cache-project`: adapters that read a few directions of each block's output."""

import pytest
import torch
from safetensors.torch import load_file

from skip2bench.cache.skip_cache import supervised_rows
from skip2bench.config.train import TrainConfig
from skip2bench.data.samples import collate
from skip2bench.models.adapters import load_skip_model
from skip2bench.models.loss import token_loss
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
        {"method": "skip2", "stream_blocks": True},
        {"method": "skip2", "cache_tier": "disk"},
    ],
    ids=str,
)
def test_the_saved_adapter_is_an_ordinary_one_with_the_same_loss(train, changes):
    summary, _, _, folder = train(**(PROJECTED | changes))
    tensors = load_file(folder / "final" / "adapter.safetensors")
    assert tensors["adapters.lora_A"].shape == (3, 16, 16)
    assert not any("projection" in name for name in tensors)
    assert "projected" not in (folder / "final" / "adapter_config.yaml").read_text()
    model = load_skip_model(folder / "final")
    assert model.settings.projected is None
    assert summary["kept_val_loss"] < summary["initial_val_loss"] - 1e-3
    assert abs(measure_val_loss(train, model) - summary["kept_val_loss"]) < 1e-5
