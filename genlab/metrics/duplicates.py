"""Do samples repeat each other, or the training images?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.metrics.base import FeatureMetric, chosen_rows
from genlab.metrics.neighbours import neighbour_distances


def nearest_distances(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Returns the distance of every row of a to the nearest row of b, or of the other rows of a if b is None.

    Shapes:
        a: (n, d); b: (m, d). Returns (n,), float64.
    """
    return neighbour_distances(a, b).sqrt()


def duplicate_share(features: Tensor, reference_features: Tensor, quantile: float = 0.01) -> float:
    """Returns the share of samples that lie as close to another sample as only the closest real images do.

        share of i with  min over j != i of |f_i - f_j|  <=  the quantile of the same among real images

    About `quantile` for samples as diverse as the real images, near 1 for a collapsed generator. Both sides
    are cut to equal counts, since more images lie closer together.

    Args:
        features: Of the samples.
        reference_features: Of real images.
        quantile: What counts as close.

    Shapes:
        features, reference_features: (n, d) and (m, d), of at least 2 rows.
    """
    num = min(len(features), len(reference_features))
    if num < 2:
        raise ValueError(f"Duplicates are looked for among at least 2 images on either side, got {num}.")
    threshold = torch.quantile(nearest_distances(_any(reference_features, num)), quantile)
    near = nearest_distances(_any(features, num)) <= threshold.to(features.device)
    return float(near.double().mean())


class DuplicateShare(FeatureMetric):
    """The share of near-duplicates among the samples, as a sign of collapse; see `duplicate_share`.

    Args:
        quantile: What counts as close: nearer than this share of the real images to each other.
        num: Most samples compared, of either side.

    Shapes:
        features: see `Features`; only `pool` is used.
    """

    higher_is_better = False

    def __init__(self, quantile: float = 0.01, num: int = 5_000) -> None:
        super().__init__()
        self.quantile = quantile
        self.num = num

    def compute(self) -> dict[str, float]:
        samples = self.in_order(self.rows, self.num)
        return {"duplicates": duplicate_share(samples.cpu(), self.reference.features, self.quantile)}

    def protocol(self) -> dict[str, Any]:
        return {"quantile": self.quantile, "num": self.num}


def _any(rows: Tensor, num: int) -> Tensor:
    # Not the first ones: stored images are often sorted by class.
    return rows[chosen_rows(torch.arange(len(rows), device=rows.device), num)]
