import pytest
import torch

from skip2bench.environment import (
    choose_device,
    choose_precision,
    describe_environment,
    weights_dtype,
)
from skip2bench.errors import Skip2BenchError

CPU = torch.device("cpu")


def test_the_environment_says_what_a_reader_must_know():
    environment = describe_environment(CPU, ["train", "--data", "a b.json"])
    assert environment["command"] == "skip2bench train --data 'a b.json'"
    assert environment["torch"] == torch.__version__
    assert environment["gpu"] is None
    assert environment["litgpt"]
    assert environment["processor"]
    assert environment["memory_bytes"] > 1 << 30
    assert len(environment["load_average"]) == 3


def test_devices_and_precisions():
    assert choose_device("cpu") == CPU
    assert choose_precision("auto", CPU) == "32-true"
    assert choose_precision("bf16-mixed", CPU) == "bf16-mixed"
    assert weights_dtype("bf16-true") == torch.bfloat16
    assert weights_dtype("bf16-mixed") == weights_dtype("32-true") == torch.float32


def test_a_device_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        Skip2BenchError, match=r"device 'cuda' is not available .*; use --device auto"
    ):
        choose_device("cuda")


@pytest.mark.parametrize("precision", ["16-true", "16-mixed"])
def test_float16_on_a_cpu_is_refused_not_replaced(precision):
    with pytest.raises(Skip2BenchError, match=f"'{precision}' needs a GPU; use 'bf{precision}'"):
        choose_precision(precision, CPU)
