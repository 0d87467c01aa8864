import functools
import gzip
import importlib
import io
import json
import multiprocessing
import os
import pickle
import pkgutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image, ImageFile

import genlab.data
from genlab.data import packed as packing
from genlab.data.base import MADE_HERE, DataModule
from genlab.data.check import check, print_report, propose
from genlab.data.decode import BadImage, Policy, decode
from genlab.data.degraded import Degraded, Grey, Small
from genlab.data.digits import Digits
from genlab.data.folder import ImageFolder
from genlab.data.loading import Items, LengthOrder, ScoringLoader, permutation
from genlab.data.packed import MappedRows, Packed, pack
from genlab.data.procedural import COLOURS, FACTORS, Shapes, caption, factors, render
from genlab.data.random_images import RandomImages
from genlab.data.sources import BadSource, open_source
from genlab.data.splits import stratified
from genlab.data.torchvision_sets import CIFAR10, MNIST, CelebA, FashionMNIST
from genlab.data.toy import Checkerboard, EightGaussians, Gaussian1D, Gaussian2D, Pinwheel, TwoMoons
from genlab.data.translated_shapes import TranslatedShapes
from genlab.errors import DataError
from genlab.evaluation.gallery import neighbours, train_images
from genlab.files import cache_folder, making
from genlab.shapes import DataSpec

AS_IT_IS = Policy(image_size=None, channels=3)
GREY = Policy(image_size=None, channels=1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def numbers(batches):
    return [batch["index"].tolist() for batch in batches]


# --- order of the training images ---------------------------------------------------------------------------


def test_order_is_a_permutation_that_follows_from_seed_and_epoch_alone():
    orders = {(seed, epoch): permutation(100, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)}
    assert all(sorted(order) == list(range(100)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4
    assert permutation(100, 1, 1).tolist() == orders[1, 1]


LENGTHS = torch.arange(100) * 37 % 41


def by_length(pool, epoch=0, joined=8):
    order = LengthOrder(100, joined, 3, LENGTHS, pool)
    order.epoch = epoch
    return order.numbers().reshape(-1, joined)


def test_each_pool_has_the_items_of_its_random_batches_sorted_by_length():
    for epoch in (0, 1):
        random, sorted_ = permutation(100, 3, epoch)[:96].reshape(12, 8), by_length(5, epoch)
        for pool in (slice(0, 5), slice(5, 10), slice(10, 12)):
            lengths = LENGTHS[random[pool].flatten()].sort()[0].reshape(-1, 8)
            found = sorted((LENGTHS[batch].tolist() for batch in sorted_[pool]), key=lambda row: row[0])
            assert found == lengths.tolist()
            assert sorted(sorted_[pool].flatten().tolist()) == sorted(random[pool].flatten().tolist())


def test_batches_of_a_pool_do_not_come_from_short_to_long_but_in_another_order_each_epoch():
    shortest = [[int(LENGTHS[batch].min()) for batch in by_length(12, epoch)] for epoch in range(4)]
    assert all(row != sorted(row) for row in shortest)
    assert len({tuple(torch.tensor(row).argsort().tolist()) for row in shortest}) == 4


def test_a_pool_of_one_batch_is_the_random_batch():
    assert (by_length(1).sort()[0] == permutation(100, 3, 0)[:96].reshape(12, 8).sort()[0]).all()


class _Place:
    """Stands for a trainer that runs several processes."""

    def __init__(self, rank, world_size):
        self.global_rank, self.world_size = rank, world_size


def placed(rank, world_size, **kwargs):
    data = Digits(**kwargs)
    data.trainer = _Place(rank, world_size)
    return data


@pytest.mark.fault(13)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_row_j_of_rank_r_is_row_r_plus_w_j_of_the_batch_that_one_process_sees(world_size):
    alone = numbers(Digits(batch_size=30 * world_size).train_dataloader())
    for rank in range(world_size):
        rows = numbers(placed(rank, world_size, batch_size=30).train_dataloader())
        assert rows == [batch[rank::world_size] for batch in alone]


def test_an_epoch_drops_its_rest_and_repeats_nothing():
    batches = numbers(Digits(batch_size=64).train_dataloader())
    assert [len(batch) for batch in batches] == [64] * 14
    assert len({row for batch in batches for row in batch}) == 896


@pytest.mark.fault(12)
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 7, 15, 18])
def test_a_stopped_loader_goes_on_to_the_bit(stop, num_workers):
    def batches(loader, num):
        while num > 0:
            for batch in loader:
                yield batch
                num -= 1
                if num == 0:
                    break

    def loader(workers=0):
        return Digits(batch_size=64, flip=True, num_workers=workers).train_dataloader()

    whole = list(batches(loader(), 33))
    stopped = loader(num_workers)
    list(batches(stopped, stop))
    resumed = loader(num_workers)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    for expected, batch in zip(whole[stop:], batches(resumed, 33 - stop), strict=True):
        assert all(torch.equal(expected[name], batch[name]) for name in ("image", "label", "index", "flip"))


class _Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), []

    def training_step(self, batch, batch_idx):
        self.seen.append((batch["index"].tolist(), batch["image"].sum().item(), batch["image"][0].tolist()))
        return self.layer(torch.zeros(1, 1)).square().sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class _SaveEverywhere(pl.Callback):
    def __init__(self, folder):
        self.folder, self.places = folder, {}

    def _save(self, trainer, module, when):
        if not trainer.sanity_checking:
            file = self.folder / f"{when}-{len(module.seen)}.ckpt"
            trainer.save_checkpoint(file)
            self.places[file] = len(module.seen)

    def on_train_batch_end(self, trainer, module, *_):
        self._save(trainer, module, "batch")

    def on_validation_end(self, trainer, module):
        self._save(trainer, module, "validation")

    def on_train_epoch_end(self, trainer, module):
        self._save(trainer, module, "epoch")


def fit(checkpoint=None, callbacks=(), **kwargs):
    module = _Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **kwargs,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, Digits(batch_size=250, flip=True), ckpt_path=checkpoint)
    return module.seen


@pytest.mark.parametrize(
    "kwargs",
    [
        {"max_epochs": 3},
        {"max_steps": 11, "max_epochs": -1},
        {"max_epochs": 3, "limit_train_batches": 3},
        {"max_epochs": 2, "val_check_interval": 2},
    ],
    ids=str,
)
def test_lightning_resumes_from_every_checkpoint_with_the_same_images_and_flips(kwargs, tmp_path):
    saver = _SaveEverywhere(tmp_path)
    whole = fit(callbacks=[saver], **kwargs)
    unfinished = {file: seen for file, seen in saver.places.items() if seen < len(whole)}
    assert len(unfinished) >= 7
    for file, seen in unfinished.items():
        assert fit(file, **kwargs) == whole[seen:], file.name


@pytest.mark.fault(38)
def test_too_few_images_for_a_batch_are_refused_before_training():
    message = (
        r"1797 images are too few: the 900 left to learn from are fewer than one batch of 1600 "
        r"\(800 on each of 2 devices\).*batch_size 450"
    )
    with pytest.raises(DataError, match=message):
        placed(0, 2, batch_size=800).setup("fit")
    with pytest.raises(DataError, match=r"fewer than one batch of 901.*--data.batch_size 900 or less"):
        Digits(batch_size=901).train_dataloader()


# --- scoring: every item once -------------------------------------------------------------------------------


@pytest.mark.fault(31)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("num_items", [4, 5, 7, 12, 25, 31])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_scoring_reads_every_item_once_with_equal_numbers_of_batches(num_items, world_size, batch_size):
    items = Items(Packed({"image": np.zeros((num_items, 1, 2, 2), np.uint8)}))
    ranks = [numbers(ScoringLoader(items, batch_size, rank, world_size)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(batch and len(batch) <= batch_size + 1 for batches in ranks for batch in batches)
    for rank, batches in enumerate(ranks):
        assert [row for batch in batches for row in batch] == list(range(rank, num_items, world_size))


@pytest.mark.parametrize("limit, num", [(2, 2), (0.29, 2), (1.0, 10), (50, 10)])
def test_batches_that_a_trainer_stops_after_stand_for_the_whole_split(limit, num):
    data = placed(0, 1, eval_batch_size=10)
    data.trainer.limit_val_batches = limit
    batches = numbers(data.val_dataloader())
    assert [row for batch in batches[:num] for row in batch] == list(range(0, 100, 10 // num))
    assert sorted(row for batch in batches for row in batch) == list(range(100))


def test_scoring_reads_the_images_of_their_numbers():
    data = Digits()
    images = data.split("test").x
    for batch in data.loader("test", rank=1, world_size=2, batch_size=100):
        assert np.array_equal(batch["image"].numpy(), images[batch["index"].numpy()])


# --- what happens on the device -----------------------------------------------------------------------------


def test_levels_become_floats_from_minus_one_to_one():
    data = Digits(batch_size=900)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].dtype == torch.uint8 and int(batch["image"].max()) == 16
    floats = data.on_after_batch_transfer(batch, 0)["image"]
    assert torch.allclose(floats, batch["image"].double().div(8).sub(1).float(), atol=1e-6)


def test_flips_mirror_the_chosen_half_of_the_training_images_only():
    data = Digits(batch_size=900, flip=True)
    batch = next(iter(data.train_dataloader()))
    plain = {name: value for name, value in batch.items() if name != "flip"}
    mirrored = data.to_device_batch(batch, "cpu")["image"]
    straight = data.to_device_batch(plain, "cpu")["image"]
    assert 400 < int(batch["flip"].sum()) < 500
    assert torch.equal(mirrored[batch["flip"]], straight[batch["flip"]].flip(-1))
    assert torch.equal(mirrored[~batch["flip"]], straight[~batch["flip"]])
    assert all("flip" not in batch for batch in data.loader("train"))
    assert all("flip" not in batch for batch in data.val_dataloader())


def test_an_image_is_flipped_anew_in_each_epoch_whatever_batch_it_is_in():
    def flips(epoch, **kwargs):
        return Digits(flip=True, **kwargs).training_items(epoch).__getitems__(torch.arange(900))["flip"]

    agree = (flips(0) == flips(1)).float().mean()
    assert 0.4 < agree < 0.6
    assert not torch.equal(flips(0), flips(0, seed=1))
    items = Digits(flip=True).training_items(0)
    assert torch.equal(items.__getitems__(torch.tensor([5, 3]))["flip"], flips(0)[[5, 3]])


def test_training_images_are_moved_by_up_to_so_many_pixels_with_their_border_repeated():
    data = Digits(batch_size=900, shift=2)
    batch = next(iter(data.train_dataloader()))
    moved = data.to_device_batch(batch, "cpu")["image"]
    plain = data.to_device_batch({"image": batch["image"]}, "cpu")["image"]
    assert "shift" not in data.to_floats(batch) and "shift" not in next(iter(data.val_dataloader()))
    for row in range(40):
        down, right = batch["shift"][row].tolist()
        padded = np.pad(plain[row, 0].numpy(), 2, mode="edge")
        assert np.array_equal(padded[2 - down : 10 - down, 2 - right : 10 - right], moved[row, 0])
    found = [torch.bincount(column + 2, minlength=5) for column in batch["shift"].T]
    assert all(140 < int(num) < 220 for counts in found for num in counts)  # 180 expected of each
    again, later = (data.training_items(epoch).moves["shift"] for epoch in (0, 1))
    assert torch.equal(again[batch["index"]], batch["shift"]) and not torch.equal(again, later)


# --- splits, fingerprints, records --------------------------------------------------------------------------


def test_digits_have_one_stratified_split_whatever_the_seed():
    data = Digits(seed=3)
    splits = [data.split(name) for name in ("train", "val", "test")]
    assert [len(split) for split in splits] == [900, 100, 797]
    for name in ("train", "val", "test"):
        assert data.fingerprint(name) == Digits(seed=4).fingerprint(name)
    counts = np.array([np.bincount(split["label"]) for split in splits])
    assert np.abs(counts[:2].sum(0) - counts.sum(0) * 1000 / 1797).max() <= 1
    assert np.abs(counts[1] - counts[:2].sum(0) / 10).max() <= 1
    assert len({image.tobytes() for split in splits for image in split.x}) == 1797


def test_the_packed_digits_never_change():
    # Scores of different versions may only be compared on the same pixels.
    assert Digits().fingerprint("test").startswith("0e072b84e21ec72e")
    assert Digits().fingerprint("train").startswith("5898dcb807adc2d9")
    assert Digits(val_fraction=0).fingerprint("train").startswith("5d67a56aa32ed1ef")


@pytest.mark.parametrize("num", [1, 10, 37, 100])
def test_a_stratified_share_keeps_every_label_to_within_one(num):
    labels = np.repeat([0, 1, 2], [20, 30, 50])
    rows = stratified(labels, 100, num, seed=0)
    assert len(set(rows)) == num and (np.diff(rows) > 0).all()
    counts = np.bincount(labels[rows], minlength=3)
    assert (np.abs(counts - np.array([0.2, 0.3, 0.5]) * num) <= 1).all()
    if num < 100:
        assert not np.array_equal(rows, stratified(labels, 100, num, seed=1))


@pytest.mark.parametrize("num", [1, 10, 49, 51, 99])
def test_a_rare_label_is_taken_when_its_share_rounds_to_it(num):
    labels = np.repeat([0, 1], [1, 99])
    assert (labels[stratified(labels, 100, num, seed=0)] == 0).sum() == round(num / 100)


def test_a_fraction_of_the_training_split_leaves_the_test_split_alone():
    data = Digits(fraction=0.1)
    assert len(data.split("train")) == 90
    for name in ("val", "test"):
        assert data.fingerprint(name) == Digits().fingerprint(name)
    assert data.fingerprint("train") == Digits(fraction=0.1).fingerprint("train")
    assert data.fingerprint("train") != Digits(fraction=0.1, seed=1).fingerprint("train")


def test_what_a_fraction_leaves_out_is_the_rest_of_the_training_split():
    data = Digits(fraction=0.8, seed=3)
    train, rest, whole = data.split("train"), data.split("rest"), Digits().split("train")
    assert (len(train), len(rest)) == (720, 180)
    rows = np.concatenate([train.x, rest.x]).reshape(900, -1)
    assert sorted(map(bytes, rows)) == sorted(map(bytes, np.asarray(whole.x).reshape(900, -1)))
    counts = np.bincount(rest["label"], minlength=10)
    assert (np.abs(counts - 0.2 * np.bincount(whole["label"], minlength=10)) <= 1).all()
    assert sum(len(batch["image"]) for batch in data.loader("rest")) == 180
    assert data.fingerprint("rest") not in (data.fingerprint("train"), data.fingerprint("test"))


def test_there_is_no_rest_of_a_split_that_is_used_whole():
    with pytest.raises(ValueError, match=r"got 'rest', which takes a data\.fraction below 1"):
        Digits().split("rest")


@pytest.mark.fault(14)
def test_one_changed_pixel_label_source_or_level_count_changes_the_fingerprint():
    images, labels = np.zeros((3000, 1, 4, 4), np.uint8), np.zeros(3000, np.int64)
    source, other_source = np.zeros((3000, 5), np.uint8), np.zeros((3000, 5), np.uint8)
    changed, relabelled = images.copy(), labels.copy()
    changed[2999, 0, 3, 3] = 1
    relabelled[7] = 1
    other_source[2999, 4] = 1
    whole = {"image": images, "label": labels, "source": source}
    prints = [
        Packed(whole).fingerprint(256),
        Packed({**whole, "image": changed}).fingerprint(256),
        Packed({**whole, "label": relabelled}).fingerprint(256),
        Packed({**whole, "source": other_source}).fingerprint(256),
        Packed({**whole, "source": source.reshape(3000, 5, 1)}).fingerprint(256),
        Packed({"image": images, "source": source}).fingerprint(256),
        Packed({"image": images, "label": labels}).fingerprint(256),
        Packed({"image": images}).fingerprint(256),
        Packed(whole).fingerprint(17),
        Packed({**whole, "image": images.reshape(3000, 1, 2, 8)}).fingerprint(256),
    ]
    assert len(set(prints)) == len(prints)
    copies = {name: values.copy() for name, values in reversed(whole.items())}
    assert Packed(copies).fingerprint(256) == prints[0]


def test_columns_have_as_many_rows_as_there_are_items():
    images = np.zeros((3, 1, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="3 items but 2 rows of label"):
        Packed({"image": images, "label": np.zeros(2, np.int64)})
    with pytest.raises(ValueError, match="one of image, point, tokens, got label"):
        Packed({"label": np.zeros(2, np.int64)})


def test_a_batch_holds_every_column_but_the_factors_and_tokens_as_int64():
    small = np.array([[0, 65535], [7, 8], [9, 10]], np.uint16)
    columns = {"tokens": small, "source": small.astype(np.uint8), "factors": small}
    batch = Items(Packed(columns)).__getitems__(torch.tensor([2, 0]))
    assert set(batch) == {"tokens", "source", "index"}
    assert batch["tokens"].dtype == batch["source"].dtype == torch.int64
    assert batch["tokens"].tolist() == [[9, 10], [0, 65535]] and batch["source"].tolist() == [
        [9, 10],
        [0, 255],
    ]


class _Pairs(Digits):
    """Digits with their negatives on 5 levels as sources."""

    @property
    def spec(self):
        return DataSpec("pairs", (1, 8, 8), 10, 17, DataSpec("negatives", (1, 8, 8), levels=5))

    def load(self):
        return {
            name: Packed({**part.columns, "source": 4 - part.x // 4}) for name, part in super().load().items()
        }


def test_a_source_is_moved_with_its_image_and_one_of_another_size_cannot_be():
    data = _Pairs(batch_size=900, shift=1)
    batch = next(iter(data.train_dataloader()))
    floats = data.to_device_batch(batch, "cpu")
    levels = (8 * (floats["image"] + 1)).round().long()
    assert not torch.equal(levels, batch["image"].long())
    assert torch.allclose(floats["source"], (4 - levels // 4) / 2 - 1)
    with pytest.raises(ValueError, match="shift must not be negative"):
        Digits(shift=-1)
    enlarged = Degraded(Digits(), Small(2), shift=1)
    with pytest.raises(ValueError, match="sources of"):
        enlarged.training_items(0)


def test_a_source_is_mirrored_with_its_image_and_scaled_by_its_own_levels():
    data = _Pairs(batch_size=900, flip=True)
    batch = next(iter(data.train_dataloader()))
    floats = data.to_device_batch(batch, "cpu")
    levels = torch.where(batch["flip"][:, None, None, None], batch["image"].flip(-1), batch["image"])
    assert torch.allclose(floats["image"], levels / 8 - 1) and 350 < batch["flip"].sum() < 550
    assert torch.allclose(floats["source"], (4 - levels // 4) / 2 - 1)


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (MNIST("nowhere", image_size=32), (1, 32, 32)),
        (FashionMNIST("nowhere"), (1, 28, 28)),
        (CIFAR10("nowhere"), (3, 32, 32)),
        (CelebA("nowhere", image_size=128), (3, 128, 128)),
        (ImageFolder("nowhere", image_size=16, channels=1, labelled=False), (1, 16, 16)),
    ],
)
def test_the_spec_is_known_without_the_data(data, shape):
    assert data.spec.shape == shape


def test_a_description_is_plain_and_names_no_folder(tmp_path):
    images_in(tmp_path / "secret" / "photos", 20)
    data = ImageFolder(str(tmp_path / "secret" / "photos"), image_size=8)
    text = json.dumps(data.describe())
    assert "secret" not in text and '"source": "photos"' in text
    assert data.describe()["counts"] == {"train": 16, "val": 2, "test": 2}
    assert data.describe()["licence"] == ""  # nobody has said it


def classes_of_data():
    """Every data set that genlab has, without what only their bases share."""
    for module in pkgutil.iter_modules(genlab.data.__path__, "genlab.data."):
        for name, found in vars(importlib.import_module(module.name)).items():
            if isinstance(found, type) and issubclass(found, DataModule) and found.__module__ == module.name:
                yield name, found


def test_data_say_what_their_source_allows_and_only_data_of_the_users_leave_it_open():
    said = {name: found.licence for name, found in classes_of_data()}
    assert {name for name, licence in said.items() if not licence} == {
        *(
            "DataModule",
            "TextData",
            "PairData",
            "Degraded",
            "WayBackData",
        ),  # bases, and what others are given to
        *("ImageFolder", "CaptionedImages", "PairedImages", "UnpairedImages", "Patches"),
        *("TextFile", "SentencePairs"),
    }
    assert "research" in said["CelebA"] and said["FashionMNIST"] == "MIT" != said["MNIST"]
    assert said["Digits"].startswith("CC BY 4.0")
    made = {name for name, licence in said.items() if licence == MADE_HERE}
    assert {"Shapes", "Scenes", "TranslatedShapes", "TwoMoons", "NumberText", "NumberNames"} <= made
    assert not {"Digits", "MNIST", "CIFAR10", "CelebA"} & made


def test_a_licence_that_is_given_holds_and_degraded_data_have_that_of_their_images():
    assert Shapes(licence="all mine").licence == "all mine" and Shapes().licence == MADE_HERE
    shapes = Shapes(num_train=20, num_test=10, licence="all mine")
    assert Degraded(shapes, Grey()).describe()["licence"] == "all mine"
    assert Degraded(shapes, Grey(), licence="another").licence == "another"


@pytest.mark.parametrize(
    "kwargs",
    [
        *(
            {"batch_size": 0},
            {"fraction": 0.0},
            {"fraction": 1.5},
            {"num_workers": -1},
            {"eval_batch_size": 0},
        ),
        *({"val_fraction": -0.1}, {"val_fraction": 1.0}),
    ],
)
def test_bad_arguments_are_named(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        Digits(**kwargs)


def test_random_images_have_the_declared_shape_levels_and_labels():
    data = RandomImages(shape=(2, 5, 7), num_classes=3, levels=4, num_train=9, num_test=4)
    train = data.split("train")
    assert train.x.shape == (9, 2, 5, 7) and train.x.max() <= 3
    assert train["label"].tolist() == [0, 1, 2] * 3
    assert len({image.tobytes() for image in [*train.x, *data.split("test").x]}) == 13


# --- decoding -----------------------------------------------------------------------------------------------


def encoded(image, **kwargs):
    stream = io.BytesIO()
    image.save(stream, **{"format": "PNG", **kwargs})
    return stream.getvalue()


def picture(mode="RGB", size=(20, 10)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png(array, colour_type, depth=16):
    """A PNG of 16 bits, which Pillow reads but does not write in colour."""
    height, width = array.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def with_flipped_bit(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def bad_files():
    whole = encoded(picture())
    jpeg = encoded(picture(size=(200, 200)), format="JPEG")
    huge = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = whole[:16] + huge + struct.pack(">I", zlib.crc32(b"IHDR" + huge)) + whole[33:]
    floats = np.linspace(0, 2, 16, dtype=np.float32).reshape(4, 4)
    not_a_number = np.full((4, 4), np.nan, np.float32)
    integers = np.arange(16, dtype=np.int32).reshape(4, 4) * 10**6
    return {
        "zero bytes": (b"", "empty"),
        "text renamed": (b"hello, I am a text\n" * 9, "not an image"),
        "truncated png": (whole[:-80], "damaged"),
        "truncated jpeg": (jpeg[: len(jpeg) // 2], "truncated"),
        "flipped bit": (with_flipped_bit(whole, len(whole) - 17), "checksum"),
        "flipped checksum": (with_flipped_bit(whole, len(whole) - 14), "checksum"),
        "huge": (bomb, "cap is 64 Mpx"),
        "float above one": (encoded(Image.fromarray(floats), format="TIFF"), "not within 0 to 1"),
        "float not a number": (encoded(Image.fromarray(not_a_number), format="TIFF"), "not within 0 to 1"),
        "integers without a range": (encoded(Image.fromarray(integers), format="TIFF"), "declared maximum"),
    }


@pytest.mark.fault(32, 36)
@pytest.mark.parametrize("kind", bad_files())
def test_a_file_that_cannot_be_used_is_named_with_its_reason_in_one_line(kind):
    data, reason = bad_files()[kind]
    with pytest.raises(BadImage, match=reason) as caught:
        decode(data, "holiday/7.png", AS_IT_IS)
    assert str(caught.value).startswith("holiday/7.png: ") and "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.fault(32)
def test_a_truncated_file_is_refused_even_where_pillow_was_told_to_be_lenient(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    jpeg = encoded(picture(size=(200, 200)), format="JPEG")
    with pytest.raises(BadImage, match="truncated"):
        decode(jpeg[: len(jpeg) // 2], "x.jpg", AS_IT_IS)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


GRADIENT = np.linspace(0, 65535, 1024).round().astype(np.uint16).reshape(32, 32)


def tiff16(photometric):
    return encoded(Image.fromarray(GRADIENT), format="TIFF", tiffinfo={262: photometric})


@pytest.mark.fault(34)
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(GRADIENT, 0), GRADIENT / 257),
        (encoded(Image.fromarray(GRADIENT), format="TIFF"), GRADIENT / 257),
        (tiff16(0), 255 - GRADIENT / 257),
        (b"P5 32 32 65535\n" + GRADIENT.astype(">u2").tobytes(), GRADIENT / 257),
        (b"P5 32 32 1023\n" + (GRADIENT // 64).astype(">u2").tobytes(), (GRADIENT // 64) / 1023 * 255),
        (encoded(Image.fromarray((GRADIENT / 65535).astype(np.float32)), format="TIFF"), GRADIENT / 257),
    ],
    ids=["png", "tiff", "tiff white is zero", "pgm", "pgm of 10 bits", "float tiff"],
)
def test_deep_grey_is_rescaled_by_its_range_and_not_clipped(data, expected):
    pixels = decode(data, "x", GREY).pixels[0]
    assert np.abs(pixels - expected).max() <= 0.51
    assert len(np.unique(pixels)) == 256


@pytest.mark.fault(34)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_every_value_of_sixteen_bits_goes_to_its_nearest_level(kind):
    values = np.arange(65536).reshape(256, 256)
    pixels = decode(encoded(Image.fromarray(values.astype(np.uint16)), format=kind), "x", GREY).pixels[0]
    assert np.array_equal(pixels, (values + 128) // 257)


@pytest.mark.fault(34)
def test_sixteen_bit_colour_keeps_its_range():
    colour = np.stack([GRADIENT, GRADIENT[::-1], np.roll(GRADIENT, 99)], axis=-1)
    decoded = decode(png(colour, 2), "x.png", AS_IT_IS)
    assert np.abs(decoded.pixels - colour.transpose(2, 0, 1) / 257).max() < 1.0
    assert len(np.unique(decoded.pixels)) == 256
    assert decoded.notes == ("16-bit colour to 8 bits",)


@pytest.mark.fault(34)
def test_declared_maximum_of_a_tiff_is_its_white():
    data = encoded(Image.fromarray(GRADIENT // 16), format="TIFF", tiffinfo={281: 4095})
    assert np.abs(decode(data, "x.tif", GREY).pixels[0] - (GRADIENT // 16) / 4095 * 255).max() <= 0.51
    beyond = encoded(Image.fromarray(GRADIENT), format="TIFF", tiffinfo={281: 4095})
    with pytest.raises(BadImage, match="declared range 0 to 4095"):
        decode(beyond, "x.tif", GREY)


@pytest.mark.fault(33)
@pytest.mark.parametrize(
    ("background", "expected"), [("white", 255), ("black", 0), ("#336699", (51, 102, 153))]
)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_pixels_take_the_named_background(mode, background, expected):
    image = Image.new("RGBA", (4, 4), (200, 200, 200, 255))
    image.putpixel((1, 2), (9, 9, 9, 0))
    data = encoded(image.convert(mode) if mode != "PA" else image.quantize(4))
    decoded = decode(data, "x.png", Policy(image_size=None, background=background))
    assert decoded.pixels[:, 2, 1].tolist() == list(np.broadcast_to(expected, 3))
    assert decoded.pixels[:, 0, 0].tolist() == [200, 200, 200]
    assert f"transparency laid over {background}" in decoded.notes


@pytest.mark.fault(33)
def test_half_transparency_mixes_in_proportion():
    decoded = decode(encoded(Image.new("RGBA", (1, 1), (100, 0, 0, 128))), "x.png", AS_IT_IS)
    assert np.abs(decoded.pixels[:, 0, 0] - np.array([177.2, 127, 127])).max() <= 1


@pytest.mark.fault(33)
def test_palette_pixels_keep_their_colours():
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.putpixel((1, 0), (200, 100, 50))
    decoded = decode(encoded(image.quantize(2)), "x.png", AS_IT_IS)
    assert decoded.pixels.transpose(1, 2, 0).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert decoded.mode == "P" and decoded.notes == ("palette to RGB",)


def cmyk_profile():
    """A small ICC profile that maps every CMYK colour without black ink to the same middle grey."""
    corner = [[128, 128, 128] if index % 2 == 0 else [0, 128, 128] for index in range(16)]
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut += bytes(range(256)) * 4 + bytes(np.ravel(corner).tolist()) + bytes(range(256)) * 3
    lut += bytes(-len(lut) % 4)
    start = 128 + 4 + 12
    head = struct.pack(">I4sI4s4s4s", start + len(lut), b"test", 0x02100000, b"prtr", b"CMYK", b"Lab ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I4sII", 1, b"A2B0", start, len(lut)) + lut


@pytest.mark.fault(33)
def test_cmyk_follows_its_colour_profile_where_it_has_one():
    image = Image.new("CMYK", (2, 2), (255, 0, 0, 0))
    plain = decode(encoded(image, format="TIFF"), "x.tif", AS_IT_IS)
    assert plain.pixels[:, 0, 0].tolist() == [0, 255, 255]
    assert plain.notes == ("CMYK to RGB without a profile",)
    managed = decode(encoded(image, format="TIFF", icc_profile=cmyk_profile()), "x.tif", AS_IT_IS)
    assert np.ptp(managed.pixels[:, 0, 0].astype(int)) <= 3 and 100 < managed.pixels[0, 0, 0] < 140
    assert managed.notes == ("CMYK to RGB by its profile",)


@pytest.mark.fault(35)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    array = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {1: array, 2: array[:, ::-1], 3: array[::-1, ::-1], 4: array[::-1], 5: array.T}
    upright |= {6: array[::-1].T, 7: array[::-1, ::-1].T, 8: array[:, ::-1].T}
    decoded = decode(encoded(Image.fromarray(array), exif=exif), "x.png", GREY)
    assert np.array_equal(decoded.pixels[0], upright[orientation])
    assert ("turned by its EXIF orientation" in decoded.notes) == (orientation != 1)


@pytest.mark.fault(35)
def test_the_first_frame_of_an_animation_counts():
    frames = [Image.new("L", (4, 4), grey) for grey in (10, 200)]
    data = encoded(frames[0], format="GIF", save_all=True, append_images=frames[1:])
    decoded = decode(data, "x.gif", GREY)
    assert (decoded.pixels == 10).all() and "first of several frames" in decoded.notes


@pytest.mark.fault(39)
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "L"), (1, "RGB"), (3, "RGB"), (1, "1")])
def test_grey_and_colour_become_what_is_wanted(channels, mode):
    image = picture(mode)
    decoded = decode(encoded(image), "x.png", Policy(image_size=None, channels=channels))
    wanted = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(10, 20, channels)
    assert np.array_equal(decoded.pixels, wanted.transpose(2, 0, 1))


@pytest.mark.fault(39)
@pytest.mark.parametrize("size", [(21, 9), (9, 21), (178, 218), (9, 9)])
def test_the_centred_square_is_what_remains(size):
    width, height = size
    array = np.add.outer(np.arange(height), np.arange(width)).astype(np.uint8)
    side = min(size)
    left, top = (width - side) // 2, (height - side) // 2
    pixels = decode(encoded(Image.fromarray(array)), "x.png", Policy(side, 1)).pixels[0]
    assert np.array_equal(pixels, array[top : top + side, left : left + side])


@pytest.mark.fault(39)
def test_resizing_does_not_alias():
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    pixels = decode(encoded(Image.fromarray(stripes)), "x.png", Policy(16, 1)).pixels
    assert np.abs(pixels.astype(int) - 127).max() <= 16


# --- sources ------------------------------------------------------------------------------------------------


def images_in(folder, num, size=(12, 10), start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + num):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")
    return folder


def class_folder(root, num=5):
    images_in(root / "dog", num)
    images_in(root / "cat", num, start=100)
    (root / "cat" / ".hidden.png").write_bytes(b"x")
    (root / "notes.txt").write_text("x")
    return root


def archives(folder, target):
    """The same images as a folder, a zip and three kinds of tar."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with zipfile.ZipFile(target / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in reversed(files):
            archive.write(path, path.relative_to(folder))
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz")):
        with tarfile.open(target / name, mode) as archive:
            for path in reversed(files):
                archive.add(path, path.relative_to(folder))
    with tarfile.open(target / "wrapped.tar", "w") as archive:
        archive.add(folder, "./photos")
    return [folder, *(target / name for name in ("a.zip", "a.tar", "a.tar.gz", "wrapped.tar"))]


def test_a_folder_a_zip_and_a_tar_hold_the_same_images_labels_and_order(tmp_path):
    places = archives(class_folder(tmp_path / "photos"), tmp_path)
    packs = [pack(open_source(place), Policy(8), f"p{n}") for n, place in enumerate(places)]
    for place, packed in zip(places, packs, strict=True):
        assert open_source(place).classes == ["cat", "dog"], place
        assert packed["label"].tolist() == [0] * 5 + [1] * 5
        assert np.array_equal(packed.x, packs[0].x)


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.fault(45)
@pytest.mark.parametrize(
    "info",
    [
        member("/etc/x.png"),
        member("../x.png"),
        member("a/../../x.png"),
        member("x.png", tarfile.SYMTYPE, "/etc/passwd"),
        member("x.png", tarfile.LNKTYPE, "y.png"),
        member("x.png", tarfile.CHRTYPE),
        member("x.png", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name} {info.type}",
)
def test_hostile_members_of_a_tar_are_refused(info, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(info)
    with pytest.raises(BadSource, match=r"refused: its member .*x\.png"):
        open_source(tmp_path / "a.tar")


@pytest.mark.fault(45)
@pytest.mark.parametrize("name", ["/x.png", "../x.png", "a\\..\\..\\x.png", "c:/x.png", "link.png"])
def test_hostile_members_of_a_zip_are_refused(name, tmp_path):
    info = zipfile.ZipInfo("x.png")
    info.filename = name
    info.external_attr = (0o120777 if name == "link.png" else 0o100644) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, b"x")
    with pytest.raises(BadSource, match="refused"):
        open_source(tmp_path / "a.zip")


@pytest.mark.fault(37)
def test_a_place_without_images_says_what_to_do(tmp_path):
    images_in(tmp_path / "high" / "sub" / "deep", 3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no archive")
    sub = tmp_path / "high" / "sub"
    for place, message in [
        (sub, f"0 images in {sub}; found 3 one level down, use --data.path {sub / 'deep'}"),
        (tmp_path / "high", f"found 3 2 levels down, use --data.path {sub / 'deep'}"),
        (tmp_path / "empty", "0 images in"),
        (tmp_path / "text.zip", "neither a folder nor a zip nor a tar"),
        (tmp_path / "absent", "does not exist"),
    ]:
        with pytest.raises(BadSource) as caught:
            open_source(place)
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_split_folders_are_not_taken_for_classes(tmp_path):
    images_in(tmp_path / "d" / "train" / "a", 3)
    images_in(tmp_path / "d" / "more", 3, start=50)
    with pytest.raises(BadSource, match=r"splits and not classes; use --data.path .*d/train"):
        _ = ImageFolder(str(tmp_path / "d")).spec
    assert ImageFolder(str(tmp_path / "d"), labelled=False).spec.num_classes == 0


# --- packing ------------------------------------------------------------------------------------------------


def test_several_processes_pack_what_one_packs(tmp_path):
    source = open_source(images_in(tmp_path / "a", 600, size=(5, 4)))
    one = pack(source, Policy(4), "one", workers=1)
    several = pack(source, Policy(4), "several", workers=2)
    assert np.array_equal(one.x, several.x)
    expected = [np.asarray(Image.open(tmp_path / "a" / name))[:, :4] for name in source.names]
    assert np.array_equal(one.x, np.stack(expected).transpose(0, 3, 1, 2))


@pytest.mark.fault(44)
def test_a_second_call_reads_the_pack_and_a_change_makes_another(tmp_path):
    folder = images_in(tmp_path / "a", 4)
    first = pack(open_source(folder), Policy(8), "a")
    stored = next(cache_folder().glob("data/a-*/images.npy"))
    array = np.load(stored)
    array[0] = 7
    np.save(stored, array)
    assert (pack(open_source(folder), Policy(8), "a").x[0] == 7).all()
    assert not (pack(open_source(folder), Policy(8, background="black"), "a").x[0] == 7).all()
    os.utime(folder / "0002.png", ns=(1, 1))
    assert np.array_equal(pack(open_source(folder), Policy(8), "a").x, first.x)
    assert len(list(cache_folder().glob("data/a-*"))) == 3


@pytest.mark.fault(44)
def test_a_pack_that_lost_bytes_is_built_again(tmp_path):
    source = open_source(images_in(tmp_path / "a", 4))
    first = pack(source, Policy(8), "a")
    stored = next(cache_folder().glob("data/a-*/images.npy"))
    stored.write_bytes(stored.read_bytes()[:-5])
    assert np.array_equal(pack(source, Policy(8), "a").x, first.x)


@pytest.mark.fault(32)
def test_bad_files_stop_packing_with_their_names_and_leave_nothing_behind(tmp_path):
    folder = images_in(tmp_path / "a", 6)
    for number, name in enumerate(["bad0.png", "bad1.png", "bad2.png", "bad3.png"]):
        (folder / name).write_bytes(b"x" * number)
    with pytest.raises(BadSource, match=r"4 of 10 images .* unusable: bad0.png: the file is empty") as caught:
        pack(open_source(folder), Policy(8), "a")
    assert "and 1 more" in str(caught.value) and "genlab data check" in str(caught.value)
    assert list((cache_folder() / "data").iterdir()) == []


def _pack_slowly(folder):
    before = packing.decode.decode

    def slow(*args):
        time.sleep(0.02)
        return before(*args)

    packing.decode.decode = slow
    pack(open_source(folder), Policy(8), "a", workers=1)


def test_a_killed_build_leaves_nothing_that_is_taken_for_a_pack(tmp_path):
    folder = images_in(tmp_path / "a", 40)
    builder = multiprocessing.get_context("fork").Process(target=_pack_slowly, args=(folder,))
    builder.start()
    while not list(cache_folder().glob("data/.a-*/images.npy")):
        time.sleep(0.01)
    os.kill(builder.pid, signal.SIGKILL)
    builder.join()
    data = cache_folder() / "data"
    assert [path.name[0] for path in data.iterdir()] == ["."]
    whole = pack(open_source(folder), Policy(8), "a")
    assert all(image.any() for image in whole.x)


def test_a_build_that_stops_before_its_last_step_leaves_nothing(tmp_path, monkeypatch):
    def stopped(*_):
        raise OSError("stopped")

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(OSError, match="stopped"):
        pack(open_source(images_in(tmp_path / "a", 3)), Policy(8), "a")
    assert list((cache_folder() / "data").iterdir()) == []


def test_builders_of_one_pack_do_not_disturb_each_other(tmp_path):
    folder = images_in(tmp_path / "a", 30)
    context = multiprocessing.get_context("fork")
    builders = [context.Process(target=_pack_slowly, args=(folder,)) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert [builder.exitcode for builder in builders] == [0, 0, 0]
    alone = pack(open_source(folder), Policy(8), "alone")
    assert np.array_equal(pack(open_source(folder), Policy(8), "a").x, alone.x)
    assert len(list((cache_folder() / "data").iterdir())) == 2


def test_what_dead_builders_left_is_swept_after_a_day(tmp_path):
    source = open_source(images_in(tmp_path / "a", 3))
    name = f"a-{packing.key(source, Policy(8))[:20]}"
    old, new, grows = (cache_folder() / "data" / f".{name}.{end}.tmp" for end in ("old", "new", "grows"))
    for left in (old, new, grows):
        left.mkdir(parents=True)
    (grows / "images.npy").touch()  # a folder's own time is that of its last new file
    os.utime(old, (0, 0))
    os.utime(grows, (0, 0))
    pack(source, Policy(8), "a")
    assert not old.exists() and new.exists() and grows.exists()


def test_a_folder_of_any_name_is_made_once_and_swept(tmp_path):
    folder = tmp_path / "a[1]" / "b [*]"
    left = folder.with_name(".b [*].old.tmp")
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    with making(folder) as new:
        assert not left.exists()
        (new / "below").mkdir()
        (new / "below" / "link").symlink_to("nowhere")
    assert [path.name for path in folder.rglob("*")] == ["below", "link"]
    assert list(folder.parent.iterdir()) == [folder]


def test_of_two_that_make_a_folder_the_slower_one_says_that_it_is_there(tmp_path):
    with pytest.raises(ValueError, match="holds something already"), making(tmp_path / "a") as slow:
        (slow / "whose").write_text("slow")
        with making(tmp_path / "a") as fast:
            (fast / "whose").write_text("fast")
    assert (tmp_path / "a" / "whose").read_text() == "fast" and len(list(tmp_path.iterdir())) == 1


def test_large_packs_are_mapped_and_read_like_arrays(tmp_path, monkeypatch):
    source = open_source(class_folder(tmp_path / "a"))
    small = pack(source, Policy(8), "a")
    monkeypatch.setattr(packing, "LARGE", 0)
    large = pack(source, Policy(8), "a")
    assert isinstance(large.x, MappedRows) and large.x.shape == small.x.shape
    rows = np.array([7, 2, 9, 4])
    for ours, theirs in [(large, small), (large.take(rows), small.take(rows))]:
        assert np.array_equal(np.asarray(ours.x), theirs.x)
        assert np.array_equal(ours.x[np.array([3, 0])], theirs.x[[3, 0]])
        assert np.array_equal(ours.x[1:3], theirs.x[1:3])
        assert np.array_equal(ours.take(np.array([1, 0])).x[:], theirs.x[[1, 0]])
        assert ours.fingerprint(256) == theirs.fingerprint(256)
    assert len(pickle.dumps(large)) < 2000


def test_an_image_folder_trains_from_a_mapped_pack_with_reading_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "LARGE", 0)
    class_folder(tmp_path / "a", 20)
    data = ImageFolder(str(tmp_path / "a"), image_size=8, batch_size=6, num_workers=2)
    assert data.spec.num_classes == 2 and np.bincount(data.split("test")["label"]).tolist() == [2, 2]
    images = data.split("train").x
    for batch in data.train_dataloader():
        assert np.array_equal(batch["image"].numpy(), images[batch["index"].numpy()])


# --- check --------------------------------------------------------------------------------------------------


@pytest.mark.fault(32, 39, 40)
def test_a_check_lists_everything_about_a_folder(tmp_path):
    folder = images_in(tmp_path / "a", 6, size=(12, 10))
    for number, (data, _) in enumerate(bad_files().values()):
        (folder / f"bad{number}.png").write_bytes(data)
    (folder / "copy.png").write_bytes((folder / "0001.png").read_bytes())
    (folder / "alpha.png").write_bytes(encoded(picture("RGBA")))
    report = check(folder, workers=1)
    assert report.num_images == 6 + 10 + 2 and not report.ok
    assert [name for name, _ in report.bad] == [f"bad{number}.png" for number in range(10)]
    assert report.sizes == {(12, 10): 7, (20, 10): 1} and report.modes == {"RGB": 7, "RGBA": 1}
    assert report.duplicates == [["0001.png", "copy.png"]]
    assert report.conversions["transparency laid over white"] == 1
    stream = io.StringIO()
    print_report(report, stream)
    assert (
        "bad0.png: the file is empty" in stream.getvalue()
        and "proposed: --data.image_size" in stream.getvalue()
    )


def test_a_clean_folder_is_ok(tmp_path):
    report = check(images_in(tmp_path / "a", 3))
    assert report.ok and report.proposed_size == 10


@pytest.mark.parametrize(
    ("sizes", "proposed"), [({(28, 28): 5}, 28), ({(178, 218): 9}, 128), ({(4000, 3000): 2}, 256), ({}, 0)]
)
def test_the_proposed_resolution_enlarges_few_images(sizes, proposed):
    from collections import Counter

    assert propose(Counter(sizes)) == proposed


def test_checking_needs_no_torch():
    code = "import sys, genlab.data.check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- benchmarks on disk -------------------------------------------------------------------------------------


def write_idx(file, array):
    head = b"\0\0\x08" + bytes([array.ndim]) + b"".join(struct.pack(">I", size) for size in array.shape)
    data = head + array.tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    ("kind", "inside"), [(MNIST, "MNIST/raw"), (FashionMNIST, "FashionMNIST/raw"), (MNIST, "")]
)
def test_idx_files_are_read_where_torchvision_puts_them(kind, inside, ending, tmp_path):
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (7, 28, 28)).astype(np.uint8) for name in ("train", "t10k")}
    for name, array in images.items():
        write_idx(tmp_path / inside / f"{name}-images-idx3-ubyte{ending}", array)
        write_idx(tmp_path / inside / f"{name}-labels-idx1-ubyte{ending}", np.arange(7, dtype=np.uint8))
    data = kind(str(tmp_path), image_size=32, val_fraction=0)
    assert np.array_equal(data.split("test").x[:, 0, 2:30, 2:30], images["t10k"])
    assert data.split("train").x.sum() == images["train"].sum()
    assert data.split("train")["label"].tolist() == list(range(7))


@pytest.mark.parametrize("size", [14, 7])
def test_a_small_mnist_holds_the_rounded_means_of_its_blocks(size, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28)).astype(np.uint8)
    for name in ("train", "t10k"):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", np.arange(5, dtype=np.uint8))
    data = MNIST(str(tmp_path), image_size=size)
    block = 28 // size
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(images)[:, None].double(), block)
    assert data.spec.shape == (1, size, size)
    assert (torch.from_numpy(data.split("test").x) - expected).abs().max() <= 0.5
    assert data.preprocessing() == {"border": 0, "mean_of_blocks": block}
    with pytest.raises(ValueError, match="image_size must be 7 or 14"):
        MNIST(str(tmp_path), image_size=20)


def binarized_mnist(folder, brightness=None, **options):
    images = np.full((300, 28, 28), 51, np.uint8) if brightness is None else brightness
    for name in ("train", "t10k"):
        write_idx(folder / f"{name}-images-idx3-ubyte", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte", np.arange(len(images), dtype=np.uint8) % 10)
    return MNIST(str(folder), binarize=True, val_fraction=0, **options)


def test_pictures_of_training_images_are_of_what_a_model_learns(tmp_path):
    data = binarized_mnist(tmp_path)
    numbers = torch.tensor([[3, 1], [299, 3]])
    images = train_images(data, numbers)
    batch = next(iter(data.loader("train", batch_size=300)))
    assert torch.equal(images, batch["image"][numbers]) and set(images.unique().tolist()) == {0, 1}
    shown = neighbours(images[:, 0], images, data.spec.levels)
    assert set(np.unique(shown)) >= {0, 255}


def test_binarized_pixels_are_one_as_often_as_they_are_bright(tmp_path):
    data = binarized_mnist(tmp_path)
    assert data.spec.levels == 2
    levels = next(iter(data.loader("test", batch_size=300)))["image"]
    assert set(levels.unique().tolist()) == {0, 1}
    assert levels.float().mean().item() == pytest.approx(51 / 255, abs=0.005)
    halves = np.zeros((10, 28, 28), np.uint8)
    halves[:, :14] = 255
    sure = next(iter(binarized_mnist(tmp_path, halves).loader("test", batch_size=10)))["image"]
    assert sure.sum() == 10 * 14 * 28 and sure[:, 0, :14].all()


def test_binarization_is_drawn_anew_in_each_epoch_and_once_for_the_test(tmp_path):
    data, other = binarized_mnist(tmp_path), binarized_mnist(tmp_path, seed=1)
    rows = torch.arange(20)

    def train(source, epoch):
        return source.training_items(epoch).__getitems__(rows)["image"]

    assert torch.equal(train(data, 3), train(data, 3))
    assert not torch.equal(train(data, 3), train(data, 4))
    assert not torch.equal(train(data, 3), train(other, 3))
    tests = [
        next(iter(d.loader("test", batch_size=size)))["image"][:5] for d, size in ((data, 5), (other, 9))
    ]
    assert torch.equal(*tests)
    assert data.fingerprint("test") != MNIST(str(tmp_path), val_fraction=0).fingerprint("test")


def test_a_damaged_idx_file_is_named(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", np.zeros((2, 28, 28), np.uint8))
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(BadSource, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        MNIST(str(tmp_path)).load()


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST, CIFAR10, CelebA])
def test_absent_data_say_where_they_were_looked_for_and_how_to_get_them(kind, tmp_path):
    for path, place in ((str(tmp_path / "nothing"), "nothing"), (None, "data or ")):
        with pytest.raises(BadSource) as caught:
            kind(path).load()
        message = str(caught.value)
        assert place in message and "--data.download true" in message and "--data.path" in message


def cifar_batch(file, images, labels):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps({"data": images.reshape(len(images), -1), "labels": labels}, protocol=2))


def test_cifar_batches_and_sheets_hold_the_same_images(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 32, 32)).astype(np.uint8)
    for number in range(5):
        part = slice(10 * number, 10 * number + 10)
        cifar_batch(tmp_path / f"a/cifar-10-batches-py/data_batch_{number + 1}", images[part], [number] * 10)
    cifar_batch(tmp_path / "a/cifar-10-batches-py/test_batch", images[50:], [5] * 10)
    for number in range(6):
        folder = tmp_path / "b" / ("train" if number < 5 else "test")
        folder.mkdir(parents=True, exist_ok=True)
        sheet = images[10 * number : 10 * number + 10].reshape(2, 5, 3, 32, 32).transpose(0, 3, 1, 4, 2)
        Image.fromarray(sheet.reshape(64, 160, 3)).save(folder / f"{number}_thing.png")
    ours, theirs = CIFAR10(str(tmp_path / "a"), val_fraction=0), CIFAR10(str(tmp_path / "b"), val_fraction=0)
    assert np.array_equal(ours.split("train").x, images[:50])
    assert ours.split("train")["label"].tolist() == [n for n in range(5) for _ in range(10)]
    assert ours.fingerprint("train") == theirs.fingerprint("train")
    assert ours.fingerprint("test") == theirs.fingerprint("test")


class _Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


@pytest.mark.fault(54)
def test_a_pickle_that_calls_something_is_refused(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": _Trap()}))
    with pytest.raises(BadSource, match=r"data_batch_1 .* asks for posix.mkdir"):
        CIFAR10(str(tmp_path)).load()
    assert not Path("trapped").exists()


def test_celeba_uses_the_official_partition_where_it_is(tmp_path):
    folder = images_in(tmp_path / "celeba" / "img_align_celeba", 10, size=(18, 22))
    drawn = CelebA(str(tmp_path), image_size=8)
    assert drawn.describe()["counts"] == {"train": 6, "val": 2, "test": 2}
    lines = [f"{number:04d}.png {[0, 0, 0, 0, 0, 0, 1, 1, 2, 2][number]}" for number in range(10)]
    (folder.parent / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    official = CelebA(str(tmp_path), image_size=8)
    assert official.describe()["counts"] == {"train": 6, "val": 2, "test": 2}
    expected = pack(open_source(folder), Policy(8), "x").x
    assert np.array_equal(official.split("val").x, expected[6:8])
    assert len(CelebA(str(folder), image_size=8).split("val")) == 2


# --- toy densities ------------------------------------------------------------------------------------------

DENSITIES = [
    Gaussian1D(mean=1.0, std=0.5),
    Gaussian2D((0.2, -0.3), (0.8, 0.4)),
    EightGaussians(),
    TwoMoons(),
    TwoMoons(std=0.05),
    Checkerboard(),
    Pinwheel(),
]
IDS = [f"{type(density).__name__}-{number}" for number, density in enumerate(DENSITIES)]


def grid(dimensions, cells):
    """Cell middles over [-4, 4] and the size of a cell."""
    middle = (torch.arange(cells, dtype=torch.float64) + 0.5) * (8 / cells) - 4
    points = torch.cartesian_prod(*[middle] * dimensions).reshape(-1, dimensions)
    return points, (8 / cells) ** dimensions


@functools.cache
def on_grid(density, cells=160):
    """The mass of every cell: exact for the board, to 1e-8 for normals of std 0.05."""
    points, size = grid(density.dimensions, cells)
    return points, torch.cat([density.log_density(part) for part in points.split(20_000)]).exp() * size


@pytest.mark.parametrize("density", DENSITIES, ids=IDS)
def test_a_density_integrates_to_one(density):
    assert float(on_grid(density)[1].sum()) == pytest.approx(1.0, abs=2e-5)


@pytest.mark.parametrize("density", DENSITIES, ids=IDS)
def test_points_fall_where_the_density_says(density):
    num = 40_000
    points, mass = on_grid(density)

    def cell(x):
        return ((x + 4) * 2.5).long().clamp(0, 19).mul(torch.tensor([20, 1][-x.shape[1] :])).sum(1)

    expected = torch.zeros(400, dtype=torch.float64).index_add(0, cell(points), mass) * num
    seen = torch.bincount(cell(density.draw(7, torch.arange(num))), minlength=400)
    used = expected > 5
    # The sum of squares has as many degrees of freedom as cells; five standard deviations are allowed.
    chi_square = float(((seen - expected)[used] ** 2 / expected[used]).sum())
    cells = int(used.sum())
    assert chi_square < cells + 5 * (2 * cells) ** 0.5
    assert float(expected[~used].sum()) < 0.01 * num


@pytest.mark.parametrize("density", DENSITIES, ids=IDS)
def test_points_are_a_function_of_address_and_index(density):
    index = torch.arange(50)
    assert torch.equal(density.draw(1, index)[[7, 3]], density.draw(1, torch.tensor([7, 3])))
    assert not torch.equal(density.draw(1, index), density.draw(2, index))


def test_the_gaussian_is_torchs_normal():
    x = torch.linspace(-3, 3, 50)[:, None]
    expected = torch.distributions.Normal(1.0, 0.5).log_prob(x)[:, 0]
    assert torch.allclose(Gaussian1D(1.0, 0.5).log_density(x), expected, atol=1e-6)


@pytest.mark.parametrize(
    "density", [Gaussian2D((0.2, -0.3), (0.8, 0.4)), EightGaussians()], ids=["normal", "eight"]
)
def test_a_noised_density_is_the_density_spread_by_the_noise(density):
    alpha, sigma = 0.6, 0.5
    points, mass = on_grid(density)
    places = torch.tensor([[0.0, 0.0], [0.7, -0.4], [-1.2, 0.3]], dtype=torch.float64)
    distance = (places[:, None] - alpha * points[None]).square().sum(2)
    spread = torch.exp(-0.5 * distance / sigma**2) / (2 * np.pi * sigma**2)
    expected = (spread * mass).sum(1)
    assert torch.allclose(density.noised_log_density(places, alpha, sigma).exp(), expected, rtol=1e-4)
    assert torch.equal(density.noised_log_density(places, 1.0, 0.0), density.log_density(places))


def test_a_tilted_normal_density_has_the_moments_asked_for():
    data = Gaussian2D(mean=(1.0, -2.0), std=(0.5, 2.0), correlation=-0.7)
    x = data.draw(0, torch.arange(50_000))
    assert torch.allclose(x.mean(0), torch.tensor([1.0, -2.0]).double(), atol=0.03)
    assert torch.allclose(x.T.cov(), torch.tensor([[0.25, -0.7], [-0.7, 4.0]]).double(), atol=0.08)
    with pytest.raises(ValueError, match=r"correlation must be in \(-1, 1\), got 1"):
        Gaussian2D(correlation=1.0)


def test_the_moons_are_those_of_scikit_learn():
    from sklearn.datasets import make_moons

    moons = TwoMoons(std=0.1)
    theirs = torch.from_numpy(make_moons(10_000, noise=0.1, random_state=0)[0])
    ours = moons.draw(0, torch.arange(10_000))
    means = [float(moons.log_density(points).mean()) for points in (ours, theirs)]
    assert means[0] == pytest.approx(means[1], abs=0.04)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.5])
def test_the_sum_along_the_moons_has_converged(std, monkeypatch):
    x = TwoMoons(std).draw(0, torch.arange(500))
    coarse = TwoMoons(std).log_density(x)
    monkeypatch.setattr(TwoMoons, "_NODES", 1000)
    assert float((TwoMoons(std).log_density(x) - coarse).abs().max()) < 1e-10


def test_fresh_points_come_in_every_epoch_and_kept_ones_return():
    fresh, kept = EightGaussians(num_train=64), EightGaussians(num_train=64, fresh=False)
    for data, equal in ((fresh, False), (kept, True)):
        loader = data.train_dataloader()
        first, second = (torch.cat([b["point"][b["index"].argsort()] for b in loader]) for _ in range(2))
        assert torch.equal(first, second) == equal
        assert np.array_equal(first.numpy(), data.split("train").x)
    assert fresh.spec.shape == (2,) and fresh.spec.levels == 0
    assert fresh.fingerprint("test") == EightGaussians(seed=5).fingerprint("test")
    with pytest.raises(ValueError, match=r"--data\.fresh false"):
        EightGaussians(fraction=0.5)


# --- procedural shapes --------------------------------------------------------------------------------------


def test_every_combination_of_factors_comes_equally_often():
    chosen = factors(np.arange(2 * 1296))
    _, counts = np.unique(chosen, axis=0, return_counts=True)
    assert len(counts) == 1296 and (counts == 2).all()
    assert chosen.max(0).tolist() == [size - 1 for size in FACTORS.values()]


def test_a_picture_shows_what_its_factors_and_caption_say():
    data = Shapes(image_size=48, num_train=1296, num_test=216)
    train = data.split("train")
    images, chosen = train.x.astype(float), train["factors"]
    colours = np.array(list(COLOURS.values()), float)
    assert np.allclose(images.max((2, 3)), colours[chosen[:, 0]])
    mass = images.sum(1)
    across = (mass.sum(1) * (np.arange(48) + 0.5)).sum(1) / mass.sum((1, 2)) / 16
    down = (mass.sum(2) * (np.arange(48) + 0.5)).sum(1) / mass.sum((1, 2)) / 16
    assert (np.floor(across) == chosen[:, 2] % 3).all() and (np.floor(down) == chosen[:, 2] // 3).all()
    area = (images / colours[chosen[:, 0]].max(1)[:, None, None, None]).max(1).sum((1, 2))
    for shape in range(6):
        mean = [area[(chosen[:, 1] == shape) & (chosen[:, 3] == size)].mean() for size in range(3)]
        assert mean[0] < mean[1] < mean[2]
    assert np.array_equal(train["label"], chosen[:, 1])
    row = int(np.flatnonzero((chosen == [0, 0, 0, 0]).all(1))[0])
    assert caption(chosen[row].tolist()) == "a small red circle in the top left"


def test_areas_of_shapes_are_those_of_geometry():
    radius = 0.15 * 256
    expected = [np.pi, 4 * 0.85**2, 0.75 * 3**0.5, 2.0, 4 * (1 / 3 + 1 / 3 - 1 / 9), np.pi * (1 - 0.25)]
    for shape, share in enumerate(expected):
        image = render(np.array([[7, shape, 4, 2]]), np.array([0]), 256)
        assert image[0, 0].sum() / 255 == pytest.approx(share * radius**2, rel=0.01)


def test_pictures_are_functions_of_their_index_and_splits_of_the_seed():
    chosen = factors(np.arange(40))
    whole = render(chosen, np.arange(40), 16)
    assert np.array_equal(whole[[9, 2]], render(chosen[[9, 2]], np.array([9, 2]), 16))
    first, second = Shapes(16, 60, 40), Shapes(16, 60, 40, seed=1)
    assert first.fingerprint("test") != second.fingerprint("test")
    pictures = [image.tobytes() for name in ("train", "val", "test") for image in first.split(name).x]
    assert len(set(pictures)) == 100
    batch = next(iter(first.loader("test")))
    assert batch["label"].tolist() == first.split("test")["label"].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_part_of_a_split_is_spread_over_its_classes(world_size):
    """A folder's images come class after class: the first ones would be of one class."""
    data = RandomImages(shape=[1, 4, 4], num_train=100, num_test=10)
    found = [
        torch.cat([batch["index"] for batch in data.loader("train", rank, world_size, 7, at_most=20)])
        for rank in range(world_size)
    ]
    assert torch.cat(found).sort().values.tolist() == list(range(0, 100, 5))
    whole = torch.cat([batch["index"] for batch in data.loader("train", at_most=1000)])
    assert whole.tolist() == list(range(100))


class FirstBatch(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.index = batch["index"]


def test_a_training_seed_changes_what_a_training_draws_and_no_split():
    from genlab.cli.training import main

    seen = {}
    for seed in (0, 0, 1):
        probe = FirstBatch()
        trial = ("--trainer.fast_dev_run", "1", "--data.flip", "true", "--seed_everything", str(seed))
        main(["fit", "--config", "experiments/gan_digits.yaml", *trial], callbacks=[probe])
        if seed in seen:
            assert torch.equal(seen[seed], probe.index)
        seen[seed] = probe.index
    assert not torch.equal(seen[0], seen[1])


EPOCHS = {
    "order, mirrored and moved": lambda: Digits(flip=True, shift=1),
    "new pairs": lambda: TranslatedShapes(num_train=64, num_test=8, paired=False),
    "new points": lambda: TwoMoons(num_train=64, num_test=8, fresh=True),
}


@pytest.mark.parametrize("kind", EPOCHS)
def test_what_an_epoch_draws_is_of_the_training_seed_and_what_is_held_is_not(kind):
    one, other, plain = (EPOCHS[kind]() for _ in range(3))
    one.training_seed, other.training_seed = 1, 2
    assert one.describe() == other.describe() == plain.describe()
    assert plain.drawing_seed == plain.seed
    drawn = [each.training_items(3).__getitems__(torch.arange(32)) for each in (one, other, plain)]
    orders = [each.order(64, 8).numbers() for each in (one, other, plain)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert any(not torch.equal(drawn[a][name], drawn[b][name]) for name in drawn[a])
        assert not torch.equal(orders[a], orders[b])
