from types import SimpleNamespace

import pytest
import torch
from tiny import as_written

from skip2bench.errors import Skip2BenchError
from skip2bench.machine import environment, hardware
from skip2bench.machine.environment import (
    choose_device,
    choose_precision,
    describe_environment,
    weights_dtype,
)
from skip2bench.results.reading import check_environment

CPU = torch.device("cpu")


def test_the_environment_says_what_a_reader_must_know():
    found = as_written(describe_environment(CPU, ["train", "--data", "a b.json"]))
    assert found["command"] == "skip2bench train --data 'a b.json'"
    assert found["torch"] == torch.__version__
    assert found["gpu"] is None
    assert found["litgpt"]
    assert found["processor"]
    assert found["memory_bytes"] > 1 << 30
    assert len(found["load_average"]) == 3


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


@pytest.mark.parametrize(
    ("printed", "driver", "limit"),
    [
        ("GPU-aa, 1.0, 70.00\nGPU-bb, 570.86.15, 700.00", "570.86.15", 700.0),
        ("GPU-cc, 570.86.15, [N/A]", "570.86.15", None),
        (None, None, None),
    ],
)
def test_a_gpu_is_described_with_what_decides_its_speed(monkeypatch, printed, driver, limit):
    properties = SimpleNamespace(
        name="NVIDIA H100", total_memory=85 * 10**9, major=9, minor=0, uuid="bb"
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    monkeypatch.setattr(hardware, "run_command", lambda _command: printed)
    gpu = as_written(describe_environment(torch.device("cuda", 0), []))["gpu"]
    assert gpu == {
        "name": "NVIDIA H100",
        "memory_bytes": 85 * 10**9,
        "compute_capability": "9.0",
        "driver": driver,
        "power_limit_watts": limit,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "float32_matmul_precision": "highest",
        "cudnn_benchmark": False,
        "cudnn_deterministic": False,
    }
    assert as_written(check_environment({"gpu": gpu})) == {"gpu": gpu}


def test_settings_that_torch_refuses_to_tell_are_missing(monkeypatch):
    def refuse():
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    found = environment._read_tf32()
    assert found["float32_matmul_precision"] is None
    assert found["allow_tf32"] is False
