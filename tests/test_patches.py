"""Patches of large images: where they lie, which images they are of, what belongs to each."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.data.degraded import Grey, Masked, Small
from genlab.data.patches import Patches
from genlab.data.sources import BadSource

SIZES = [(20, 28), (33, 21), (24, 24), (16, 40), (30, 18), (27, 26), (19, 17), (22, 35)]
"""Height and width of the pictures."""


def pixels(number):
    """A picture whose first channel is its number everywhere."""
    height, width = SIZES[number]
    made = np.random.default_rng(number).integers(0, 256, (height, width, 3)).astype(np.uint8)
    made[..., 0] = number
    return made


@pytest.fixture
def folder(tmp_path):
    for number in range(len(SIZES)):
        Image.fromarray(pixels(number)).save(tmp_path / f"{number}.png")
    return str(tmp_path)


def patches(folder, degradation=None, **options):
    options = {"patch_size": 16, "test_fraction": 0.25, "val_fraction": 0.34, "batch_size": 2, **options}
    return Patches(degradation or Small(2), folder, **options)


def images_of(packed):
    return {int(patch[0, 0, 0]) for patch in np.asarray(packed["image"])}


def test_no_patch_of_a_held_out_image_is_learned_from(folder):
    data = patches(folder)
    found = [images_of(data.split(name)) for name in ("train", "val", "test")]
    assert set.union(*found) == set(range(8)) and sum(map(len, found)) == 8
    for epoch in range(20):
        assert images_of(data.training_items(epoch).packed) <= found[0]
    assert images_of(patches(folder, seed=1).split("test")) != found[2]
    assert data.preprocessing()["images"] == {"test": 2, "train": 4, "val": 2}


def test_patches_side_by_side_are_each_part_of_an_image_once(folder):
    data = patches(folder, patch_size=8)
    for name in ("val", "test"):
        for number in images_of(data.split(name)):
            whole = pixels(number).transpose(2, 0, 1)
            expected = {
                whole[:, top : top + 8, left : left + 8].tobytes()
                for top in range(0, whole.shape[1] // 2 * 2 - 7, 8)
                for left in range(0, whole.shape[2] // 2 * 2 - 7, 8)
            }
            mine = [patch for patch in np.asarray(data.split(name)["image"]) if patch[0, 0, 0] == number]
            assert {patch.tobytes() for patch in mine} == expected and len(mine) == len(expected)


def test_the_source_of_a_patch_is_cut_out_of_the_degraded_whole_image(folder):
    data = patches(folder)
    images, sources = data.halves["train"]
    for squares in (data.draw(50, 3), data.side_by_side("train")):
        cut = data._cut("train", squares)
        for (number, top, left, symmetry), image, source in zip(
            squares.tolist(), cut["image"][:], cut["source"][:], strict=True
        ):
            wanted = (images[number][:, 2 * top :, 2 * left :], sources[number][:, top:, left:])
            for found, whole, side in zip((image, source), wanted, (16, 8), strict=True):
                back = found[..., ::-1] if symmetry >= 4 else found
                back = np.rot90(back, -symmetry, axes=(1, 2))
                assert np.array_equal(back, whole[:, :side, :side])
    for image, source in zip(images, sources, strict=True):
        x = torch.from_numpy(image)[None]
        assert np.array_equal(source, Small(2)(x, torch.arange(1), 256)[0].numpy())


def test_an_epoch_cuts_every_place_in_every_symmetry_equally_often(folder):
    data = patches(folder, degradation=Grey(), patch_size=19)
    squares = data.draw(100_000, 0)
    places = sum((height - 18) * (width - 18) for height, width in data._sizes("train").tolist())
    _, counts = np.unique(squares @ [64**3, 64**2, 64, 1], return_counts=True)
    expected = len(squares) / (8 * places)
    assert len(counts) == 8 * places
    assert ((counts - expected) ** 2 / expected).sum() < len(counts) + 5 * np.sqrt(2 * len(counts))


def test_epochs_differ_and_repeat_by_seed_and_an_image_and_its_source_are_turned_alike(folder):
    data = patches(folder, degradation=Grey())
    first, again = (np.asarray(data.training_items(4).packed["image"]) for _ in range(2))
    assert np.array_equal(first, again)
    others = (data.training_items(5), patches(folder, degradation=Grey(), seed=1).training_items(4))
    assert all(not np.array_equal(first, np.asarray(items.packed["image"])) for items in others)
    packed = data.training_items(0).packed
    grey = Grey()(torch.from_numpy(np.asarray(packed["image"])), torch.arange(len(packed)), 256)
    assert np.array_equal(np.asarray(packed["source"]), grey.numpy())
    fixed = patches(folder, fresh=False)
    assert np.array_equal(*(np.asarray(fixed.training_items(n).packed["image"]) for n in (0, 1)))


def test_batches_are_pairs_of_floats(folder):
    data = patches(folder, degradation=Small(4), flip=True)
    batch = data.to_device_batch(next(iter(data.train_dataloader())), "cpu")
    assert batch["image"].shape == (2, *data.spec.shape) == (2, 3, 16, 16)
    assert batch["source"].shape == (2, *data.spec.source.shape) == (2, 3, 4, 4)
    assert data.spec.unit == "pairs" and batch["source"].min() >= -1.0
    taken = data.split("train")["image"].take(np.array([1]))
    assert np.array_equal(taken[0], data.split("train")["image"][1]) and taken.shape == (1, 3, 16, 16)
    assert data.fingerprint("test") == patches(folder, degradation=Small(4)).fingerprint("test")
    assert data.fingerprint("test") != patches(folder).fingerprint("test")


def test_equal_images_stay_together_and_small_ones_are_left_out(folder, tmp_path):
    for number in range(8, 14):
        Image.fromarray(pixels(2)).save(tmp_path / f"{number}.png")
    Image.fromarray(pixels(0)[:9, :9]).save(tmp_path / "small.png")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = patches(folder)
        found = [images_of(data.split(name)) for name in ("train", "val", "test")]
    assert sum(2 in images for images in found) == 1
    assert any("1 of" in str(each.message) and "patch_size 16" in str(each.message) for each in said)
    with pytest.raises(BadSource, match=r"no image of 38 pixels or more .*smaller --data.patch_size"):
        patches(folder, patch_size=38).split("train")


def test_folders_of_splits_are_the_splits(tmp_path):
    for number in range(8):
        part = tmp_path / ("train" if number < 5 else "test")
        part.mkdir(exist_ok=True)
        Image.fromarray(pixels(number)).save(part / f"{number}.png")
    data = patches(str(tmp_path))
    assert images_of(data.split("test")) == {5, 6, 7}
    assert images_of(data.split("val")) | images_of(data.split("train")) == set(range(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 15}, "factor must divide the sides 15 and 15"),
        ({"fraction": 0.5}, "--data.fresh false"),
        ({"degradation": Grey(), "channels": 1}, "Grey needs images of 3 channels"),
        ({"test_fraction": 0.0}, "test_fraction"),
    ],
)
def test_impossible_patches_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        patches(folder, **options)


def test_a_masked_image_has_one_hole_of_its_own(folder):
    data = patches(folder, degradation=Masked(0.25))
    images, sources = data.halves["train"]
    for image, source in zip(images, sources, strict=True):
        changed = (image != source).any(axis=0)
        rows, columns = (np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0))
        side = round(0.25 * min(image.shape[1:]))
        assert max(np.ptp(rows), np.ptp(columns)) < side and changed.sum() >= 0.9 * side**2
