"""What every data set offers: its spec, its splits, and loaders for training and for scoring."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from genlab import randomness
from genlab.data.chunks import ChunkRows
from genlab.data.loading import ChunkOrder, Items, Order, ScoringLoader, TrainLoader
from genlab.data.packed import Packed, WindowRows
from genlab.data.splits import FIXED, LEAST, held_out, others, share_of, stratified
from genlab.errors import DataError
from genlab.files import cache_folder
from genlab.shapes import Batch, DataSpec, Judge, to_float

SPLITS = ("train", "val", "test")
MADE_HERE = "none needed: genlab makes them itself"
"""The licence of data that a program of genlab draws."""


class DataModule(pl.LightningDataModule):
    """A data set as packed arrays, with one batch format for training and for every metric.

    Three splits: "train" is learned from; "val" is looked at while a model is trained, by curves, health, the
    best checkpoint and early stopping; "test" is scored by `genlab test` and decides nothing.

    A data set implements `spec` and `load`. Images travel as uint8 levels and become floats in [-1, 1] on the
    device, where training images are mirrored and moved if `flip` and `shift` say so.

    Args:
        batch_size: Training images a step on each device.
        eval_batch_size: Images a step on each device where nothing is learned; None means batch_size.
        flip: Mirror half of the training images, chosen anew in each epoch.
        shift: Pixels by which training images are moved at most, along each side and anew in each epoch; what
            comes in from outside repeats the border. For few images; generators learn to draw such borders.
        num_workers: Reading processes. Whole batches are read by one indexing, so 0 is nearly always fastest.
        seed: Splits that the data set does not fix itself, and with `training_seed` what a training draws.
        val_fraction: Share of the training split that is the validation split where the data bring none, the
            same share of each label. `seed` does not change the cut, so that training seeds are comparable.
            At 0 there is no validation split, and nothing can be trained.
        fraction: Share of what is left of the training split that is used, the same share of each label; for
            scarce data. The others are the split "rest", on which a bench chooses settings.
        licence: What the data may be used for, which a run records and its model card says; None means what
            their class knows.

    Shapes:
        batch["image"]: (batch, channels, height, width); uint8 from the loader, float after the transfer.
        batch["label"], batch["index"]: (batch,), int64.
    """

    things = "images"
    """What the items are, as messages name them."""

    training_seed = 0
    """The training's, `--seed_everything`: what it draws differs from another's, the splits do not."""

    licence = ""
    """What the source of the data says that they may be used for; "" where nobody has said it."""

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        flip: bool = False,
        shift: int = 0,
        num_workers: int = 0,
        seed: int = 0,
        val_fraction: float = 0.1,
        fraction: float = 1.0,
        licence: str | None = None,
    ) -> None:
        super().__init__()
        _require(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}.")
        _require(0.0 <= val_fraction < 1.0, f"val_fraction must be in [0, 1), got {val_fraction}.")
        _require(0.0 < fraction <= 1.0, f"fraction must be in (0, 1], got {fraction}.")
        _require(num_workers >= 0, f"num_workers must be at least 0, got {num_workers}.")
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        _require(
            self.eval_batch_size >= 1, f"eval_batch_size must be at least 1, got {self.eval_batch_size}."
        )
        _require(shift >= 0, f"shift must not be negative, got {shift}.")
        self.flip, self.shift = flip, shift
        self.num_workers = num_workers
        self.seed = seed
        self.val_fraction = val_fraction
        self.fraction = fraction
        if licence is not None:
            self.licence = licence
        self._splits: dict[str, Packed] | None = None
        self._fingerprints: dict[str, str] = {}

    @property
    @abstractmethod
    def spec(self) -> DataSpec:
        """What a model must know of the data; known before anything is packed."""

    @abstractmethod
    def load(self) -> dict[str, Packed]:
        """Returns "train", "test" and, where the data bring it, "val", packing them where needed."""

    @property
    def judge(self) -> Judge | None:
        """Says what of an image is as its source says; None where that takes eyes."""
        return None

    def preprocessing(self) -> dict[str, Any]:
        """Returns what was done to the images, for the run's record."""
        return {}

    @property
    def cache(self) -> Path:
        """Where packed data lie."""
        return cache_folder("data")

    def split(self, name: str) -> Packed:
        """Returns the items of "train", "val" or "test", or of "rest", what `fraction` leaves out of "train".

        Raises:
            ValueError: For another name.
            DataError: Where the data cannot be had, with the ways to get them, or are too few.
        """
        names = (*SPLITS, *(("rest",) if self.fraction < 1.0 else ()))
        _require(name in names, f"split must be one of {', '.join(names)}, got {name!r}{_hint(name)}.")
        if self._splits is None:
            self._splits = self.cut(self.load())
        if name not in self._splits:
            raise DataError(
                f"{self.spec.name} has no validation split at --data.val_fraction 0, as in runs of before "
                "there was one: train anew, or go on without some training items by --data.val_fraction 0.1."
            )
        return self._splits[name]

    def add_column(self, name: str, column: str, rows: Any) -> None:
        """Adds to a split what is known of its items from elsewhere; batches hold it from now on."""
        packed = self.split(name)
        assert self._splits is not None
        self._splits[name] = Packed({**packed.columns, column: rows})

    def reversed_split(self, name: str) -> Packed:
        """Returns a split as a model of the way back sees it, its sources in the place of its images."""
        packed = self.split(name)
        return Packed({"image": packed["source"], "source": packed["image"]})

    def cut(self, splits: dict[str, Packed]) -> dict[str, Packed]:
        """Returns loaded splits with a validation split, and of the training split the `shares`."""
        splits = self.validated(splits)
        few = [name for name in ("val", "test") if name in splits and len(splits[name]) < LEAST]
        if few and self.spec.kind != "tokens":
            raise DataError(
                f"The {few[0]} split of {self.spec.name} has {len(splits[few[0]])} {self.things}; scores "
                f"compare with at least {LEAST}: add some."
            )
        return {**splits, **self.shares(splits["train"])}

    def validated(self, splits: dict[str, Packed]) -> dict[str, Packed]:
        """Returns splits with one for validation: their own, or one cut from "train", stratified."""
        if "val" in splits or self.val_fraction == 0.0:
            return splits
        train = splits["train"]
        total = sum(map(len, splits.values()))
        num = share_of(len(train), self.val_fraction, self.things, "validation", total)
        rows = held_out(train, num, FIXED, "validation")
        return {**splits, "train": train.take(others(rows, len(train))), "val": train.take(rows)}

    def fingerprint(self, split: str) -> str:
        """Returns a SHA-256 over pixels, labels and level count; one changed pixel changes it."""
        if split not in self._fingerprints:
            self._fingerprints[split] = self.split(split).fingerprint(self.spec.levels)
        return self._fingerprints[split]

    def num_tokens(self, split: str) -> int | None:
        """Returns how many tokens of a split are predicted; None where the data are no text."""
        return None

    def num_bytes(self, split: str) -> int | None:
        """Returns how many bytes of UTF-8 these tokens stand for; None where the data are no text."""
        return None

    def describe(self) -> dict[str, Any]:
        """Returns what a run records of its data."""
        spec, path = self.spec, getattr(self, "path", None)
        return {
            "name": spec.name,
            "shape": list(spec.shape),
            "levels": spec.levels,
            "num_classes": spec.num_classes,
            "unit": spec.unit,
            "spec": spec.summary(),
            "counts": {name: len(self.split(name)) for name in SPLITS},
            "fingerprints": {name: self.fingerprint(name) for name in SPLITS},
            "seed": self.seed,
            "val_fraction": self.val_fraction,
            "fraction": self.fraction,
            "flip": self.flip,
            **({"shift": self.shift} if self.shift else {}),
            **self._reading(),
            "source": None if path is None else Path(path).name,
            "licence": self.licence,
            "preprocessing": self.preprocessing(),
        }

    @property
    def drawing_seed(self) -> int:
        """The seed of what a training draws of the data: order, crops, moves and choices of each epoch."""
        if not self.training_seed:
            return self.seed
        return randomness.key(self.seed, "training", self.training_seed)

    def prepare_data(self) -> None:
        self.split("train")

    def require_usable(self) -> None:
        """Refuses data that nothing can be trained on, before anything else is made.

        Raises:
            DataError: They are missing, damaged or too few, or have nothing to validate on.
        """
        self.split("val")
        self._require_a_batch()

    def setup(self, stage: str | None = None) -> None:
        if stage == "fit":
            self.require_usable()

    def train_dataloader(self) -> TrainLoader:
        rank, world_size = self._place()
        self._require_a_batch()
        order = self.order(len(self.training_items(0)), self.batch_size * world_size)
        return TrainLoader(self.training_items, order, rank, world_size, self.num_workers)

    def val_dataloader(self) -> ScoringLoader:
        return self._evaluation("val", "limit_val_batches")

    def test_dataloader(self) -> ScoringLoader:
        return self._evaluation("test", "limit_test_batches")

    def predict_dataloader(self) -> ScoringLoader:
        return self._evaluation("test", "limit_predict_batches")

    def loader(
        self,
        split: str,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int | None = None,
        at_most: int | None = None,
    ) -> Iterable[Batch]:
        """Returns the batches of a split for scoring: rank r takes items r, r + w, ..., each exactly once.

        With at_most there are only so many items, evenly spaced over the split.
        """
        batch_size = batch_size or self.eval_batch_size
        return ScoringLoader(self.items(split), batch_size, rank, world_size, at_most=at_most)

    def items(self, split: str) -> Items:
        """Returns a split's items as they are, for scoring."""
        return Items(self.split(split))

    def training_items(self, epoch: int) -> Items:
        """Returns the training items of an epoch; every epoch has as many."""
        train = self.split("train")
        return Items(self.cropped(train, epoch), self.moves(len(train), epoch))

    def cropped(self, train: Packed, epoch: int) -> Packed:
        """Returns training items with a square of each image drawn anew, where more than one is kept."""
        image = train.get("image")
        if not isinstance(image, WindowRows):
            return train
        draw = randomness.uniform(
            randomness.key(self.drawing_seed, "crop", epoch), torch.arange(len(train)), 1
        )
        return Packed({**train.columns, "image": image.at(draw[:, 0].numpy())})

    def order(self, num_items: int, joined: int) -> Order:
        """Returns the order of the training items, of which all processes together read `joined` a step."""
        x = self.split("train").x
        if isinstance(x, ChunkRows):
            return ChunkOrder(num_items, joined, self.drawing_seed, torch.from_numpy(x.places), x.window)
        return Order(num_items, joined, self.drawing_seed)

    def moves(self, num: int, epoch: int) -> dict[str, Tensor]:
        """Returns how each item of an epoch is mirrored and moved, in the columns of a batch."""
        if self.spec.kind != "image":
            return {}
        moves, rows = {}, torch.arange(num)
        if self.flip:
            draw = randomness.uniform(randomness.key(self.drawing_seed, "flip", epoch), rows, 1)
            moves["flip"] = draw[:, 0] < 0.5
        if self.shift:
            self._require_one_size()
            draw = randomness.uniform(randomness.key(self.drawing_seed, "shift", epoch), rows, 2)
            moves["shift"] = (draw * (2 * self.shift + 1)).long() - self.shift
        return moves

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int = 0) -> Any:
        return self.to_floats(batch) if isinstance(batch, dict) else batch  # type: ignore[arg-type]

    def to_device_batch(self, batch: Batch, device: torch.device | str) -> Batch:
        """Returns a loader's batch on a device with its images as floats, for loops outside of Lightning."""
        moved: Any = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }
        return self.to_floats(moved)

    def to_floats(self, batch: Batch) -> Batch:
        """Returns the batch with images mirrored and moved as it says, and mapped from levels to [-1, 1].

        A source that is an image is moved with the image, and mapped by its own number of levels.
        """
        out: dict[str, Any] = {name: value for name, value in batch.items() if name not in ("flip", "shift")}
        flip, shift = batch.get("flip"), batch.get("shift")
        for name, spec in (("image", self.spec), ("source", self.spec.source)):
            if spec is not None and name in out and out[name].dtype == torch.uint8:
                # Floats first: on a CPU, torch mirrors and selects them faster than bytes.
                out[name] = _moved(_mirrored(to_float(out[name], spec.levels), flip), shift)
        return out  # type: ignore[return-value]

    def _evaluation(self, split: str, limit: str) -> ScoringLoader:
        """Returns a split's batches, those that stand for all first where the trainer reads only some."""
        (rank, world_size), items = self._place(), self.items(split)
        joined, share = self.eval_batch_size * world_size, getattr(self.trainer, limit, 1.0)
        read = share if isinstance(share, int) else int(-(-len(items) // joined) * share)
        first = None if self.spec.kind == "tokens" else read * joined  # a text's rows follow each other
        return ScoringLoader(items, self.eval_batch_size, rank, world_size, self.num_workers, first=first)

    def _reading(self) -> dict[str, str]:
        """Returns in which order the data are read, where it is not a permutation of all."""
        x = self.split("train").x
        return {"order": f"{x.window} chunks at a time"} if isinstance(x, ChunkRows) else {}

    def _place(self) -> tuple[int, int]:
        """Returns rank and number of processes of the attached trainer."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def shares(self, train: Packed) -> dict[str, Packed]:
        """Returns the part of the training split that is used, and the "rest"."""
        if self.fraction == 1.0:
            return {"train": train}
        num = max(1, round(self.fraction * len(train)))
        rows = stratified(train.get("label"), len(train), num, self.seed)
        return {"train": train.take(rows), "rest": train.take(others(rows, len(train)))}

    def _require_one_size(self) -> None:
        source = self.spec.source
        if source is not None and source.kind == "image" and source.shape[1:] != self.spec.shape[1:]:
            raise ValueError(
                f"shift must be 0 for images of {self.spec.shape[1:]} with sources of {source.shape[1:]}, as "
                "their pixels differ in size."
            )

    def _require_a_batch(self) -> None:
        _, world_size = self._place()
        num, joined = len(self.training_items(0)), self.batch_size * world_size
        devices = f" on each of {world_size} devices" if world_size > 1 else ""
        if num < joined:
            total = num + sum(len(self.split(name)) for name in ("val", "test"))
            raise DataError(
                f"{total} {self.things} are too few: the {num} left to learn from are fewer than one batch "
                f"of {joined} ({self.batch_size}{devices}); use --data.batch_size "
                f"{max(1, num // world_size)} or less."
            )


def _mirrored(images: Tensor, flip: Tensor | None) -> Tensor:
    return images if flip is None else torch.where(flip[:, None, None, None], images.flip(-1), images)


def _moved(images: Tensor, shift: Tensor | None) -> Tensor:
    """Returns each image moved down and to the right by so many pixels, (batch, 2), its border repeated."""
    if shift is None:
        return images
    batch, channels, height, width = images.shape
    rows, columns = (
        (torch.arange(side, device=images.device) - by[:, None]).clamp(0, side - 1)
        for side, by in zip((height, width), shift.to(images.device).unbind(1), strict=True)
    )
    down = images.gather(2, rows[:, None, :, None].expand(batch, channels, height, width))
    return down.gather(3, columns[:, None, None, :].expand(batch, channels, height, width))


def _hint(split: str) -> str:
    return ", which takes a data.fraction below 1" if split == "rest" else ""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
