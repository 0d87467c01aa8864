"""Data of images and their sources turned round."""

from __future__ import annotations

from genlab.data.base import SPLITS, DataModule
from genlab.data.packed import Packed
from genlab.shapes import DataSpec


class WayBackData(DataModule):
    """What is held out of other data, for a model that makes the source of an image.

    Args:
        data: Images with sources.
    """

    def __init__(self, data: DataModule) -> None:
        super().__init__(data.batch_size, data.eval_batch_size, seed=data.seed)
        self.data = data

    @property
    def spec(self) -> DataSpec:
        return self.data.spec.reversed()

    def load(self) -> dict[str, Packed]:
        return {name: self.data.reversed_split(name) for name in SPLITS}

    def split(self, name: str) -> Packed:
        return self.data.reversed_split(name)
