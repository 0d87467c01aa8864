"""Tensors to pictures that a person can look at."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from genlab.shapes import levels_to_bytes, to_levels

SMALLEST_SIDE = 64
"""Images are enlarged by a whole factor up to about this size: digits of 8 pixels vanish on a screen."""


def as_pixels(images: Tensor, num_levels: int = 256) -> np.ndarray:
    """Returns images as bytes for Pillow: (n, height, width) for grey, (n, height, width, 3) for colour.

    Args:
        images: Floats in [-1, 1], or levels as uint8; (n, 1 or 3, height, width).
        num_levels: Number of values a pixel can take.
    """
    levels = images if not images.is_floating_point() else to_levels(images, num_levels)
    pixels = levels_to_bytes(levels.detach(), num_levels).cpu().numpy().transpose(0, 2, 3, 1)
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def grid(images: Tensor, num_levels: int = 256, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """Returns images side by side as one picture, small ones enlarged without smoothing.

    Args:
        images: Floats in [-1, 1], or levels as uint8; (n, 1 or 3, height, width).
        num_levels: Number of values a pixel can take.
        columns: Images in a row; nearly square without it.
        gap: Pixels between images.
    """
    pixels = as_pixels(images, num_levels)
    factor = max(1, SMALLEST_SIDE // max(pixels.shape[1:3]))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    columns = columns or math.ceil(math.sqrt(len(pixels)))
    rows = math.ceil(len(pixels) / columns)
    height, width = pixels.shape[1] + gap, pixels.shape[2] + gap
    canvas = np.full((rows * height + gap, columns * width + gap, *pixels.shape[3:]), 255, np.uint8)
    for number, image in enumerate(pixels):
        top, left = gap + number // columns * height, gap + number % columns * width
        canvas[top : top + height - gap, left : left + width - gap] = image
    return canvas


def joined(pictures: Sequence[np.ndarray], axis: int, gap: int = 8) -> np.ndarray:
    """Returns pictures one after the other, with white between them and where one is smaller.

    Args:
        pictures: (height, width) or (height, width, 3) each.
        axis: 0 puts them below each other, 1 beside each other.
        gap: Pixels between them.
    """
    across = max(picture.shape[1 - axis] for picture in pictures)
    parts: list[np.ndarray] = []
    for number, picture in enumerate(pictures):
        margins = [(0, 0)] * picture.ndim
        margins[axis] = (gap if number else 0, 0)
        margins[1 - axis] = (0, across - picture.shape[1 - axis])
        parts.append(np.pad(picture, margins, constant_values=255))
    return np.concatenate(parts, axis=axis)
