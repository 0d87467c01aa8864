"""The earth mover's distance in one dimension, where it has a closed form."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from genlab.metrics.base import SampleMetric, exact
from genlab.metrics.features import Features


class WassersteinDistance(SampleMetric):
    """The mean 1-Wasserstein distance between each feature of the samples and of the real ones.

        W1 = integral over u in (0, 1) of |F^-1(u) - G^-1(u)|,  F and G the two distribution functions

    Exact for one feature, such as the points of a 1-D density; for several it compares the marginals only.

    Args:
        num_quantiles: Places u, evenly spaced, at which the two quantile functions are compared.

    Shapes:
        features: see `Features`; only `pool` is used.
    """

    higher_is_better = False
    needs: ClassVar[frozenset[str]] = frozenset({"features"})
    rows: list[Tensor]

    def __init__(self, num_quantiles: int = 10_000) -> None:
        super().__init__()
        self.num_quantiles = num_quantiles
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, features: Features, index: Tensor) -> None:
        self.rows.append(features.pool)
        self.index.append(index.to(features.pool.device))

    def compute(self) -> dict[str, float]:
        samples = exact(self.in_order(self.rows)).cpu()
        return {
            "wasserstein": float(wasserstein_1d(samples, exact(self.reference.features), self.num_quantiles))
        }

    def protocol(self) -> dict[str, Any]:
        return {"num_quantiles": self.num_quantiles}


def wasserstein_1d(a: Tensor, b: Tensor, num_quantiles: int = 10_000) -> Tensor:
    """Returns the 1-Wasserstein distance of two sets of numbers, averaged over their columns.

    Shapes:
        a: (n, d); b: (m, d). Returns a scalar.
    """
    middle = (torch.arange(num_quantiles, dtype=a.dtype) + 0.5) / num_quantiles
    return (torch.quantile(a, middle, dim=0) - torch.quantile(b, middle, dim=0)).abs().mean()
