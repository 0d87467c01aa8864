"""The Frechet distance between two sets of features, by a symmetric eigenvalue problem."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genlab.metrics.base import SampleMetric, checked
from genlab.metrics.features import Features

if TYPE_CHECKING:
    from genlab.metrics.reference import Reference


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


class Moments(SampleMetric):
    """Counts, sums and outer products of features in float64: mean and covariance without keeping a row.

    Shapes:
        total: (d,); outer: (d, d).
    """

    needs = frozenset({"sums"})
    total: Tensor
    outer: Tensor

    def allocate(self, num_features: int) -> None:
        """Makes room for features of this length, on the metric's device."""
        if getattr(self, "total", torch.empty(0)).shape != (num_features,):
            for name, shape in (("total", (num_features,)), ("outer", (num_features, num_features))):
                zeros = torch.zeros(shape, dtype=torch.float64, device=self.device)
                self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, features: Features, index: Tensor) -> None:
        x = features.pool.to(self.total.device, torch.float64)
        self.total += x.sum(dim=0)
        self.outer += x.mT @ x
        self.index.append(index.to(self.total.device))

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Returns the mean and the unbiased covariance of all samples, on the CPU."""
        num = len(self.numbers())
        mean, outer = checked(self.total.cpu()) / num, self.outer.cpu()
        return mean, (outer - num * torch.outer(mean, mean)) / (num - 1)


class FrechetDistance(Moments):
    """FID: the Frechet distance between generated and real features. Lower is better.

    It falls with the number of samples, hence compares only at equal counts.
    """

    higher_is_better = False

    def set_reference(self, reference: Reference) -> None:
        super().set_reference(reference)
        self.allocate(len(reference.mean))

    def compute(self) -> dict[str, float]:
        mean, covariance = self.mean_and_covariance()
        real = self.reference
        return {"fid": frechet_distance(real.mean, real.covariance, mean, covariance, real.factor)}

    def protocol(self) -> dict[str, Any]:
        return {"ddof": 1}
