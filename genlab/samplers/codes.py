"""A distribution fitted to an autoencoder's codes, so that it can be drawn from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from genlab import randomness


class MixtureOfCodes(nn.Module):
    """A mixture of normal distributions with full covariances, fitted to codes by expectation-maximisation.

        p(z) = sum_k w_k N(z; m_k, L_k L_k^T)

    Ghosh et al. 2020 (arXiv:1903.12436), section 4, who sample deterministic autoencoders by it; one
    component is their single Gaussian. Before the first fit it is N(0, I).

    Args:
        latent_dim: Length of a code.
        num_components: Normal distributions in the mixture; many follow the codes closely, and need many.

    Shapes:
        codes, z: (batch, latent_dim).
    """

    weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, latent_dim: int, num_components: int = 10) -> None:
        super().__init__()
        if num_components < 1:
            raise ValueError(f"num_components must be at least 1, got {num_components}.")
        self.num_components = num_components
        self.register_buffer("weights", torch.full((num_components,), 1.0 / num_components))
        self.register_buffer("means", torch.zeros(num_components, latent_dim))
        self.register_buffer("factors", torch.eye(latent_dim).repeat(num_components, 1, 1))

    def fit(self, codes: Tensor) -> None:
        """Fits the mixture to codes; the same codes give the same mixture."""
        from sklearn.mixture import GaussianMixture

        # Each component needs two codes at least.
        num = max(1, min(self.num_components, len(codes) // 2))
        values = codes.detach().double().cpu().numpy()
        # A thousandth of the codes' variance keeps every covariance invertible.
        mixture = GaussianMixture(num, reg_covar=1e-3 * float(values.var()) + 1e-12, random_state=0)
        mixture.fit(values)
        # In place, so that a checkpoint that is being written holds what is fitted here.
        self.weights.zero_()
        self.weights[:num] = self._like(mixture.weights_)
        self.means[:num] = self._like(mixture.means_)
        self.factors[:num] = self._like(np.linalg.cholesky(mixture.covariances_))

    def draw(self, address: int, index: Tensor) -> Tensor:
        """Returns code number i of the address for every i in index."""
        u = randomness.uniform(randomness.key(address, "component"), index, 1)
        edges = self.weights.double().cumsum(dim=0)
        component = torch.searchsorted(edges / edges[-1], u[:, 0])
        noise = randomness.normal(randomness.key(address, "noise"), index, (self.means.shape[1],))
        return self.means[component] + (self.factors[component] @ noise[:, :, None])[:, :, 0]

    def _like(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.means)
