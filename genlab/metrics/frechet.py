"""The Frechet distance between two sets of features, from their moments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.metrics.base import Drawn, Reference, SampleMetric, checked, features_of
from genlab.metrics.gaussian import frechet_distance


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

    def update(self, drawn: Drawn) -> None:
        x = features_of(drawn).pool.to(self.total.device, torch.float64)
        self.total += x.sum(dim=0)
        self.outer += x.mT @ x
        self.index.append(drawn.index.to(self.total.device))

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
