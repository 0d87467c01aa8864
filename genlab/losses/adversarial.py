"""What the two players of a generative adversarial network minimise."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor
from torch.nn.functional import relu, softplus

from genlab.losses.precision import at_least_float32


class AdversarialLoss(ABC):
    """A pair of losses on the discriminator's logits, computed in at least 32 bits and finite at any logit.

    Attributes:
        threshold: Logit above which an image counts as real, None where the scale has no such point.

    Shapes:
        real_logits, fake_logits: (batch,), of any floating type.
    """

    threshold: float | None = 0.0

    @abstractmethod
    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Returns the scalar that the discriminator minimises."""

    @abstractmethod
    def generator(self, fake_logits: Tensor) -> Tensor:
        """Returns the scalar that the generator minimises."""

    def is_real(self, logits: Tensor) -> Tensor | None:
        """Returns which images the discriminator takes for real, None where the loss has no threshold."""
        return None if self.threshold is None else logits > self.threshold

    def probability(self, logits: Tensor) -> Tensor | None:
        """Returns D(x), the probability of being real, None where the logits do not stand for one."""
        return None


class Minimax(AdversarialLoss):
    """The two-player game of the first GAN, in which the generator's loss saturates.

        D maximises  E log D(x) + E log(1 - D(G(z))),     G minimises  E log(1 - D(G(z)))

    Goodfellow et al. 2014 (arXiv:1406.2661), equation 1 and Algorithm 1, with D(x) = sigmoid(logit):
    -log D = softplus(-logit) and -log(1 - D) = softplus(logit). The generator's gradient at a logit is
    -D(G(z)), which vanishes where the discriminator is sure. At the optimal D the game's value is
    2 JS(p_data, p_g) - log 4.
    """

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return (
            softplus(-at_least_float32(real_logits)).mean() + softplus(at_least_float32(fake_logits)).mean()
        )

    def generator(self, fake_logits: Tensor) -> Tensor:
        return -softplus(at_least_float32(fake_logits)).mean()

    def probability(self, logits: Tensor) -> Tensor:
        return at_least_float32(logits).sigmoid()


class NonSaturating(Minimax):
    """The same discriminator, with a generator that maximises E log D(G(z)).

    Goodfellow et al. 2014 (arXiv:1406.2661), section 3: the same fixed point, but the gradient at a logit
    is -(1 - D(G(z))), strongest where the discriminator is sure.
    """

    def generator(self, fake_logits: Tensor) -> Tensor:
        return softplus(-at_least_float32(fake_logits)).mean()


class LeastSquares(AdversarialLoss):
    """Squared distances of the logits to target values.

        D minimises  1/2 E (D(x) - b)^2 + 1/2 E (D(G(z)) - a)^2,     G minimises  1/2 E (D(G(z)) - c)^2

    Mao et al. 2017 (arXiv:1611.04076), equation 2.

    Args:
        a: Target of generated images.
        b: Target of real images; an image counts as real above (a + b) / 2.
        c: What the generator wants its images to be taken for. a, b, c = -1, 1, 0 minimises the
            Pearson chi-squared divergence (equation 8); the default 0, 1, 1 is equation 9.

    Raises:
        ValueError: If b is not above a.
    """

    def __init__(self, a: float = 0.0, b: float = 1.0, c: float = 1.0) -> None:
        if not a < b:
            raise ValueError(
                f"LeastSquares needs a < b, the fake target below the real one; got a={a}, b={b}."
            )
        self.a, self.b, self.c = a, b, c
        self.threshold = (a + b) / 2

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        real = (at_least_float32(real_logits) - self.b).square().mean()
        fake = (at_least_float32(fake_logits) - self.a).square().mean()
        return (real + fake) / 2

    def generator(self, fake_logits: Tensor) -> Tensor:
        return (at_least_float32(fake_logits) - self.c).square().mean() / 2


class Hinge(AdversarialLoss):
    """A discriminator that stops at a margin of 1, and a generator that raises its logits.

        D minimises  E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))),     G minimises  -E D(G(z))

    Lim and Ye 2017 (arXiv:1705.02894); Miyato et al. 2018 (arXiv:1802.05957), equations 16 and 17.
    """

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return (
            relu(1.0 - at_least_float32(real_logits)).mean()
            + relu(1.0 + at_least_float32(fake_logits)).mean()
        )

    def generator(self, fake_logits: Tensor) -> Tensor:
        return -at_least_float32(fake_logits).mean()


class Wasserstein(AdversarialLoss):
    """The dual form of the earth mover's distance; the critic must be kept 1-Lipschitz by a penalty.

        D minimises  E D(G(z)) - E D(x),     G minimises  -E D(G(z))

    Arjovsky et al. 2017 (arXiv:1701.07875), equation 2. Only differences of the critic's values mean
    something, so there is no threshold between real and generated.
    """

    threshold = None

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return at_least_float32(fake_logits).mean() - at_least_float32(real_logits).mean()

    def generator(self, fake_logits: Tensor) -> Tensor:
        return -at_least_float32(fake_logits).mean()
