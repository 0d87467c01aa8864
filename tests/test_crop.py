"""Which square of an image is kept: the middle, one drawn anew in each epoch, or all of it, squeezed."""

import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from genlab.data.captions import CaptionedImages
from genlab.data.chunk_writer import write
from genlab.data.decode import Policy
from genlab.data.degraded import Degraded, Grey
from genlab.data.folder import ImageFolder
from genlab.data.packed import WindowRows
from genlab.data.sources import BadSource, open_source
from genlab.data.torchvision_sets import CelebA

SIZE = 8
FORMS = [(8, 12), (12, 8), (8, 24), (8, 8)]  # height and width: none needs to be resized


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))


def arrays(num=24, forms=FORMS):
    generator = np.random.default_rng(0)
    return {
        f"{n:03}.png": generator.integers(0, 256, forms[n % len(forms)], dtype=np.uint8) for n in range(num)
    }


def saved(folder, images):
    folder.mkdir()
    for name, array in images.items():
        Image.fromarray(array).save(folder / name)
    return folder


def as_zip(folder):
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return folder.with_suffix(".zip")


def as_tar(folder):
    with tarfile.open(folder.with_suffix(".tar"), "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, file.name)
    return folder.with_suffix(".tar")


def data(path, kind=ImageFolder, **options):
    options = {"image_size": SIZE, "channels": 1, "num_test": 4, "val_fraction": 0.2, **options}
    return kind(str(path), batch_size=4, **options)


def squares(items):
    return items.__getitems__(_all(items))["image"].numpy()[:, 0]


def _all(items):
    import torch

    return torch.arange(len(items))


def windows(array):
    """Every square of an image along its longer side, of at most the middle twice as long as wide."""
    height, width = array.shape
    array = array if width >= height else array.T
    most = 2 * array.shape[0]
    left = max(0, (array.shape[1] - most) // 2)
    strip = array[:, left : left + most]
    found = [strip[:, start : start + SIZE] for start in range(strip.shape[1] - SIZE + 1)]
    return found if width >= height else [window.T for window in found]


def middle(array):
    found = windows(array)
    return found[(len(found) - 1) // 2]


def places(images, square):
    return [
        (name, start)
        for name, array in images.items()
        for start, window in enumerate(windows(array))
        if np.array_equal(window, square)
    ]


@pytest.mark.parametrize("packed", [lambda folder: folder, as_zip, as_tar])
def test_a_square_is_drawn_anew_in_each_epoch_of_training_and_the_middle_one_is_scored(packed, tmp_path):
    images = arrays()
    loaded = data(packed(saved(tmp_path / "some", images)), crop="random")
    middles = [middle(array) for array in images.values()]
    for split in ("train", "val", "test"):
        for square in squares(loaded.items(split)):
            assert any(np.array_equal(square, each) for each in middles)
    assert loaded.split("train").x.shape == (len(loaded.split("train")), 1, SIZE, SIZE)
    seen = {}
    for epoch in range(40):
        items = loaded.training_items(epoch)
        for square in squares(items):
            ((name, start),) = places(images, square)
            seen.setdefault(name, []).append(start)
    first = squares(loaded.training_items(3))
    assert np.array_equal(first, squares(loaded.training_items(3)))
    for name, starts in seen.items():  # 5, 5, 9 and 1 squares, each as likely as the others
        assert len({*starts}) >= min(len(windows(images[name])), 5) - 1
        assert {*starts} <= set(range(len(windows(images[name]))))
    assert {0, 8} <= {start for starts in seen.values() for start in starts}


def test_another_seed_draws_others_and_a_batch_reads_what_its_items_are(tmp_path):
    folder = saved(tmp_path / "some", arrays(forms=[(8, 24)]))
    one, other = (data(folder, crop="random", seed=seed, fraction=1.0) for seed in (0, 1))
    one._splits = other._splits = one.cut(one.load())
    assert not np.array_equal(squares(one.training_items(0)), squares(other.training_items(0)))
    whole = squares(one.training_items(2))
    part = one.training_items(2).__getitems__(_all(whole)[[5, 1]])["image"].numpy()[:, 0]
    assert np.array_equal(part, whole[[5, 1]])


def test_the_shorter_side_is_resized_and_the_longer_one_with_it(tmp_path):
    array = np.random.default_rng(1).integers(0, 256, (20, 31), dtype=np.uint8)
    folder = saved(tmp_path / "some", {f"{n}.png": np.roll(array, n) for n in range(12)})
    rows = data(folder, crop="random").split("train").x
    assert isinstance(rows, WindowRows) and {*rows.lengths.tolist()} == {12}  # 31 * 8 / 20 = 12.4
    expected = {
        np.asarray(Image.fromarray(np.roll(array, n)).resize((12, 8), Image.Resampling.BICUBIC)).tobytes()
        for n in range(12)
    }
    assert {np.ascontiguousarray(strip[0, :, :12]).tobytes() for strip in rows.strips} <= expected


@pytest.mark.parametrize("packed", [lambda folder: folder, as_zip, as_tar])
def test_none_squeezes_the_whole_image_and_centre_cuts_the_middle(packed, tmp_path):
    images = arrays()
    place = packed(saved(tmp_path / "some", images))
    squeezed = {
        np.asarray(Image.fromarray(array).resize((SIZE, SIZE), Image.Resampling.BICUBIC)).tobytes()
        for array in images.values()
    }
    cut = {middle(array).tobytes() for array in images.values()}
    for crop, expected in (("none", squeezed), ("centre", cut)):
        for split in ("train", "val", "test"):
            found = squares(data(place, crop=crop).items(split))
            assert {np.ascontiguousarray(square).tobytes() for square in found} <= expected
            assert squares(data(place, crop=crop).training_items(1)).shape[1:] == (SIZE, SIZE)


def test_what_was_cut_is_part_of_the_record_and_of_the_fingerprint(tmp_path):
    images = arrays(forms=[(8, 12)])
    folder = saved(tmp_path / "some", images)
    found = {crop: data(folder, crop=crop).describe() for crop in ("centre", "random", "none")}
    assert len({each["fingerprints"]["test"] for each in found.values()}) == 3
    told = {crop: each["preprocessing"].get("crop") for crop, each in found.items()}
    assert told == {"centre": None, "random": "random", "none": "none"}  # as before there was a choice


def test_a_pixel_beyond_the_middle_changes_what_squares_are_drawn_of():
    strips = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 16), dtype=np.uint8)
    from genlab.data.packed import Packed

    one = Packed({"image": WindowRows(strips, np.array([12, 12, -12], np.int32))})
    edge, turned = strips.copy(), np.array([12, 12, 12], np.int32)
    edge[0, 0, 0, 11] ^= 1
    others = [WindowRows(edge, np.array([12, 12, -12], np.int32)), WindowRows(strips, turned)]
    assert len({part.fingerprint(256) for part in (one, *(Packed({"image": x}) for x in others))}) == 3


def test_faces_and_captioned_images_are_cut_by_the_same_words(tmp_path):
    images = arrays(forms=[(8, 12)])
    folder = saved(tmp_path / "faces", images)
    faces = CelebA(str(folder), SIZE, crop="random", num_test=4, val_fraction=0.2, batch_size=4)
    assert not np.array_equal(squares(faces.training_items(0)), squares(faces.training_items(1)))
    (folder / "captions.tsv").write_text("".join(f"{name}\ta face\n" for name in images))
    options = {"num_test": 4, "val_fraction": 0.2, "batch_size": 4, "tokenizer": "bytes"}
    told = CaptionedImages(str(folder), SIZE, crop="random", channels=1, **options)
    assert not np.array_equal(squares(told.training_items(0)), squares(told.training_items(1)))


def test_packed_images_have_the_square_that_they_were_packed_with(tmp_path):
    pytest.importorskip("litdata")
    folder = saved(tmp_path / "some", arrays())
    write(open_source(folder), Policy(SIZE, 1, crop="none"), tmp_path / "pack")
    for stream in (False, True):
        whole = data(tmp_path / "pack", crop="none", stream=stream)
        assert np.array_equal(squares(whole.items("test")), squares(data(folder, crop="none").items("test")))
        for crop in ("centre", "random"):
            with pytest.raises(BadSource, match=f"packed with crop none.*--data.crop none.*for {crop}"):
                data(tmp_path / "pack", crop=crop, stream=stream).split("train")


def test_what_cannot_be_cut_so_is_refused_in_words(tmp_path, genlab_command):
    square = saved(tmp_path / "square", arrays(forms=[(8, 8)]))
    with pytest.raises(BadSource, match=r"are square, so that there is nothing to draw by --data.crop rand"):
        data(square, crop="random").split("train")
    with pytest.raises(ValueError, match="crop must be centre, random, none, got 'middle'"):
        data(square, crop="middle")
    wide = data(saved(tmp_path / "wide", arrays(forms=[(8, 12)])), crop="random", channels=3)
    with pytest.raises(ValueError, match=r"data.crop random would move an image and not what is left"):
        Degraded(wide, Grey())
    words = ("--data", "ImageFolder", "--data.path", square, "--data.crop", "middle")
    code, _, error = genlab_command("fit", "--config", "dcgan_celeba", *words)
    assert code == 2 and "crop must be centre, random or none, got middle" in error
    code, _, error = genlab_command("data", "pack", square, "-o", tmp_path / "pack", "--crop", "random")
    assert code == 2 and "--crop" in error
