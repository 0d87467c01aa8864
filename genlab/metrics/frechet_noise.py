"""How far the FID of one model would move if other samples of it were drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.metrics.base import FeatureMetric, exact
from genlab.metrics.gaussian import frechet_distance


class FrechetNoise(FeatureMetric):
    """The standard error of FID over the samples, by a jackknife over groups of them.

        std^2 = (G - 1) / G  sum_g (fid_(-g) - mean_h fid_(-h))^2,    fid_(-g) without the samples of group g

    Quenouille and Tukey's jackknife, of groups. Leaving one out moves every fid_(-g) by the same bias, which
    the difference takes away. It is the noise of one model's score, with the real images as they are; what
    another training seed would change is not in it.

    Groups are G stretches of consecutive samples, whatever the batches and the devices. Every G-th sample
    would not do: sample i of a conditional model has class i mod K, and a group would take a class away.

    Args:
        num_groups: G. The estimate itself is uncertain by about 1 / sqrt(2 (G - 1)), 16 % for 20; each group
            costs one eigenvalue problem.
    """

    def __init__(self, num_groups: int = 20) -> None:
        super().__init__()
        if num_groups < 2:
            raise ValueError(f"num_groups must be at least 2, got {num_groups}.")
        self.num_groups = num_groups
        self._applied_groups = num_groups

    def compute(self) -> dict[str, float]:
        x = exact(self.in_order(self.rows)).cpu()
        # Without a group there must be two samples left for a covariance.
        groups = self._applied_groups = min(self.num_groups, len(x))
        if len(x) - -(-len(x) // groups) < 2:
            return {}
        total, outer = x.sum(dim=0), x.mT @ x
        left = torch.tensor(
            [self._distance(len(x), total, outer, group) for group in x.tensor_split(groups)],
            dtype=torch.float64,
        )
        return {"fid_std": float(((groups - 1) * left.var(correction=0)).sqrt())}

    def protocol(self) -> dict[str, Any]:
        return {"num_groups": self._applied_groups, "groups": "consecutive"}

    def _distance(self, num: int, total: Tensor, outer: Tensor, group: Tensor) -> float:
        kept = num - len(group)
        mean = (total - group.sum(dim=0)) / kept
        covariance = (outer - group.mT @ group - kept * torch.outer(mean, mean)) / (kept - 1)
        real = self.reference
        return frechet_distance(real.mean, real.covariance, mean, covariance, real.factor)
