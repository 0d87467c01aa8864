"""The generator and discriminator of DCGAN, at any size that halves down to a few pixels."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from genlab.networks.conditioning import Projection, with_label
from genlab.shapes import DataSpec


class DCGANGenerator(nn.Module):
    """Transposed convolutions from noise to an image, doubling the size in each layer.

    Radford et al. 2016 (arXiv:1511.06434), section 3: no hidden fully connected layer, batch norm everywhere
    but at the output, ReLU inside, tanh at the end, weights from N(0, 0.02). Labels are appended to z.

    Args:
        spec: The images to generate; with classes, the network needs a label.
        latent_dim: Length of the noise.
        base_channels: Channels of the layer before the image; each halving of the size doubles them.

    Shapes:
        z: (batch, latent_dim); label: (batch,). Returns (batch, channels, height, width) in [-1, 1].

    Raises:
        ValueError: If the data are not images, or their sides cannot be halved down to a few pixels.
    """

    def __init__(self, spec: DataSpec, latent_dim: int = 100, base_channels: int = 64) -> None:
        super().__init__()
        self.spec = spec
        self.latent_dim = latent_dim
        start, num_doublings = smallest_map(spec)
        widths = [base_channels * 2**level for level in reversed(range(num_doublings))]
        first = nn.ConvTranspose2d(latent_dim + spec.num_classes, widths[0], start, bias=False)
        doublings = [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False) for a, b in pairwise(widths)]
        image = nn.ConvTranspose2d(widths[-1], spec.shape[0], 4, 2, 1, bias=False)
        hidden = [
            nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU())
            for layer in [first, *doublings]
        ]
        self.layers = nn.Sequential(*hidden, image, nn.Tanh())
        self.apply(initialise)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return self.layers(with_label(z, label, self.spec.num_classes)[:, :, None, None])


class DCGANDiscriminator(nn.Module):
    """Strided convolutions from an image to one logit, halving the size in each layer.

    Radford et al. 2016 (arXiv:1511.06434), section 3: no pooling, no hidden fully connected layer, batch norm
    everywhere but at the input, LeakyReLU with slope 0.2, weights from N(0, 0.02). Labels enter by projection
    on the features summed over positions (arXiv:1802.05637).

    Args:
        spec: The images to judge; with classes, the network needs a label.
        base_channels: Channels of the first layer; each halving of the size doubles them.
        norm: "batch" as in the paper; "none" for gradient penalties, which batch norm makes meaningless.
        spectral_norm: Whether to divide each weight by its largest singular value (Miyato et al. 2018,
            arXiv:1802.05957), which bounds the slope of the logit; usually with norm "none".

    Shapes:
        x: (batch, channels, height, width); label: (batch,). Returns logits, (batch,).

    Raises:
        ValueError: If the data are not images, or their sides cannot be halved down to a few pixels.
    """

    def __init__(
        self,
        spec: DataSpec,
        base_channels: int = 64,
        norm: Literal["batch", "none"] = "batch",
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        start, num_halvings = smallest_map(spec)
        widths = [spec.shape[0], *(base_channels * 2**level for level in range(num_halvings))]
        convolutions = [nn.Conv2d(a, b, 4, 2, 1, bias=norm == "none") for a, b in pairwise(widths)]
        norms = [nn.BatchNorm2d(width) if norm == "batch" else nn.Identity() for width in widths[1:]]
        norms[0] = nn.Identity()
        layers = [nn.Sequential(*pair, nn.LeakyReLU(0.2)) for pair in zip(convolutions, norms, strict=True)]
        self.features = nn.Sequential(*layers)
        self.output = nn.Conv2d(widths[-1], 1, start, bias=norm == "none")
        self.projection = Projection(spec.num_classes, widths[-1], spectral_norm)
        self.apply(initialise)
        if spectral_norm:
            for layer in [*convolutions, self.output]:
                nn.utils.parametrizations.spectral_norm(layer)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.features(x)
        return self.output(h).flatten() + self.projection(h.sum(dim=(2, 3)), label)


def smallest_map(spec: DataSpec) -> tuple[tuple[int, int], int]:
    """Returns the (height, width) that the first layer makes, and how often it doubles up to the image.

    The shorter side starts at 4 to 7 pixels (64 = 4 x 2^4, 28 = 7 x 2^2) and doubles at least twice, so that
    8 = 2 x 2^2 still has a hidden layer between noise and image.
    """
    if not spec.is_grid:
        raise ValueError(f"DCGAN needs images, but {spec.name} has shape {spec.shape}; use the MLP networks.")
    height, width = spec.shape[1:]
    num_doublings = max(2, (min(height, width) // 4).bit_length() - 1)
    factor = 2**num_doublings
    if height % factor or width % factor or min(height, width) < 8:
        raise ValueError(
            f"DCGAN needs sides that are a multiple of {factor} and at least 8 pixels, "
            f"got {height} x {width}; resize the images, for example to {max(8, height // factor * factor)}."
        )
    return (height // factor, width // factor), num_doublings


def initialise(module: nn.Module) -> None:
    """Draws convolution weights from N(0, 0.02) and batch norm gains from N(1, 0.02); biases are 0."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
