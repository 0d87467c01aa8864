"""Pictures of a model: grids from fixed seeds through training, and samples as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import BasePredictionWriter, Callback
from torch import Tensor

from genlab.callbacks.record import log_image, log_text
from genlab.evaluation.given import given_for
from genlab.evaluation.lines import samples_text
from genlab.evaluation.pictures import samples_grid, write_samples
from genlab.evaluation.score import sample_levels
from genlab.families.capabilities import can_be_sampled

NUM_ROOMY = 16
"""Most texts, or translated images, of a grid: each takes more room than an image."""


class SampleGrid(Callback):
    """Draws the same numbered samples before training and at every validation, as one picture each.

    Texts are one file each time; what is translated, an image or a sentence, stands between its source and
    its target, both of the validation split.

    Args:
        num: Samples in a grid; 0 draws none.
        seed: Seed of the samples; the same through training, so that the pictures can be compared.
    """

    def __init__(self, num: int = 64, seed: int = 0) -> None:
        if num < 0:
            raise ValueError(f"samples.num must be at least 0, got {num}.")
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
        if not (self.num and trainer.is_global_zero and can_be_sampled(model)) or model.spec.kind == "point":
            return
        data, index = trainer.datamodule, self._numbers(trainer, model)
        given = given_for(model, index, data, "val")
        x = sample_levels(model, index, self.seed, given)
        if model.spec.kind == "tokens":
            text = samples_text(model, x, index, given, data, "val")
            log_text(trainer, "samples", text, model.examples_seen)
        else:
            picture = samples_grid(model, x, index, given, data, "val")
            log_image(trainer, "samples", picture, model.examples_seen)

    def _numbers(self, trainer: Any, model: Any) -> Tensor:
        roomy = model.spec.kind == "tokens" or "source" in model.given
        num = min(self.num, NUM_ROOMY) if roomy else self.num
        return torch.arange(4 if trainer.fast_dev_run else num)


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
        write_samples(self.folder, batch["index"].tolist(), prediction, pl_module.spec)
