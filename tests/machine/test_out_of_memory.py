import errno

import pytest
import torch

from skip2bench.machine.out_of_memory import (
    DoesNotFitError,
    fitting,
    is_out_of_memory,
    read_requested_bytes,
)


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total", 20 * 2**20),
        ("CUDA out of memory. Tried to allocate 2.50 GiB (GPU 0; 8.00 GiB total", 2.5 * 2**30),
        ("CUDA out of memory. Tried to allocate 512 bytes. GPU 0", 512),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9000 bytes.", 9000),
        ("CUDA out of memory. Tried to allocate more than 1EB memory.", None),
        ("CUDA error: out of memory", None),
        ("", None),
    ],
)
def test_the_size_that_was_asked_for(message, size):
    assert read_requested_bytes(torch.OutOfMemoryError(message)) == size


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        OSError(errno.ENOMEM, "no memory"),
        RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_memory_that_runs_out_is_told_with_its_phase(error):
    assert is_out_of_memory(error)
    with pytest.raises(DoesNotFitError) as caught, fitting("model"), fitting("backward"):
        raise error
    misfit = {"status": "oom", "requested_bytes": None, "oom_phase": "backward"}
    assert caught.value.describe() == misfit
    assert str(caught.value) == "out of memory in backward"
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), OSError("no such file")])
def test_other_errors_pass(error):
    with pytest.raises(type(error), match=str(error)), fitting("backward"):
        raise error
