"""Whether a translation keeps what was bright bright."""

from __future__ import annotations

from torch import Tensor

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luma of ITU-R BT.601."""


def luminance_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Returns the mean over images of the correlation of two images' luminances, in [-1, 1].

        E  sum_p (x_p - mean x)(y_p - mean y) / (|x - mean x| |y - mean y|)

    A pair of generators can invert all colours on the way there and again on the way back, and no loss of
    CycleGAN sees it; -1 is the negative. An image of one brightness has the correlation 0.

    Shapes:
        x, y: (batch, 1 or 3, height, width), of the same sides.
    """
    first, second = _centred(x), _centred(y)
    product = (first * second).sum(dim=1)
    return (product / (first.norm(dim=1) * second.norm(dim=1)).clamp(min=1e-6)).mean()


def _centred(images: Tensor) -> Tensor:
    images = images.float()
    weights = images.new_tensor(LUMINANCE)[:, None, None]
    luminance = (images * weights).sum(dim=1) if images.shape[1] == 3 else images.mean(dim=1)
    return (luminance - luminance.mean(dim=(1, 2), keepdim=True)).flatten(1)
