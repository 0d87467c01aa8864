"""How time and labels enter the networks of a diffusion model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from genlab.networks.conditioning import required


def sinusoids(t: Tensor, dim: int, longest: float = 10_000.0) -> Tensor:
    """Returns sines and cosines of t at dim / 2 frequencies from 1 down to 1 / longest.

    Vaswani et al. 2017 (arXiv:1706.03762), section 3.5, in the order of DDPM; in float32 at any precision.

    Shapes:
        t: (batch,), from 0 to about 1,000. Returns (batch, dim).
    """
    half = dim // 2
    rates = torch.exp(-math.log(longest) / (half - 1) * torch.arange(half, device=t.device))
    angles = t.float()[:, None] * rates[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ConditionEmbedding(nn.Module):
    """One vector for the noise level and the label, which every block of a network receives.

    Args:
        dim: Length of the sinusoids.
        width: Length of the vector.
        num_classes: Number of labels, 0 for none; the label num_classes stands for "any class".

    Shapes:
        t: (batch,); label: (batch,). Returns (batch, width).
    """

    def __init__(self, dim: int, width: int, num_classes: int = 0) -> None:
        super().__init__()
        if dim % 2 or dim < 4:
            raise ValueError(f"The length of a time embedding must be even and at least 4, got {dim}.")
        self.dim, self.num_classes = dim, num_classes
        self.layers = nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(num_classes + 1, width) if num_classes else None

    def forward(self, t: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.layers(sinusoids(t, self.dim))
        return h if self.label is None else h + self.label(required(label, self.num_classes))
