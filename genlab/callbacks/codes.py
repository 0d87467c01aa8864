"""Codes of a first stage, which are the same in every epoch and so are found once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from genlab.data.base import DataModule
from genlab.data.loading import Items
from genlab.data.packed import column_of
from genlab.families.codes import FirstStage
from genlab.files import cache_folder, replacing
from genlab.shapes import DataSpec

COLUMN = "code"
"""What a batch calls the codes that it brings along."""


class CodeCache(Callback):
    """Encodes the training and the validation split once for a model of their codes, and keeps them on disk.

    Under the fingerprint of the images and the digest of the first stage: another run finds them there.
    Images that are mirrored, moved or drawn anew in each epoch have other codes each time; they are encoded
    in every step.
    """

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        stage, data = getattr(pl_module, "first_stage", None), trainer.datamodule
        if not isinstance(stage, FirstStage) or trainer.fast_dev_run or not _are_always_the_same(data):
            return
        device = trainer.strategy.root_device
        for split in ("train", "val"):
            file = cached(data, split, stage)
            if trainer.is_global_zero and not file.is_file():
                _write(file, data, split, stage, device)
            trainer.strategy.barrier()
            data.add_column(split, COLUMN, column_of(file))


def cached(data: DataModule, split: str, stage: FirstStage) -> Path:
    """Returns the file of a split's codes, which need not be there yet."""
    return cache_folder("codes") / f"{data.fingerprint(split)[:24]}-{stage.digest[:24]}.npy"


def _are_always_the_same(data: DataModule) -> bool:
    items = data.training_items(0)
    plain = type(items) is Items and items.packed is data.split("train")
    return plain and not items.moves and items.binarize is None


@torch.no_grad()
def _write(file: Path, data: DataModule, split: str, stage: FirstStage, device: torch.device) -> None:
    model = stage.model.to(device)
    num, spec = len(data.split(split)), model.code_spec
    with replacing(file) as partial:
        rows = np.lib.format.open_memmap(partial, "w+", _dtype(spec), (num, *spec.shape))
        for batch in data.loader(split):
            codes: Tensor = model.encode(data.to_device_batch(batch, device)["image"])
            rows[batch["index"].numpy()] = codes.cpu().numpy()
        rows.flush()


def _dtype(spec: DataSpec) -> np.dtype:
    """Returns the smallest type that holds codes."""
    return np.dtype(np.float32) if not spec.levels else np.min_scalar_type(-spec.levels)
