"""An own loss: here of the two players of a GAN.

genlab fit --config dcgan_digits --allow genlab.cli.templates --model.loss genlab.cli.templates.loss.NewLoss
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus

from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.precision import at_least_float32


class NewLoss(AdversarialLoss):
    """The non-saturating game with a discriminator that must not be too sure of real images.

        D minimises  -E [s log D(x) + (1 - s) log(1 - D(x))] - E log(1 - D(G(z))),    s = 1 - smoothing
        G minimises  -E log D(G(z))

    One-sided label smoothing: Salimans et al. 2016 (arXiv:1606.03498), section 3.4.

    Args:
        smoothing: How much of a real image's label is taken away; 0 is the non-saturating loss.

    Raises:
        ValueError: If it is not in [0, 0.5).
    """

    def __init__(self, smoothing: float = 0.1) -> None:
        if not 0.0 <= smoothing < 0.5:
            raise ValueError(f"smoothing must be in [0, 0.5), got {smoothing}.")
        self.smoothing = smoothing

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        real, fake = at_least_float32(real_logits), at_least_float32(fake_logits)
        for_real = (1.0 - self.smoothing) * softplus(-real) + self.smoothing * softplus(real)
        return for_real.mean() + softplus(fake).mean()

    def generator(self, fake_logits: Tensor) -> Tensor:
        return softplus(-at_least_float32(fake_logits)).mean()

    def probability(self, logits: Tensor) -> Tensor:
        return at_least_float32(logits).sigmoid()
