"""What the network is asked for, and how much each noise level counts."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Prediction(ABC):
    """What a network F says about x, given x_t.

        E[x | x_t] = c_skip x_t + c_out F(c_in x_t, t)

    (Karras et al. 2022, arXiv:2206.00364, equation 7, for any alpha and sigma). The loss is the squared error
    of F, which is the squared error of x divided by c_out^2.

    Shapes:
        alpha, sigma: broadcast against x.
    """

    @abstractmethod
    def scales(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Returns c_skip and c_out."""

    @abstractmethod
    def target(self, x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Returns what F should say."""

    def input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Returns c_in, which keeps data of unit variance at unit variance; 1 where the process does so."""
        return torch.rsqrt(alpha**2 + sigma**2)


class PredictNoise(Prediction):
    """F is the noise eps; Ho et al. 2020 (arXiv:2006.11239), equation 14."""

    def scales(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return 1.0 / alpha, -sigma / alpha

    def target(self, x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise


class PredictData(Prediction):
    """F is x itself."""

    def scales(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(alpha), torch.ones_like(alpha)

    def target(self, x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return x


class PredictV(Prediction):
    """F is v = alpha eps - sigma x; Salimans and Ho 2022 (arXiv:2202.00512), appendix D."""

    def scales(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        total = alpha**2 + sigma**2
        return alpha / total, -sigma / total

    def target(self, x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * noise - sigma * x


class PredictVelocity(Prediction):
    """F is eps - x, the direction of a straight path; Liu et al. 2022 (arXiv:2209.03003), equation 1."""

    def scales(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        total = alpha + sigma
        return 1.0 / total, -sigma / total

    def target(self, x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise - x


class Preconditioned(Prediction):
    """F is the part of x that x_t does not tell, at unit variance for every noise.

        c_skip = d^2 / (s^2 + d^2),  c_out = s d / sqrt(s^2 + d^2),  c_in = 1 / sqrt(s^2 + d^2)

    Karras et al. 2022 (arXiv:2206.00364), table 1, with s = sigma / alpha and d = sigma_data.

    Args:
        sigma_data: Standard deviation of the data's values.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        if sigma_data <= 0.0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}.")
        self.sigma_data = sigma_data

    def scales(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        total = sigma**2 + (alpha * self.sigma_data) ** 2
        return alpha * self.sigma_data**2 / total, sigma * self.sigma_data * torch.rsqrt(total)

    def target(self, x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        # (x - c_skip x_t) / c_out, written out so that nothing large cancels.
        total = torch.rsqrt(sigma**2 + (alpha * self.sigma_data) ** 2)
        return total * (sigma / self.sigma_data * x - alpha * self.sigma_data * noise)

    def input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.rsqrt(sigma**2 + (alpha * self.sigma_data) ** 2)


class Weighting(ABC):
    """How much each noise level counts in the loss."""

    @abstractmethod
    def __call__(self, alpha: Tensor, sigma: Tensor, c_out: Tensor) -> Tensor:
        """Returns the factor of the squared error of F."""


class MinSNR(Weighting):
    """Counts the squared error of x by min(SNR, gamma), whatever the network predicts.

    Hang et al. 2023 (arXiv:2303.09556), equation 6; SNR = alpha^2 / sigma^2.

    Args:
        gamma: Signal-to-noise ratio above which levels count no more; the paper's 5.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        if gamma <= 0.0:
            raise ValueError(f"gamma must be positive, got {gamma}.")
        self.gamma = gamma

    def __call__(self, alpha: Tensor, sigma: Tensor, c_out: Tensor) -> Tensor:
        return (alpha / sigma).square().clamp(max=self.gamma) * c_out.square()
