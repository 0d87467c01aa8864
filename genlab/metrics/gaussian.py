"""The distance between two normal distributions, by a symmetric eigenvalue problem."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(
    mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor, factor: Tensor | None = None
) -> float:
    """Returns the squared 2-Wasserstein distance of two Gaussians.

        |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))

    Dowson and Landau 1982; as FID, Heusel et al. 2017 (arXiv:1706.08500), eq. 6. With C1 = L L^T, the
    matrix C1 C2 has the eigenvalues of the symmetric L^T C2 L, whose square roots sum to the trace.

    Args:
        mean1: Mean of the first set, the reference.
        cov1: Covariance of the first set.
        mean2: Mean of the second set.
        cov2: Covariance of the second set.
        factor: L, if it is at hand.

    Shapes:
        mean: (d,), cov and factor: (d, d), float64.
    """
    factor = covariance_factor(cov1) if factor is None else factor
    eigenvalues = torch.linalg.eigvalsh(factor.mT @ cov2 @ factor)
    trace_of_root = eigenvalues.clamp_min(0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * trace_of_root
    return max(float(distance), 0.0)


def covariance_factor(cov: Tensor) -> Tensor:
    """Returns L with L L^T = cov, up to a relative jitter of 1e-12; by eigenvectors where Cholesky fails.

    Fewer samples than dimensions make a singular covariance; the jitter lets Cholesky pass at a fraction
    of the eigenvectors' cost.
    """
    jitter = 1e-12 * cov.diagonal().mean()
    factor, failed = torch.linalg.cholesky_ex(cov + jitter * torch.eye(len(cov)).to(cov))
    if not int(failed):
        return factor
    eigenvalues, vectors = torch.linalg.eigh(cov)
    return vectors * eigenvalues.clamp_min(0).sqrt()
