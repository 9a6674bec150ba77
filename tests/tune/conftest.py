"""A sweep on the tiny model."""

import time

import pytest

from skip2bench.config.train import TrainConfig
from skip2bench.machine.signals import StopRequest
from skip2bench.train.plan import plan_training
from skip2bench.tune.ground import lay_ground


@pytest.fixture
def ground(train, tmp_path):
    """Make one like the runs of `train`."""

    def make(**changes):
        values = {
            "checkpoint_dir": train.checkpoint,
            "data": str(train.data),
            "blocks": "0,1,2,3",
            "lora_dropout": 0.0,
            "lr_warmup_steps": 2,
            "global_batch_size": 8,
            "max_steps": 10,
            "device": "cpu",
        }
        plan = plan_training(TrainConfig(**(values | changes)))
        folder = tmp_path / "tune"
        folder.mkdir(exist_ok=True)
        environment = plan.describe_environment(["tune"])
        return lay_ground(plan, folder, environment, StopRequest(), time.monotonic(), 2)

    return make
