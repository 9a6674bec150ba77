import pytest
import torch

from skip2bench.models.dropout import dropped, keep_scale

CPU = torch.device("cpu")


@pytest.mark.parametrize("p", [0.0, 0.05, 0.5, 0.999])
def test_the_share_dropped_is_the_one_asked_for(p):
    torch.manual_seed(0)
    kept = (dropped(torch.ones(1000, 1001), p) != 0).double().mean().item()
    assert kept == pytest.approx(1 - p, abs=4 * (p * (1 - p) / 1_001_000) ** 0.5 + 2**-16)


def test_the_expectation_is_the_input():
    torch.manual_seed(0)
    features = torch.full((1000, 1001), 3.0)
    assert (dropped(features, 0.3) * keep_scale(0.3, CPU)).mean().item() == pytest.approx(
        3, rel=5e-3
    )


def test_neighbours_are_dropped_independently():
    """Four elements come from one draw."""
    torch.manual_seed(0)
    kept = (dropped(torch.ones(100_000, 4), 0.5) != 0).double()
    correlation = torch.corrcoef(kept.t()) - torch.eye(4)
    assert correlation.abs().max() < 0.02


def test_the_generator_of_torch_is_used():
    features = torch.ones(7, 3)
    torch.manual_seed(5)
    first = dropped(features, 0.5)
    assert not torch.equal(first, dropped(features, 0.5))
    torch.manual_seed(5)
    assert torch.equal(first, dropped(features, 0.5))


def test_dtype_and_shape_stay():
    out = dropped(torch.ones(3, 5, 7, dtype=torch.bfloat16), 0.1)
    assert (out.dtype, out.shape) == (torch.bfloat16, (3, 5, 7))
