"""Images made anywhere: the same ones have the same score, whatever they come in."""

import io
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.cli.score import image_set
from genlab.data.decode import BadImage
from genlab.errors import DataError
from genlab.evaluation.image_scores import METRICS, metrics_named, score_images
from genlab.evaluation.image_sets import ArrayFile, Arrays, as_levels
from genlab.metrics.extractors import load_extractor
from genlab.metrics.features import Extractor
from genlab.shapes import bytes_to_levels, levels_to_bytes, to_float, to_levels

NUM = 23


def pixels(channels=3, seed=0, num=NUM, size=8):
    """Random images, (num, height, width, channels)."""
    return np.random.default_rng(seed).integers(0, 256, (num, size, size, channels), np.uint8)


def png(image):
    content = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(content, "png")
    return content.getvalue()


def named(images):
    return {f"{number:06d}.png": png(image) for number, image in enumerate(images)}


def as_folder(images, folder):
    place = folder / "pictures"
    place.mkdir()
    for name, content in named(images).items():
        place.joinpath(name).write_bytes(content)
    return place


def as_zip(images, folder):
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        for name, content in named(images).items():
            archive.writestr(f"inside/{name}", content)
    return folder / "pictures.zip"


def as_tar(images, folder, ending=".tar", order=-1):
    with tarfile.open(folder / f"pictures{ending}", "w:gz" if ending.endswith("gz") else "w") as archive:
        for name, content in list(named(images).items())[::order]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return folder / f"pictures{ending}"


def as_npz(images, folder, save=np.savez):
    save(folder / "samples.npz", images, np.arange(len(images)))
    return folder / "samples.npz"


def as_npy(images, folder):
    np.save(folder / "samples.npy", images)
    return folder / "samples.npy"


FORMS = {
    "folder": as_folder,
    "zip": as_zip,
    "tar": as_tar,
    "compressed tar": lambda images, folder: as_tar(images, folder, ".tar.gz", 1),
    "npz": as_npz,
    "compressed npz": lambda images, folder: as_npz(images, folder, np.savez_compressed),
    "npy": as_npy,
    "array": lambda images, folder: images,
    "channels first": lambda images, folder: torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
    "floats": lambda images, folder: to_float(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())),
}


def all_of(images, batch_size=7, **options):
    """All images of a set by number."""
    parts = list(image_set(images).batches(batch_size, **options))
    index, x = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    return x[index.argsort()], index.sort().values


@pytest.fixture(scope="module")
def ruler(tiny_extractor):
    return lambda channels=3: load_extractor(tiny_extractor(channels))


@pytest.fixture
def score(ruler):
    """Scores images against others by all metrics."""

    def scored(images, reference, channels=3, names=None, training=None, batch_size=7):
        extractor = ruler(channels)
        sets = image_set(images), image_set(reference)
        learned = None if training is None else image_set(training)
        return score_images(*sets, extractor, metrics_named(names, extractor), learned, batch_size)

    return scored


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_the_same_images_are_read_from_whatever_they_come_in(form, channels, tmp_path):
    images = pixels(channels)
    found, index = all_of(FORMS[form](images, tmp_path), channels=channels)
    assert torch.equal(index, torch.arange(NUM))
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy().transpose(0, 2, 3, 1), images)


@pytest.mark.parametrize("form", ["folder", "tar", "compressed npz", "floats"])
def test_the_same_images_have_the_same_scores_and_the_same_digest(form, tmp_path, score):
    images, real = pixels(seed=1), pixels(seed=2, num=30)
    expected = score(images, real)
    found = score(FORMS[form](images, tmp_path), real)
    assert found["values"] == pytest.approx(expected["values"], rel=1e-6)
    if form != "tar":  # whose order is the archive's
        assert found["protocol"]["images_digest"] == expected["protocol"]["images_digest"]
    other = score(pixels(seed=3), real)
    assert other["protocol"]["images_digest"] != expected["protocol"]["images_digest"]


def test_scores_do_not_depend_on_the_batch_size_or_on_the_order(tmp_path, score):
    images, real = pixels(seed=1), pixels(seed=2, num=30)
    expected = score(images, real, batch_size=NUM)["values"]
    for batch_size in (1, 5):
        assert score(images, real, batch_size=batch_size)["values"] == pytest.approx(expected, rel=1e-6)


def test_images_against_themselves_are_at_distance_zero_and_all_are_copies(score):
    images, others = pixels(seed=1), pixels(seed=2, num=40)
    found = score(images, images, training=images)
    values = found["values"]
    assert values[f"fid@{NUM}"] == pytest.approx(0.0, abs=1e-6)
    assert values[f"precision@{NUM}"] == values[f"recall@{NUM}"] == 1.0
    assert score(images, others, training=images)["copies"]["share"] == 1.0
    assert score(images, others, training=pixels(seed=3))["copies"]["share"] < 0.5
    assert "copies" not in score(images, others)


def test_pictures_of_unequal_sizes_are_each_measured_as_they_are(tmp_path, ruler):
    folder, extractor = tmp_path / "sizes", ruler()
    folder.mkdir()
    shapes = [(8, 8), (5, 9), (5, 9), (16, 4), (8, 8)]
    images = [np.random.default_rng(n).integers(0, 256, (*s, 3), np.uint8) for n, s in enumerate(shapes)]
    for name, content in named(images).items():
        folder.joinpath(name).write_bytes(content)
    alone = [extractor(torch.from_numpy(x.transpose(2, 0, 1).copy())[None]).pool for x in images]
    found = image_set(folder).statistics(extractor, 4, torch.device("cpu"))
    torch.testing.assert_close(found.features, torch.cat(alone), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_that_were_stored_as_bytes_come_back_exactly(levels):
    k = torch.arange(levels, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    stored = levels_to_bytes(k, levels).expand(-1, 3, -1, -1)
    assert torch.equal(as_levels(stored, levels, channels=1), k)
    assert torch.equal(as_levels(to_float(k, levels), levels, channels=1), k)


def test_a_ruler_of_grey_images_sees_the_luminance_of_colours():
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert as_levels(red, 256, channels=1).item() == round(0.299 * 255)
    assert as_levels(to_float(red), 256, channels=1).item() == round(0.299 * 255)
    assert as_levels(red, 256, channels=3).shape[1] == 3


def test_real_images_are_measured_once_and_then_known(tmp_path, ruler, monkeypatch):
    place, extractor, cpu = as_folder(pixels(), tmp_path), ruler(), torch.device("cpu")
    first = image_set(place).statistics(extractor, 5, cpu)
    with monkeypatch.context() as patch:
        patch.setattr(Extractor, "forward", lambda *_: pytest.fail("measured again"))
        again = image_set(place).statistics(extractor, 9, cpu)
    assert torch.equal(first.features, again.features) and first.num == again.num == NUM
    (place / "000000.png").write_bytes(png(pixels(seed=9)[0]))
    changed = image_set(place).statistics(extractor, 5, cpu)
    assert not torch.equal(first.features, changed.features)


def test_the_grid_beside_samples_is_none_of_them(tmp_path):
    place = as_folder(pixels(), tmp_path)
    place.joinpath("grid.png").write_bytes(png(pixels(seed=5, size=64)[0]))
    assert len(image_set(place)) == NUM
    place.joinpath("000000.png").unlink()  # no longer what `genlab sample` writes
    assert len(image_set(place)) == NUM


def test_a_large_npz_is_read_piece_by_piece(tmp_path):
    images = np.zeros((2_000, 64, 64, 3), np.uint8)  # 24 MB
    np.savez_compressed(tmp_path / "large.npz", images)
    del images
    tracemalloc.start()
    num = sum(len(index) for index, _ in image_set(tmp_path / "large.npz").batches(20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num == 2_000 and peak < 4e6


def test_only_the_named_scores_are_computed(score):
    assert {
        name.split("@")[0] for name in score(pixels(seed=1), pixels(seed=2), names=["kid"])["values"]
    } <= {
        "kid",
        "kid_std",
    }
    names = {name.split("@")[0] for name in score(pixels(seed=1), pixels(seed=2))["values"]}
    assert names >= METRICS.keys()


def cut(path):
    path.write_bytes(path.read_bytes()[:-2_000])
    return path


def array(folder, x, **options):
    np.save(folder / "x.npy", x, **options)
    return folder / "x.npy"


def held(folder, **arrays):
    np.savez(folder / "x.npz", **arrays)
    return folder / "x.npz"


def written(folder, name, content):
    (folder / name).write_bytes(content)
    return folder / name


BAD = {
    "nothing there": (lambda folder: folder / "nowhere", "does not exist"),
    "a folder without images": (lambda folder: folder, "0 images"),
    "a damaged picture": (lambda folder: written(folder, "a.png", b"no picture"), "a.png"),
    "a damaged npz": (lambda folder: cut(as_npz(pixels(), folder)), "damaged|neither"),
    "a cut npy": (lambda folder: cut(as_npy(pixels(), folder)), "ends too early"),
    "an empty npy": (lambda folder: written(folder, "x.npy", b""), "ends too early"),
    "text called npz": (
        lambda folder: written(folder, "x.npz", b"hello, world"),
        "neither an .npz nor an .npy",
    ),
    "statistics": (
        lambda folder: held(folder, mu=np.zeros(3), sigma=np.eye(3)),
        "holds mu, sigma and no arr_0",
    ),
    "floats in a file": (lambda folder: array(folder, np.zeros((9, 4, 4, 3), np.float32)), "holds <f4"),
    "channels first in a file": (
        lambda folder: array(folder, np.zeros((9, 3, 4, 4), np.uint8)),
        "are uint8 of",
    ),
    "a pickle": (lambda folder: array(folder, np.array([{}] * 4), allow_pickle=True), r"holds \|O"),
    "one image": (lambda folder: as_npy(pixels(num=1), folder), "has 1 images"),
    "no channels": (lambda folder: np.zeros((9, 4, 4, 2), np.uint8), "1 or 3 channels"),
    "whole numbers": (lambda folder: np.zeros((9, 4, 4, 3), np.int64), "are uint8, or floats"),
    "floats beyond": (lambda folder: 255.0 * torch.ones(9, 3, 4, 4), r"lie in \[255, 255\]"),
    "not a number": (lambda folder: torch.full((9, 3, 4, 4), torch.nan), r"lie in \[nan"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_scored_is_named(what, tmp_path, score):
    make, message = BAD[what]
    with pytest.raises((DataError, BadImage), match=message) as refused:
        score(make(tmp_path), pixels())
    assert "\n" not in str(refused.value)


def test_an_unknown_score_is_answered_by_the_nearest_one(ruler):
    with pytest.raises(ValueError, match=r"no score 'fd'\. Did you mean 'fid'"):
        metrics_named(["fd"], ruler())


def test_an_array_of_three_by_three_is_read_as_its_kind_is_used():
    """Tensors have their channels first and arrays last, where both would do."""
    x = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3)
    assert torch.equal(Arrays(torch.from_numpy(x)).x, torch.from_numpy(x))
    assert torch.equal(Arrays(x).x, torch.from_numpy(x.transpose(0, 3, 1, 2)))


def test_floats_are_rounded_to_the_levels_of_what_they_are_compared_with(tmp_path):
    """As the samples of a model are; by way of bytes some would end on another level."""
    x = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ((_, found),) = Arrays(x).batches(50, num_levels=17, channels=1)
    assert torch.equal(found, to_levels(x, 17))
    assert not torch.equal(found, bytes_to_levels(to_levels(x), 17))


def test_an_array_file_knows_its_shape_without_reading_its_images(tmp_path):
    file = ArrayFile(as_npz(pixels(), tmp_path))
    assert len(file) == NUM and file.shape == (NUM, 8, 8, 3)
