"""From the discrete levels of an image to numbers with a density."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from genlab.bijections.base import ConditionerFactory, summed
from genlab.bijections.coupling import CheckerboardCoupling
from genlab.bijections.elementwise import Affine, Elementwise
from genlab.shapes import DataSpec

DequantisationFactory = Callable[[DataSpec], "Dequantisation"]


class Dequantisation(nn.Module):
    """Draws where inside of its bin a level k lies: v = (k + u) / levels, u ~ q(u | k) in (0, 1).

        log P(k) >= E_u [log p(v) - log q(u | k)] - dimensions log levels

    Attributes:
        name: For the protocol of a likelihood.

    Shapes:
        uniform: (batch, channels, height, width), numbers in (0, 1) that u is made of.
        k: the same shape, levels scaled to k / levels in [0, 1).
        Returns u, of the same shape, and log q(u | k), (batch,).
    """

    name: str

    @abstractmethod
    def forward(self, uniform: Tensor, k: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns u and log q(u | k)."""


class UniformDequantisation(Dequantisation):
    """q(u | k) = 1: every place of the bin is equally likely.

    Theis et al. 2016 (arXiv:1511.01844), section 3.1. A flow then has to learn boxes.

    Args:
        spec: The images.
    """

    name = "uniform dequantisation"

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()

    def forward(self, uniform: Tensor, k: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return uniform, uniform.new_zeros(len(uniform))


class VariationalDequantisation(Dequantisation):
    """q(u | k) is a flow of its own, which learns where in the bin the model's density is high.

        u = sigmoid(g(logit(uniform); k)),    log q = -log |det du / d uniform|

    Ho et al. 2019, Flow++ (arXiv:1902.00275), section 3.1. g starts as the identity, and u as uniform.

    Args:
        spec: The images, and the classes that the network is told.
        network: Conditioner of the couplings; is shown the image beside the other half of the noise.
        transform: Map of the couplings.
        num_couplings: Even, so that every pixel is changed equally often.
    """

    name = "variational dequantisation"

    def __init__(
        self,
        spec: DataSpec,
        network: ConditionerFactory,
        transform: Elementwise | None = None,
        num_couplings: int = 4,
    ) -> None:
        super().__init__()
        transform = transform or Affine()
        self.couplings = nn.ModuleList(
            CheckerboardCoupling(spec, network, transform, bool(number % 2), spec.shape[0])
            for number in range(num_couplings)
        )

    def forward(self, uniform: Tensor, k: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        noise = uniform.log() - (-uniform).log1p()
        log_q = summed(logsigmoid(noise) + logsigmoid(-noise))
        for coupling in self.couplings:
            noise, log_det = coupling(noise, label, 2 * k - 1)
            log_q = log_q - log_det
        log_q = log_q - summed(logsigmoid(noise) + logsigmoid(-noise))
        return torch.sigmoid(noise), log_q
