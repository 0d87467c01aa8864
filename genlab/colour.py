"""How bright colours are."""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHTS = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the luminance of ITU-R BT.601."""


def luminance(images: Tensor) -> Tensor:
    """Returns 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) in at least 32 bits, or grey as it is.

    Shapes:
        images: (batch, 1 or 3, height, width), in any range. Returns (batch, 1, height, width), in the same.
    """
    images = images if images.dtype == torch.float64 else images.float()
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor(WEIGHTS)[:, None, None]).sum(1, keepdim=True)


def luminance_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Returns the correlation of the luminances of each two images, in [-1, 1].

        sum_p (x_p - mean x)(y_p - mean y) / (|x - mean x| |y - mean y|)

    A pair of generators can invert all colours on the way there and again on the way back, and no loss of
    CycleGAN sees it; -1 is the negative. An image of one brightness has the correlation 0.

    Shapes:
        x, y: (batch, 1 or 3, height, width), of the same sides, each in any range. Returns (batch,).
    """
    first, second = _centred(x), _centred(y)
    product = (first * second).sum(dim=1)
    return product / (first.norm(dim=1) * second.norm(dim=1)).clamp(min=1e-6)


def _centred(images: Tensor) -> Tensor:
    brightness = luminance(images).flatten(1)
    return brightness - brightness.mean(dim=1, keepdim=True)
