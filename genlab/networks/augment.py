"""Random changes to images that let a network learn from few of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, pad


class DiffAugment(nn.Module):
    """Differentiable augmentation for GANs: what the discriminator sees, of real and generated images alike.

    Zhao et al. 2020 (arXiv:2006.10738). Each image draws its own amounts from torch's global generator:

        color        brightness x + b, b in (-1/2, 1/2); saturation: distances to the mean over channels
                     times s in (0, 2); contrast: distances to the image's mean times c in (1/2, 3/2)
        translation  a shift of up to an eighth of the side in each direction, filled with 0
        cutout       a square of half the side, centred anywhere, set to 0

    Gradients pass through, so that the generator learns unaugmented images. As in the paper, colours may
    leave [-1, 1].

    Args:
        policy: Which of color, translation and cutout to apply, in this order; none returns the images as
            they are.

    Shapes:
        x: (batch, channels, height, width). Returns the same.

    Raises:
        ValueError: If the policy names anything else.
    """

    def __init__(self, policy: Sequence[str] = ("color", "translation", "cutout")) -> None:
        super().__init__()
        unknown = [name for name in policy if name not in ("color", "translation", "cutout")]
        if unknown:
            raise ValueError(f"policy may name color, translation and cutout, got {', '.join(unknown)}.")
        self.policy = tuple(policy)

    def forward(self, x: Tensor) -> Tensor:
        if "color" in self.policy:
            x = jitter_color(x)
        if "translation" in self.policy:
            x = translate(x)
        if "cutout" in self.policy:
            x = cut_out(x)
        return x


class RandomShift(nn.Module):
    """Moves each image by up to a few pixels while training, repeating its border; does nothing otherwise.

    Args:
        max_shift: Largest shift in pixels, in each direction.

    Shapes:
        x: (batch, channels, height, width). Returns the same.
    """

    def __init__(self, max_shift: int = 1) -> None:
        super().__init__()
        self.max_shift = max_shift

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.max_shift == 0:
            return x
        return crop_randomly(pad(x, [self.max_shift] * 4, mode="replicate"), *x.shape[2:])


class AffineAugment(nn.Module):
    """Shift, rotation and zoom by given amounts, which a model can be told of.

        x'(r) = x(A r + s),    A = e^(-zoom) R(rotation)

    with bicubic sampling, which blurs little, and the border repeated; all amounts 0 is the identity.

    Args:
        max_shift: Largest shift to the right and down, as a share of the side.
        max_rotation: Largest rotation, in degrees, counter-clockwise; oblong images are also sheared.
        max_zoom: Largest zoom, as a logarithm: 0.1 enlarges by up to 10 %.

    Shapes:
        x: (batch, channels, height, width).
        amounts: (batch, num_amounts), shares of the largest ones, in [-1, 1]. Returns as x.
    """

    num_amounts = 4

    def __init__(self, max_shift: float = 0.1, max_rotation: float = 10.0, max_zoom: float = 0.1) -> None:
        super().__init__()
        for name, value in (("max_shift", max_shift), ("max_rotation", max_rotation), ("max_zoom", max_zoom)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}; 0 leaves that change out.")
        self.max_shift, self.max_rotation, self.max_zoom = max_shift, max_rotation, max_zoom

    def forward(self, x: Tensor, amounts: Tensor) -> Tensor:
        right, down, rotation, zoom = amounts.to(x.dtype).unbind(dim=1)
        angle = rotation * math.radians(self.max_rotation)
        scale = (-zoom * self.max_zoom).exp()
        cos, sin = scale * angle.cos(), scale * angle.sin()
        # The grid's sides are 2 long: twice the share.
        shift = 2.0 * self.max_shift
        rows = [
            torch.stack([cos, -sin, -shift * right], dim=1),
            torch.stack([sin, cos, -shift * down], dim=1),
        ]
        grid = affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
        return grid_sample(x, grid, "bicubic", "border", align_corners=False)


def jitter_color(x: Tensor) -> Tensor:
    """Returns x with random brightness, saturation and contrast."""
    brightness, saturation, contrast = torch.rand(3, len(x), 1, 1, 1, device=x.device, dtype=x.dtype)
    x = x + (brightness - 0.5)
    grey = x.mean(dim=1, keepdim=True)
    x = grey + 2.0 * saturation * (x - grey)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (contrast + 0.5) * (x - mean)


def translate(x: Tensor) -> Tensor:
    """Returns x shifted by up to an eighth of its sides, filled with 0."""
    height, width = x.shape[2:]
    down, right = round(height / 8), round(width / 8)
    return crop_randomly(pad(x, [right, right, down, down]), height, width)


def cut_out(x: Tensor) -> Tensor:
    """Returns x with a square of half its sides, around a random pixel, set to 0."""
    height, width = x.shape[2:]
    rows = _near_random_centre(len(x), height, x.device)[:, None, :, None]
    columns = _near_random_centre(len(x), width, x.device)[:, None, None, :]
    return x.masked_fill(rows & columns, 0.0)


def crop_randomly(x: Tensor, height: int, width: int) -> Tensor:
    """Returns one window of the given size from each image, at random places."""
    top = torch.randint(x.shape[2] - height + 1, (len(x), 1, 1), device=x.device)
    left = torch.randint(x.shape[3] - width + 1, (len(x), 1, 1), device=x.device)
    rows = top + torch.arange(height, device=x.device)[:, None]
    columns = left + torch.arange(width, device=x.device)
    item = torch.arange(len(x), device=x.device)[:, None, None]
    # Indexing on both sides of a slice puts the sliced dimension, the channels, last.
    return x[item, :, rows, columns].movedim(3, 1)


def _near_random_centre(num: int, size: int, device: torch.device) -> Tensor:
    """Returns (num, size) masks of size // 2 positions around a random one, fewer at the border."""
    centre = torch.randint(size, (num, 1), device=device)
    offset = torch.arange(size, device=device) - centre + size // 4
    return (offset >= 0) & (offset < size // 2)
