"""The kernel distance (KID): a comparison of two sets of features without a Gaussian and without bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.metrics.base import FeatureMetric
from genlab.metrics.neighbours import row_chunks


class KernelDistance(FeatureMetric):
    """KID: the squared maximum mean discrepancy of generated and real features. Lower is better.

        k(x, y) = (gamma x.y + coef)^degree
        MMD^2 = mean of k(x_i, x_j), i != j  +  mean of k(y_i, y_j), i != j  -  2 mean of k(x_i, y_j)

    Binkowski et al. 2018 (arXiv:1801.01401), section 4: unbiased, so the value may fall below zero; the mean
    and standard deviation over random subsets.

    Args:
        num_subsets: Subsets drawn.
        subset_size: Samples of each side in a subset; shrinks to the smaller side.
        degree: Of the polynomial.
        gamma: Scale of the inner product; None is 1 / number of features.
        coef: Added to the inner product.
        num: At most so many samples of each side are drawn from.
        seed: Of the subsets; 2020 draws those of torch-fidelity.
    """

    higher_is_better = False

    def __init__(
        self,
        num_subsets: int = 100,
        subset_size: int = 1000,
        degree: int = 3,
        gamma: float | None = None,
        coef: float = 1.0,
        num: int = 10_000,
        seed: int = 2020,
    ) -> None:
        super().__init__()
        if num_subsets < 1 or subset_size < 2:
            raise ValueError(f"KID needs a subset of 2 samples, got {num_subsets} of {subset_size}.")
        self.num_subsets = num_subsets
        self.subset_size = subset_size
        self.degree = degree
        self.gamma = gamma
        self.coef = coef
        self.num = num
        self.seed = seed
        self._applied_size = subset_size

    def compute(self) -> dict[str, float]:
        fake, real = self.fake_and_real(self.num)
        discrepancies = self._discrepancies(fake, real)
        kid = float(discrepancies.mean())
        if self._applied_size == len(fake) == len(real):
            return {"kid": kid}  # every subset is the whole: their spread says nothing
        return {"kid": kid, "kid_std": float(discrepancies.std(correction=0))}

    def protocol(self) -> dict[str, Any]:
        names = ("num_subsets", "degree", "gamma", "coef", "num", "seed")
        return {"subset_size": self._applied_size, **{name: getattr(self, name) for name in names}}

    def _discrepancies(self, fake: Tensor, real: Tensor) -> Tensor:
        """Returns MMD^2 of every subset: (num_subsets,)."""
        size = self._applied_size = min(self.subset_size, len(fake), len(real))
        in_fake, in_real = self._subsets(len(fake), len(real), size)
        in_fake, in_real = in_fake.to(fake), in_real.to(fake)
        within = self._within(fake, in_fake) + self._within(real, in_real)
        across = self._kernel_sums(fake, real, in_fake, in_real)
        return within / (size * (size - 1)) - 2 * across / size**2

    def _subsets(self, num_fake: int, num_real: int, size: int) -> tuple[Tensor, Tensor]:
        """Returns which samples are in which subset, as zeros and ones: (num_subsets, num) each."""
        random = np.random.RandomState(self.seed)
        members = torch.zeros(self.num_subsets, num_fake), torch.zeros(self.num_subsets, num_real)
        for subset in range(self.num_subsets):
            for side in members:
                side[subset, random.choice(side.shape[1], size, replace=False)] = 1.0
        return members

    def _within(self, x: Tensor, members: Tensor) -> Tensor:
        diagonal = self._kernel(x.square().sum(dim=1))
        return self._kernel_sums(x, x, members, members) - members @ diagonal

    def _kernel_sums(self, x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
        """Returns, for every subset, the sum of k(x_i, y_j) over its pairs.

        Each entry of the kernel's matrix is computed once for all subsets; they overlap heavily.
        """
        sums = torch.zeros_like(in_x[:, 0])
        for rows in row_chunks(len(x), len(y)):
            sums += ((in_x[:, rows] @ self._kernel(x[rows] @ y.mT)) * in_y).sum(dim=1)
        return sums

    def _kernel(self, inner: Tensor) -> Tensor:
        gamma = self.gamma if self.gamma is not None else 1.0 / self.reference.features.shape[1]
        return (gamma * inner + self.coef) ** self.degree
