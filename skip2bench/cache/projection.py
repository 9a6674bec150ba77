"""Which directions of a block's output its adapter needs, and how much each block has to give.

With g_n the gradient of the loss at what enters `lm_head` and x_n what the adapter of a block reads
at position n, the first gradient of A is Bᵀ M with

    M = Σ_n g_n x_nᵀ   (d, d)

whatever B is: the part of x that A can learn from is what M does not send to zero, and the best N
directions for the first updates are its top right singular vectors. M is never made: with thin QR
factors of X (n, d) and G (n, d) its singular vectors are those of a matrix of at most n rows. What
is taken of the loss and the model is `train.calibration`'s.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from skip2bench.config.train import ProjectionName

_LEAST = 1e-7
"""Singular values below this share of the largest one are rounding."""


def find_projection(
    kind: ProjectionName, features: Tensor, gradients: Tensor, count: int, seed: int
) -> Tensor:
    """The frozen P of one block, with orthonormal rows.

    Args:
        kind: "gradient" takes the top right singular vectors of M, "pca" those of X (uncentred),
            "random" a random subspace. Where there are fewer positions than rows to find,
            "gradient" goes on with "pca", and that with "random".
        features: What the adapter reads at the calibration positions, (n, d).
        gradients: Of the loss at what enters `lm_head`, (n, d).
        count: N, at most d.
        seed: Of random rows; the block's number, so that no run's seed moves them.

    Returns:
        (N, d), in float32.
    """
    X = features.double()
    rows = X.new_zeros(0, X.size(1))
    if kind == "gradient":
        rows = gradient_directions(X, gradients.double())[0][:count]
    if kind != "random" and len(rows) < count:
        # of what no row has yet
        rest = X - (X @ rows.T) @ rows
        rows = _extend(rows, _principal_directions(rest)[: count - len(rows)])
    if len(rows) < count:
        drawn = torch.Generator().manual_seed(seed)
        shape = (count - len(rows), X.size(1))
        rows = _extend(rows, torch.randn(shape, generator=drawn, dtype=torch.float64))
    return rows.float()


def gradient_directions(features: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Right singular vectors of M with their singular values, the largest first.

    Args:
        features: X, (n, d).
        gradients: G, (n, d_out).

    Returns:
        Orthonormal rows (m, d) and values (m,), m at most the rank of M.
    """
    basis, right = torch.linalg.qr(features.T)
    _, left = torch.linalg.qr(gradients.T, mode="r")
    _, values, vectors = torch.linalg.svd(left @ right.T, full_matrices=False)
    kept = values > _LEAST * values[:1]
    return vectors[kept] @ basis.T, values[kept]


def measure_energy(features: Tensor, gradients: Tensor) -> float:
    """How much of the loss's gradient meets the directions of a block's features.

    ‖M‖² over Σ‖g_n‖² · Σ‖x_n‖²: 1 where one outer product g xᵀ would serve all positions, about one
    over the positions where no two of them have anything in common. It does not depend on the size
    of the features.
    """
    X, G = features.double(), gradients.double()
    # ‖GᵀX‖² = <G Gᵀ, X Xᵀ>
    met = ((G @ G.T) * (X @ X.T)).sum()
    return float(met / (X.square().sum() * G.square().sum()))


def rank_features(features: Sequence[Tensor], gradients: Tensor) -> list[tuple[int, float]]:
    """Places of the features, the most useful first, each with what it adds to those before it.

    Outputs of neighbouring blocks are much alike, so the highest energies alone would choose the
    same thing again and again. After each choice the gradient loses what that block's features can
    explain of it (by ridge regression, its penalty their mean squared size), and the rest are
    measured against what remains.

    Args:
        features: What each adapter reads, K tensors (n, d).
        gradients: Of the loss at what enters `lm_head`, (n, d).

    Returns:
        K pairs of place and energy: `measure_energy` against the remaining gradient, by the size of
        the whole one.
    """
    kernels = [_unit_kernel(x) for x in features]
    G = gradients.double()
    whole, left, ranking = G.square().sum(), dict(enumerate(kernels)), []
    while left:
        energies = {k: float(((G @ G.T) * kernel).sum() / whole) for k, kernel in left.items()}
        best = max(energies, key=energies.__getitem__)
        ranking.append((best, energies[best]))
        kernel = left.pop(best)
        n = len(kernel)
        # the residual of ridge regression on the features: λ (K + λ)⁻¹ G, λ = trace / n
        penalty = torch.eye(n, dtype=torch.float64) / n
        G = torch.linalg.solve(kernel + penalty, penalty @ G)
    return ranking


def _unit_kernel(features: Tensor) -> Tensor:
    """X Xᵀ (n, n), scaled to a trace of 1."""
    X = features.double()
    kernel = X @ X.T
    return kernel / kernel.trace()


def _principal_directions(features: Tensor) -> Tensor:
    """Right singular vectors (m, d) of X itself, the largest singular value first."""
    _, values, vectors = torch.linalg.svd(features, full_matrices=False)
    kept: Tensor = vectors[values > _LEAST * values[:1]]
    return kept


def _extend(rows: Tensor, others: Tensor) -> Tensor:
    """Orthonormal rows, and what is new in others made orthonormal, below them."""
    for _ in range(2):  # once leaves what rounding put back
        others = others - (others @ rows.T) @ rows
        others = torch.linalg.qr(others.T)[0].T
    return torch.cat([rows, others])
