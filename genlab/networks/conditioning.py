"""How class labels enter the networks of a GAN, and what all say that are told too little or too much."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from genlab.shapes import DataSpec


def with_label(z: Tensor, label: Tensor | None, num_classes: int) -> Tensor:
    """Returns z with the label appended as a one-hot vector, z itself where there are no classes.

    Mirza and Osindero 2014 (arXiv:1411.1784). The layer that follows learns one vector a class, so that an
    embedding in between would add nothing.

    Shapes:
        z: (batch, latent_dim); label: (batch,). Returns (batch, latent_dim + num_classes).
    """
    if num_classes == 0:
        return z
    return torch.cat([z, one_hot(required(label, num_classes), num_classes).to(z.dtype)], dim=1)


class Projection(nn.Module):
    """The part of a discriminator's logit that depends on the label: <embedding(label), h>.

    Miyato and Koyama 2018 (arXiv:1802.05637), equation 3; 0 where there are no classes.

    Args:
        num_classes: Number of labels; 0 makes the term vanish.
        num_features: Length of h, the features before the last layer.
        spectral_norm: Whether to divide the embedding by its largest singular value.

    Shapes:
        h: (batch, num_features); label: (batch,). Returns (batch,).
    """

    def __init__(self, num_classes: int, num_features: int, spectral_norm: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        if num_classes:
            self.embedding: nn.Module = nn.Embedding(num_classes, num_features)
            nn.init.normal_(self.embedding.weight, std=0.02)
            if spectral_norm:
                self.embedding = nn.utils.parametrizations.spectral_norm(self.embedding)

    def forward(self, h: Tensor, label: Tensor | None) -> Tensor:
        if self.num_classes == 0:
            return h.new_zeros(len(h))
        return (self.embedding(required(label, self.num_classes)) * h).sum(dim=1)


def required(label: Tensor | None, num_classes: int) -> Tensor:
    """Returns the label, or says that a conditional network cannot go without."""
    if label is None:
        raise ValueError(
            f"label is missing: this network was built for {num_classes} classes; give one label an item."
        )
    return label


def required_source(source: Tensor | None) -> Tensor:
    """Returns the source, or says that a network that was built for one cannot go without."""
    if source is None:
        raise ValueError("source is missing: this network was built for one; give one an item.")
    return source


def refuse_source(spec: DataSpec, name: str, reads: str = "no source") -> None:
    """Refuses data whose source would be told to the network of a name, which reads none such."""
    if spec.source is not None:
        raise ValueError(
            f"{name} reads {reads}, and {spec.name} is told with one: leave source out of model.given, or "
            "use UNet."
        )
