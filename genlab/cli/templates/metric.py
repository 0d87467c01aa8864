r"""An own metric: a score of samples, here by their features.

genlab fit --config gan_digits --allow genlab.cli.templates \
    --evaluate.metrics "{coverage: genlab.cli.templates.metric.NewMetric}"
"""

from __future__ import annotations

from typing import Any

from genlab.metrics.base import FeatureMetric
from genlab.metrics.neighbours import neighbour_distances


class NewMetric(FeatureMetric):
    """The share of real images that some sample comes near to. Higher is better.

    Near is what lies within the distance to the k-th nearest other real image. Coverage: Naeem et al. 2020
    (arXiv:2002.09797), equation 4. Unlike recall, an outlier among the samples does not raise it.

    Args:
        k: Larger distances forgive more; at most the number of other images.
        num: At most so many images of each side are compared; the cost grows with the square.

    Raises:
        ValueError: If k is below 1.
    """

    higher_is_better = True

    def __init__(self, k: int = 5, num: int = 10_000) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}.")
        self.k, self.num = k, num
        self._applied_k = k

    def compute(self) -> dict[str, float]:
        fake, real = self.fake_and_real(self.num)  # (num, features) each, in the order of their numbers
        k = self._applied_k = min(self.k, len(real) - 1)
        is_covered = neighbour_distances(real, fake) <= neighbour_distances(real, k=k)
        return {"coverage": float(is_covered.double().mean())}

    def protocol(self) -> dict[str, Any]:
        return {"k": self._applied_k, "num": self.num}  # all that a score depends on
