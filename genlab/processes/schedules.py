"""How much noise each step of a discrete chain adds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

LARGEST_BETA = 0.999  # Nichol and Dhariwal 2021, section 3.2: no step may erase everything


class Schedule(ABC):
    """The variances beta_1 ... beta_T of a chain's steps.

    Shapes:
        Returns (num_steps,), float64, each in (0, 1).
    """

    @abstractmethod
    def betas(self, num_steps: int) -> Tensor:
        """Returns the noise that each of the steps adds."""


class LinearSchedule(Schedule):
    """beta grows linearly; Ho et al. 2020 (arXiv:2006.11239), section 4.

    Args:
        first, last: Values for 1,000 steps; other lengths are scaled to reach the same noise in the end.
    """

    def __init__(self, first: float = 1e-4, last: float = 0.02) -> None:
        if not 0.0 < first <= last < 1.0:
            raise ValueError(f"LinearSchedule needs 0 < first <= last < 1, got {first} and {last}.")
        self.first, self.last = first, last

    def betas(self, num_steps: int) -> Tensor:
        scale = 1000.0 / num_steps
        betas = torch.linspace(scale * self.first, scale * self.last, num_steps, dtype=torch.float64)
        return betas.clamp_(max=LARGEST_BETA)


class CosineSchedule(Schedule):
    """alpha_bar = cos^2((t / T + offset) / (1 + offset) pi / 2); arXiv:2102.09672, equation 17.

    Args:
        offset: Keeps the first steps from vanishing; one level of a byte image at 0.008.
    """

    def __init__(self, offset: float = 0.008) -> None:
        self.offset = offset

    def betas(self, num_steps: int) -> Tensor:
        t = torch.linspace(0.0, 1.0, num_steps + 1, dtype=torch.float64)
        return _betas_of(torch.cos((t + self.offset) / (1.0 + self.offset) * (math.pi / 2.0)) ** 2)


class SigmoidSchedule(Schedule):
    """alpha_bar falls along a sigmoid; Jabri et al. 2022 (arXiv:2212.11972), appendix B.

    Args:
        first, last: Part of the sigmoid that is used.
        temperature: Above 1, nearer to a straight line.
    """

    def __init__(self, first: float = -3.0, last: float = 3.0, temperature: float = 1.0) -> None:
        self.first, self.last, self.temperature = first, last, temperature

    def betas(self, num_steps: int) -> Tensor:
        at = torch.linspace(self.first, self.last, num_steps + 1, dtype=torch.float64) / self.temperature
        value = at.sigmoid()
        return _betas_of((value[-1] - value) / (value[-1] - value[0]))


def _betas_of(alpha_bar: Tensor) -> Tensor:
    """Returns the steps of a chain from its values at 0 ... T."""
    return (1.0 - alpha_bar[1:] / alpha_bar[:-1]).clamp_(max=LARGEST_BETA)
