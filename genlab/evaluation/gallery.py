"""Pictures of a tested model, from fixed numbers, so that those of several runs can be laid side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genlab.data.base import DataModule
from genlab.evaluation.copies import Copies
from genlab.evaluation.given import given_for
from genlab.evaluation.latents import reconstruct, slerp
from genlab.evaluation.lines import held_out_translations, translates_sentences
from genlab.evaluation.pictures import grid, joined, samples_grid
from genlab.evaluation.score import KeptSamples, sample_levels
from genlab.families.base import Model
from genlab.families.capabilities import HasLatent, Reconstructs
from genlab.files import write_text
from genlab.metrics.base import Reference
from genlab.metrics.neighbours import neighbour_distances
from genlab.runs.folder import Run
from genlab.shapes import observed

NUM_SAMPLES = 64
NUM_TRANSLATIONS = 16
NUM_WAYS = 8
NUM_POINTS = 10
NUM_RECONSTRUCTIONS = 12
NUM_NEIGHBOURED = 12
NUM_FAILURES = 32
AMPLIFIED = 4
"""Factor on the difference of an image and its reconstruction."""


def of_samples(
    model: Model, data: DataModule, drawn: KeptSamples, copies: Copies, train: Reference, test: Reference
) -> dict[str, np.ndarray]:
    """Returns the pictures that show samples.

    `samples`: the first ones. `neighbours`: those nearest to a training image, the nearest first, each beside
    its nearest training images. `failures`: those farthest from every unseen real image in features, the
    farthest first.

    Args:
        model: Draws again what was not kept.
        data: Holds the training images.
        drawn: The samples.
        copies: Their distances to the training images.
        train: Numbers of the training images that were compared.
        test: Features of the unseen images.
    """
    numbers, levels = drawn.features.index, model.spec.levels
    nearest = copies.distances[:, 0].argsort()[:NUM_NEIGHBOURED]
    far = neighbour_distances(drawn.features.features, test.features)
    farthest = far.argsort(descending=True)[:NUM_FAILURES].cpu()
    first = list(range(min(NUM_SAMPLES, drawn.features.num)))
    return {
        "samples": grid(drawn.images(model, first), levels),
        "neighbours": neighbours(
            drawn.images(model, numbers[nearest].tolist()),
            train_images(data, train.index[copies.neighbours[nearest]]),
            levels,
        ),
        "failures": grid(drawn.images(model, numbers[farthest].tolist()), levels, columns=8),
    }


@torch.no_grad()
def of_translations(model: Model, data: DataModule, split: str, seed: int = 0) -> dict[str, Any]:
    """Returns `translations` of the first items of a split, none of a model without a source.

    Each image, or sentence, stands behind its source, and before what it was to be, where the data know that.
    """
    source = model.seen_spec.source
    if translates_sentences(model):
        found = held_out_translations(model, data, NUM_TRANSLATIONS, split, seed)
        return {"translations": "\n\n".join(map(str, found)) + "\n"}
    if model.spec.kind != "image" or source is None or source.kind != "image":
        return {}
    index = torch.arange(min(NUM_TRANSLATIONS, len(data.items(split))))
    given = given_for(model, index, data, split)
    x = sample_levels(model, index, seed, given)
    return {"translations": samples_grid(model, x, index, given, data, split)}


@torch.no_grad()
def of_latents(model: Any, data: DataModule, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns the pictures that show a latent space, none of a model without one.

    `interpolation`: the arc between two latents in each row. `reconstruction`: images of the test split,
    below each what came back and their difference, four times as large, grey where there is none.
    """
    found = {}
    if isinstance(model, HasLatent):
        found["interpolation"] = interpolations(model, seed, data)
    if isinstance(model, Reconstructs):
        found["reconstruction"] = reconstructions(model, data)
    return found


def interpolations(model: Any, seed: int, data: DataModule | None = None) -> np.ndarray:
    """Returns rows of images, each along the arc between the latents of two samples."""
    z = model.draw_latent(torch.arange(2 * NUM_WAYS, device=model.device), seed)
    points = torch.cat([slerp(a, b, NUM_POINTS) for a, b in z.unflatten(0, (NUM_WAYS, 2))])
    given = given_for(model, torch.arange(NUM_WAYS).repeat_interleave(NUM_POINTS), data)
    return grid(model.decode(points, **given).cpu(), model.spec.levels, columns=NUM_POINTS)


def reconstructions(model: Any, data: DataModule) -> np.ndarray:
    """Returns images, their reconstructions and the amplified differences, in three rows."""
    batch = next(iter(data.loader("test", batch_size=NUM_RECONSTRUCTIONS, at_most=NUM_RECONSTRUCTIONS)))
    batch = data.to_device_batch(batch, model.device)
    x = observed(batch)
    x_hat = reconstruct(model, x, model.given_of(batch))
    difference = (AMPLIFIED * (x_hat - x) / 2).clamp(-1.0, 1.0)
    return grid(torch.cat([x, x_hat, difference]).cpu(), model.spec.levels, columns=len(x))


def neighbours(samples: Tensor, nearest: Tensor, num_levels: int, columns: int = 3) -> np.ndarray:
    """Returns samples, each beside its nearest training images, several such strips in a row.

    Shapes:
        samples: (n, channels, height, width), nearest: (n, k, channels, height, width), levels.
    """
    strips = [
        joined([grid(sample[None], num_levels), grid(images, num_levels, columns=len(images))], axis=1, gap=6)
        for sample, images in zip(samples, nearest, strict=True)
    ]
    rows = [
        joined(strips[start : start + columns], axis=1, gap=24) for start in range(0, len(strips), columns)
    ]
    return joined(rows, axis=0)


def train_images(data: DataModule, numbers: Tensor) -> Tensor:
    """Returns training images by their numbers, of any shape, as the levels that a model learns."""
    images = observed(data.items("train").__getitems__(numbers.flatten()))
    return images.unflatten(0, tuple(numbers.shape))


def save(pictures: Mapping[str, np.ndarray | str], folder: Path, root: Path) -> dict[str, str]:
    """Writes pictures as PNG files and texts as .txt; returns their paths as seen from the run's folder."""
    Run(root).output(*folder.relative_to(root).parts)  # anybody's run, which may hold links
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, shown in pictures.items():
        paths[name] = folder / f"{name}.{'txt' if isinstance(shown, str) else 'png'}"
        if isinstance(shown, str):
            write_text(paths[name], shown)
        else:
            Image.fromarray(shown).save(paths[name])
    return {name: path.relative_to(root).as_posix() for name, path in paths.items()}
