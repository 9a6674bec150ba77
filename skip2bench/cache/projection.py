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
    of the features; features of nothing but zeros have none.
    """
    X, G = features.double(), gradients.double()
    # ‖GᵀX‖² = <G Gᵀ, X Xᵀ>
    met = ((G @ G.T) * (X @ X.T)).sum()
    size = X.square().sum() * G.square().sum()
    return float(met / size.clamp(min=torch.finfo(torch.float64).tiny))


def rank_features(features: Sequence[Tensor], gradients: Tensor) -> list[tuple[int, float]]:
    """Places of the features by `measure_energy`, the highest first, each with its energy.

    Each by itself: outputs of neighbouring blocks are much alike, but a choice that made up for it
    ended higher (docs/defaults.md has the measurements).

    Args:
        features: What each adapter reads, K tensors (n, d).
        gradients: Of the loss at what enters `lm_head`, (n, d).
    """
    energies = [(k, measure_energy(x, gradients)) for k, x in enumerate(features)]
    return sorted(energies, key=lambda pair: (-pair[1], pair[0]))


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
