"""What tells a feature's partner from the others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from genlab.losses.precision import at_least_float32


class PatchNCE:
    """The loss of finding each patch of a picture again among the other patches of the same picture.

        -1/N  sum_i log( e^(q_i k_i / t) / sum_j e^(q_i k_j / t) )

    Park et al. 2020 (arXiv:2007.15651), equation 3, with the N - 1 negatives from within the image. Keys are
    taken as they are: gradients reach the queries alone. Orthonormal features with q = k give
    log(1 + (N - 1) e^(-1/t)), features that are all equal give log N.

    Args:
        temperature: t; small values look at the nearest negatives alone.

    Shapes:
        queries, keys: (batch, N, width), rows of length 1. Returns the mean over the batch, a scalar.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}.")
        self.temperature = temperature

    def __call__(self, queries: Tensor, keys: Tensor) -> Tensor:
        queries, keys = at_least_float32(queries) / self.temperature, at_least_float32(keys.detach())
        similarity = torch.bmm(queries, keys.transpose(1, 2))
        partner = torch.arange(similarity.shape[1], device=similarity.device).expand(len(similarity), -1)
        return cross_entropy(similarity.flatten(0, 1), partner.flatten())
