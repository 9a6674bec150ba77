"""Directions of features that a gradient meets, and how much of it."""

import pytest
import torch

from skip2bench.cache.projection import (
    find_projection,
    gradient_directions,
    measure_energy,
    rank_features,
)


def make(n, d=12, seed=0):
    torch.manual_seed(seed)
    return torch.randn(n, d), torch.randn(n, 9)


@pytest.mark.parametrize("n", [3, 9, 40])
def test_gradient_directions_are_the_right_singular_vectors_of_the_product(n):
    X, G = make(n)
    rows, values = gradient_directions(X.double(), G.double())
    _, expected, vectors = torch.linalg.svd((G.T @ X).double(), full_matrices=False)
    assert len(values) == min(n, 9)
    torch.testing.assert_close(values, expected[: len(values)], rtol=1e-5, atol=1e-8)
    overlaps = (rows * vectors[: len(rows)]).sum(1).abs()  # up to their sign
    torch.testing.assert_close(overlaps, torch.ones_like(overlaps), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["gradient", "pca", "random"])
@pytest.mark.parametrize("n", [2, 5, 40])
@pytest.mark.parametrize("count", [1, 7, 12])
def test_rows_are_orthonormal_whatever_the_rank(kind, n, count):
    rows = find_projection(kind, *make(n), count, seed=3)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows @ rows.T, torch.eye(count), rtol=0, atol=1e-5)


def test_what_the_gradient_leaves_is_filled_with_principal_directions_and_then_at_random():
    X, G = make(6)
    G[2:] = 0  # a product of rank 2
    rows = find_projection("gradient", X, G, 9, seed=3)
    leading = gradient_directions(X.double(), G.double())[0].float()
    assert len(leading) == 2
    torch.testing.assert_close(rows[:2], leading)
    # six rows hold all of six positions
    torch.testing.assert_close(X @ rows[:6].T @ rows[:6], X, rtol=0, atol=1e-5)
    others = find_projection("gradient", X, G, 9, seed=4)
    torch.testing.assert_close(rows[:6], others[:6])
    assert not torch.allclose(rows[6:], others[6:])
    assert torch.equal(rows, find_projection("gradient", X, G, 9, seed=3))


def test_the_gradient_s_subspace_keeps_more_of_the_product_than_others():
    X, G = make(40)
    kept = {
        kind: (G.T @ X @ find_projection(kind, X, G, 4, seed=1).T).norm()
        for kind in ("gradient", "pca", "random")
    }
    assert kept["gradient"] > max(kept["pca"], kept["random"])


def test_energy_is_a_share_that_size_does_not_move():
    X, G = make(8)
    assert measure_energy(X, G) == pytest.approx(measure_energy(100 * X, 0.1 * G), rel=1e-6)
    assert 0 < measure_energy(X, G) < 1
    assert measure_energy(0 * X, G) == 0
    same = torch.ones(5, 1)
    assert measure_energy(same * X[:1], same * G[:1]) == pytest.approx(1)
    assert measure_energy(torch.eye(8), torch.eye(8)) == pytest.approx(1 / 8)


def test_features_are_ranked_by_their_energy():
    X, G = make(30, d=6)
    met = X + 0.8 * (G @ torch.randn(9, 6))  # more of the gradient is in it
    energies = [measure_energy(x, G) for x in (X, met, 2 * X)]
    assert rank_features([X, met, 2 * X], G) == [
        (1, energies[1]),
        *sorted([(0, energies[0]), (2, energies[2])], key=lambda pair: (-pair[1], pair[0])),
    ]
    assert energies[0] == pytest.approx(energies[2])
