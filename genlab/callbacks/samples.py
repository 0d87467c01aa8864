"""Pictures of a model: grids from fixed seeds through training, and samples as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch_lightning.callbacks import BasePredictionWriter, Callback
from torch import Tensor

from genlab.callbacks.record import log_image
from genlab.evaluation.given import given_for
from genlab.evaluation.pictures import as_pixels, grid
from genlab.evaluation.score import sample_levels
from genlab.families.capabilities import can_be_sampled


class SampleGrid(Callback):
    """Draws the same numbered samples before training and at every validation, as one picture each.

    Args:
        num: Samples in a grid.
        seed: Seed of the samples; the same through training, so that the pictures can be compared.
    """

    def __init__(self, num: int = 64, seed: int = 0) -> None:
        self.num = num
        self.seed = seed

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if not pl_module.examples_seen:
            self._draw(trainer, pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._draw(trainer, pl_module)

    @torch.no_grad()
    def _draw(self, trainer: Any, model: Any) -> None:
        if not trainer.is_global_zero or not can_be_sampled(model) or model.spec.kind != "image":
            return
        num = 4 if trainer.fast_dev_run else self.num
        index = torch.arange(num)
        levels = sample_levels(model, index, self.seed, given_for(model, index, trainer.datamodule, "val"))
        log_image(trainer, "samples", grid(levels, model.spec.levels), model.examples_seen)


class SampleWriter(BasePredictionWriter):
    """Writes what `predict` draws as numbered PNG files.

    Args:
        folder: Where the files go.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__("batch")
        self.folder = folder

    def write_on_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        write_samples(self.folder, batch["index"].tolist(), prediction, pl_module.spec.levels)


def write_samples(folder: Path, numbers: list[int], x: Tensor, num_levels: int) -> list[Path]:
    """Writes samples as `<number>.png`, or points as `<number>.txt`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    if x.dim() != 4:
        paths = [folder / f"{number:06d}.txt" for number in numbers]
        for path, point in zip(paths, x.cpu().numpy(), strict=True):
            np.savetxt(path, point[None])
        return paths
    paths = [folder / f"{number:06d}.png" for number in numbers]
    for path, pixels in zip(paths, as_pixels(x, num_levels), strict=True):
        Image.fromarray(pixels).save(path)
    return paths
