"""Known parts of pictures, and how near a restored picture comes to the true one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.data.decode import Policy, decode
from genlab.metrics.pairs import PSNR, SSIM
from genlab.shapes import DataSpec


def read_mask(path: Path, image: Path, spec: DataSpec) -> Tensor:
    """Returns 1 where an image is known and 0 where the mask is white, cut and resized as the image is.

    Raises:
        ValueError: For a mask of another size than the image, with grey pixels, or of one colour.
    """
    pixels, size = _decoded(path, Policy(None, 1))
    image_size = _decoded(image, Policy(None, spec.shape[0]))[1]
    if size != image_size:
        raise ValueError(
            f"{path} has {size[0]} x {size[1]} pixels and {image} {image_size[0]} x {image_size[1]}: "
            "draw the mask in the size of the image."
        )
    grey = ((pixels > 64) & (pixels < 192)).mean()
    if grey > 0.01:
        raise ValueError(
            f"{path} is grey in {grey:.0%} of its pixels: black keeps a pixel, white fills it in."
        )
    small = torch.tensor(_decoded(path, Policy(spec.shape[1], 1))[0])
    known = (small < 64).float()[None]
    if not known.any() or known.all():
        colour, remedy = ("black", "nothing to fill in") if known.all() else ("white", "nothing to keep")
        raise ValueError(f"{path} is all {colour} in the centred square that the model sees: {remedy}.")
    return known


def signal_to_noise(x: Tensor, truth: Tensor) -> Tensor:
    """Returns the peak signal-to-noise ratio of each image in decibels, 10 log10(4 / mean square error)."""
    return 10.0 * torch.log10(4.0 / (x - truth).square().flatten(1).mean(1))


def _decoded(path: Path, policy: Policy) -> tuple[Any, tuple[int, int]]:
    found = decode(path.read_bytes(), str(path), policy)
    return found.pixels, found.size


def pair_scores(x: Tensor, target: Tensor, levels: int, border: int = 0) -> dict[str, float]:
    """Returns PSNR and SSIM of one image beside its target, of coloured ones on the luma and on all channels.

    The two differ by about 2 dB, and papers on super-resolution give the one of the luma.

    Args:
        x: (1, channels, height, width), levels as uint8.
        target: What it should be.
        levels: Number of values of a pixel.
        border: Pixels left out along each side, by convention as many as the factor of enlargement.
    """
    spec, found = DataSpec("pair", tuple(x.shape[1:]), levels=levels), {}
    border = min(border, (min(x.shape[2:]) - 1) // 2)
    for channels in ("y", "rgb") if x.shape[1] == 3 else ("y",):
        for name, metric in (("psnr", PSNR(channels, border)), ("ssim", SSIM(channels, border))):
            metric.set_data(spec, None)
            quality = metric.measure(metric.compared(x), metric.compared(target))
            found[f"{name}_{channels}"] = float(quality)
    return found


def enlarged(x: Tensor, factor: int) -> Tensor:
    """Returns images enlarged by Keys' bicubic filter with a = -1/2, as Pillow and MATLAB do."""
    return torch.nn.functional.interpolate(x, scale_factor=float(factor), mode="bicubic", antialias=True)
