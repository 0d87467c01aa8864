"""Walks through a latent space: reconstructions, interpolations, traversals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.data.decode import Policy, decode
from genlab.shapes import DataSpec, bytes_to_levels, to_float


def lerp(a: Tensor, b: Tensor, num: int) -> Tensor:
    """Returns num points on the straight line from a to b, both ends included: (num, *a.shape)."""
    t = _steps(a, num)
    return a + t * (b - a)


def slerp(a: Tensor, b: Tensor, num: int) -> Tensor:
    """Returns num points on the arc from a to b: directions turn evenly, lengths change evenly.

        |z| (sin((1 - t) w) a/|a| + sin(t w) b/|b|) / sin w,    w the angle between a and b

    Shoemake 1985; White 2016 (arXiv:1609.04468) for latents: normal vectors lie near a sphere, and the
    straight line between two of them passes through a middle where hardly any lie.
    """
    t = _steps(a, num)
    lengths = a.norm(), b.norm()
    if min(lengths) == 0:
        return lerp(a, b, num)
    direction_a, direction_b = a / lengths[0], b / lengths[1]
    angle = (direction_a * direction_b).sum().clamp(-1.0, 1.0).acos()
    if angle.sin() < 1e-6:
        return lerp(a, b, num)
    turned = ((1.0 - t) * angle).sin() * direction_a + (t * angle).sin() * direction_b
    return torch.lerp(lengths[0], lengths[1], t) * turned / angle.sin()


def reconstruct(model: Any, x: Tensor, given: Mapping[str, Any]) -> Tensor:
    """Returns what comes back of images: decode(encode(x)), the same each time."""
    return model.decode(model.encode(x, **given), **given)


def traverse(
    model: Any, z: Tensor, low: Tensor, high: Tensor, dims: Sequence[int], num: int, given: Mapping[str, Any]
) -> Tensor:
    """Returns one row of images for each dimension, along which z alone changes there.

    Args:
        model: Decodes latents.
        z: Where the walk passes, (latent_dim,).
        low: Where each dimension begins, (latent_dim,).
        high: Where each ends.
        dims: Dimensions to walk along.
        num: Images in a row.
        given: What the model is told, one row of each.

    Returns:
        (len(dims) * num, *image).
    """
    rows = z.repeat(len(dims), num, 1)
    for row, dim in zip(rows, dims, strict=True):
        row[:, dim] = lerp(low[dim], high[dim], num)
    flat = rows.flatten(0, 1)
    told = {name: value.expand(len(flat), *value.shape[1:]) for name, value in given.items()}
    return model.decode(flat, **told)


def read_images(paths: Sequence[Path], spec: DataSpec) -> Tensor:
    """Returns image files as a model of this data expects them: cut square, resized, on its levels.

    Raises:
        ValueError: If the model knows no images, or none that are square; BadImage for a damaged file.
    """
    if spec.kind != "image" or spec.shape[1] != spec.shape[2]:
        raise ValueError(
            f"Image files are brought to a square, but this model's data have shape {spec.shape}."
        )
    policy = Policy(spec.shape[1], spec.shape[0])
    pixels = [torch.tensor(decode(path.read_bytes(), str(path), policy).pixels) for path in paths]
    return to_float(bytes_to_levels(torch.stack(pixels), spec.levels), spec.levels)


def _steps(a: Tensor, num: int) -> Tensor:
    return torch.linspace(0.0, 1.0, num, device=a.device, dtype=a.dtype).reshape(-1, *[1] * a.dim())
