"""How much of a latent space is used."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

ACTIVE_VARIANCE = 0.01


class ActiveUnits(Metric):
    """Counts the dimensions of z that say something: the variance over images of E[z_d | x] exceeds 0.01.

    Burda et al. 2016 (arXiv:1509.00519), section 5.2. None active is a collapsed posterior: the decoder
    ignores z and the KL is 0, while the loss falls all the same.

    Args:
        num_dims: Length of z.
        threshold: Variance above which a dimension counts.

    Shapes:
        mean: (batch, num_dims), the posteriors' means; kl: the same, each dimension's KL in nats.
    """

    full_state_update = False
    num: Tensor
    sums: Tensor
    squares: Tensor
    kl_sums: Tensor

    def __init__(self, num_dims: int, threshold: float = ACTIVE_VARIANCE) -> None:
        super().__init__()
        self.threshold = threshold
        self.add_state("num", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("sums", "squares", "kl_sums"):
            self.add_state(name, torch.zeros(num_dims, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, mean: Tensor, kl: Tensor) -> None:
        """Adds a batch."""
        self.num += len(mean)
        self.sums += mean.double().sum(dim=0)
        self.squares += mean.double().square().sum(dim=0)
        self.kl_sums += kl.double().sum(dim=0)

    def compute(self) -> dict[str, Tensor]:
        """Returns `active_units`, and the mean of each dimension's KL, of itself and of its square."""
        mean, square = self.sums / self.num, self.squares / self.num
        active = (square - mean.square() > self.threshold).sum()
        return {
            "active_units": active,
            "kl_per_dim": self.kl_sums / self.num,
            "mean_per_dim": mean,
            "square_per_dim": square,
        }
