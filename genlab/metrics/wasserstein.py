"""The earth mover's distance in one dimension, where it has a closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.metrics.base import FeatureMetric


class WassersteinDistance(FeatureMetric):
    """The mean 1-Wasserstein distance between each feature of the samples and of the real ones.

        W1 = integral over u in (0, 1) of |F^-1(u) - G^-1(u)|,  F and G the two distribution functions

    Exact for one feature, such as the points of a 1-D density; for several it compares the marginals only.

    Args:
        num_quantiles: Places u, evenly spaced, at which the two quantile functions are compared.

    Shapes:
        features: see `Features`; only `pool` is used.
    """

    higher_is_better = False

    def __init__(self, num_quantiles: int = 10_000) -> None:
        super().__init__()
        self.num_quantiles = num_quantiles

    def compute(self) -> dict[str, float]:
        fake, real = self.fake_and_real()
        return {"wasserstein": float(wasserstein_1d(fake.cpu(), real.cpu(), self.num_quantiles))}

    def protocol(self) -> dict[str, Any]:
        return {"num_quantiles": self.num_quantiles}


def wasserstein_1d(a: Tensor, b: Tensor, num_quantiles: int = 10_000) -> Tensor:
    """Returns the 1-Wasserstein distance of two sets of numbers, averaged over their columns.

    Shapes:
        a: (n, d); b: (m, d). Returns a scalar.
    """
    middle = (torch.arange(num_quantiles, dtype=a.dtype) + 0.5) / num_quantiles
    return (torch.quantile(a, middle, dim=0) - torch.quantile(b, middle, dim=0)).abs().mean()
