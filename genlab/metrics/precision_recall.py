"""Precision and recall: how many generated images look real, and how many real ones could be generated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.metrics.base import FeatureMetric
from genlab.metrics.neighbours import neighbour_distances, row_chunks, squared_distances


class PrecisionRecall(FeatureMetric):
    """Improved precision and recall. Higher is better; recall falls first when a GAN collapses.

        precision: share of generated images inside the real images' manifold
        recall: share of real images inside the generated images' manifold

    where a manifold is the union of balls around its images, each reaching to the k-th nearest other
    image of the same set. Kynkaanniemi et al. 2019 (arXiv:1904.06991), section 2.

    Args:
        k: Larger balls forgive more; at most the number of other images.
        num: At most so many images of each side are compared; the cost grows with the square.
    """

    higher_is_better = True

    def __init__(self, k: int = 3, num: int = 10_000) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}.")
        self.k = k
        self.num = num
        self._applied_k = k

    def compute(self) -> dict[str, float]:
        fake, real = self.fake_and_real(self.num)
        k = self._applied_k = min(self.k, len(fake) - 1, len(real) - 1)
        return {"precision": _covered_share(fake, real, k), "recall": _covered_share(real, fake, k)}

    def protocol(self) -> dict[str, Any]:
        return {"k": self._applied_k, "num": self.num}


def _covered_share(points: Tensor, centres: Tensor, k: int) -> float:
    """Returns the share of points inside at least one ball around the centres."""
    radii = neighbour_distances(centres, k=k)
    chunks = row_chunks(len(points), len(centres))
    inside = [(squared_distances(points[rows], centres) <= radii).any(dim=1) for rows in chunks]
    return float(torch.cat(inside).double().mean())
