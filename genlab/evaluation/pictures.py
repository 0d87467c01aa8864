"""What a model drew, as something that a person can look at: pictures, figures, texts, files."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate

from genlab.data.tokenizers import tokenizer_of
from genlab.evaluation.given import item_batch
from genlab.families.capabilities import TranslatesBack
from genlab.shapes import DataSpec, levels_to_bytes, to_float, to_levels

SMALLEST_SIDE = 64
"""Images are enlarged by a whole factor up to about this size: digits of 8 pixels vanish on a screen."""

LEGIBLE_SIDE = 128
"""The same for images with a caption, which needs some width."""

CHARACTER, LINE, GAP = 6, 13, 4
"""Pixels of a caption's character and line, and between what stands side by side."""

ROWS = 8
"""Translated images below each other, before the next ones stand beside them."""


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


def captioned(
    images: Tensor, captions: Sequence[str], num_levels: int = 256, columns: int | None = None
) -> np.ndarray:
    """Returns images side by side, each above its caption.

    Args:
        images: As in `grid`, (n, 1 or 3, height, width).
        captions: One for each.
        num_levels: Number of values a pixel can take.
        columns: Images in a row; nearly square without it.
    """
    pixels = as_pixels(images, num_levels)
    pixels = pixels if pixels.ndim == 4 else pixels[..., None].repeat(3, axis=3)
    factor = max(1, LEGIBLE_SIDE // max(pixels.shape[1:3]))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = pixels.shape[1:3]
    wrapped = [textwrap.wrap(caption, width // CHARACTER, max_lines=4) for caption in captions]
    below = LINE * max(map(len, wrapped)) + GAP
    columns = columns or math.ceil(math.sqrt(len(pixels)))
    size = columns * (width + GAP) + GAP, math.ceil(len(pixels) / columns) * (height + below + GAP) + GAP
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    for number, (image, lines) in enumerate(zip(pixels, wrapped, strict=True)):
        left = GAP + number % columns * (width + GAP)
        top = GAP + number // columns * (height + below + GAP)
        picture.paste(Image.fromarray(image), (left, top))
        pen.multiline_text((left, top + height + 1), "\n".join(lines), fill="black", font_size=LINE - 2)
    return np.asarray(picture)


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


def texts(x: Tensor, spec: DataSpec) -> list[str]:
    """Returns samples as text: decoded tokens, or a row of numbers."""
    if spec.vocabulary:
        tokenizer = tokenizer_of(spec.vocabulary)
        return [tokenizer.decode(row) for row in x.tolist()]
    return [" ".join(f"{value:g}" for value in row) for row in x.flatten(1).tolist()]


def samples_grid(
    model: Any,
    x: Tensor,
    index: Tensor,
    given: dict[str, Any],
    data: Any,
    split: str = "test",
    columns: int | None = None,
) -> Any:
    """Returns samples as one picture; translated images stand behind their sources, others above them.

    Where the data hold the images that were to be made, they come next; where the model translates back, what
    it makes of the samples again, and below, in the same way, the direction back.

    Args:
        model: Drew them.
        x: The samples, floats or levels.
        index: Their numbers.
        given: What they were told.
        data: Holds the targets, where there is a source.
        split: Of the targets.
        columns: Captioned samples in a row.
    """
    spec, device = model.spec, model.device
    if "source" not in given or spec.source.kind == "point":
        return grid(x, spec.levels)
    if spec.source.kind == "tokens":
        return captioned(x, texts(given["source"], spec.source), spec.levels, columns)
    images = item_batch(data, split, index, device)["image"]
    target = images if getattr(model, "has_targets", True) else None
    there = _translations(model, given["source"], x, index, target)
    if not isinstance(model, TranslatesBack):
        return there
    way_back = model.reversed()
    sources = way_back.sample(index.to(device), source=images)
    return joined([there, _translations(way_back, images, sources, index, None)], axis=0)


def _translations(model: Any, source: Tensor, x: Tensor, index: Tensor, target: Tensor | None) -> np.ndarray:
    """Returns rows of source, image, target where there is one, and source made again where that can be."""
    spec, device = model.spec, model.device
    columns = [as_large(as_colour(source, spec.source.levels), x), as_colour(x, spec.levels)]
    if target is not None:
        columns.append(as_colour(target, spec.levels))
    if isinstance(model, TranslatesBack):
        told = (x if x.is_floating_point() else to_float(x, spec.levels)).to(device)
        again = model.reversed().sample(index.to(device), source=told)
        columns.append(as_colour(again, spec.source.levels))
    return grid(torch.stack(columns, dim=1).flatten(0, 1), columns=len(columns) * math.ceil(len(x) / ROWS))


def as_large(images: Tensor, others: Tensor) -> Tensor:
    """Returns images enlarged to the sides of others: pixels as squares where they fit, else smoothed."""
    old, new = images.shape[2:], others.shape[2:]
    if old == new:
        return images
    fits = all(large % small == 0 for large, small in zip(new, old, strict=True))
    options = {"mode": "nearest"} if fits else {"mode": "bicubic", "antialias": True}
    return interpolate(images.float(), new, **options).round().clamp(0, 255).to(torch.uint8)


def as_colour(images: Tensor, num_levels: int) -> Tensor:
    """Returns images as bytes of three channels, so that grey and coloured ones fit into one picture."""
    levels = images if not images.is_floating_point() else to_levels(images, num_levels)
    return levels_to_bytes(levels.detach(), num_levels).cpu().expand(-1, 3, -1, -1)


def write_samples(folder: Path, numbers: Sequence[int], x: Tensor, spec: DataSpec) -> list[Path]:
    """Writes samples as `<number>.png`, those that are no images as `<number>.txt`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    if spec.kind != "image":
        paths = [folder / f"{number:06d}.txt" for number in numbers]
        for path, text in zip(paths, texts(x, spec), strict=True):
            path.write_text(text + "\n", encoding="utf-8")
        return paths
    paths = [folder / f"{number:06d}.png" for number in numbers]
    for path, pixels in zip(paths, as_pixels(x, spec.levels), strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def new_figure(width: float = 8, height: float = 4.5, columns: int | None = None) -> tuple[Any, Any]:
    """Returns a figure and its axes, drawn without a display; with columns, a list of axes side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    if columns is None:
        return figure, figure.add_subplot()
    return figure, [figure.add_subplot(1, columns, number + 1) for number in range(columns)]


def rendered(figure: Any) -> np.ndarray:
    """Returns a figure's pixels, (height, width, 3)."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
