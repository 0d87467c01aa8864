"""A contact sheet shows every split and class of what is read, and names what cannot be."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from genlab.data.digits import Digits
from genlab.data.procedural import Shapes
from genlab.data.sources import open_source
from genlab.data.toy import TwoMoons
from genlab.errors import DataError
from genlab.evaluation.contact_sheet import chosen, of_data, of_source


@pytest.fixture
def pets(tmp_path):
    """A hundred cats, a few dogs and a test split, all wider than high; cats are red, dogs green."""
    for split, name, num in (("train", "cat", 100), ("train", "dog", 3), ("test", "cat", 2)):
        folder = tmp_path / "pets" / split / name
        folder.mkdir(parents=True)
        colour = (255, 0, 0) if name == "cat" else (0, 255, 0)
        for number in range(num):
            Image.new("RGB", (40, 20), colour).save(folder / f"{number:03d}.png")
    return tmp_path / "pets"


@pytest.mark.parametrize("num", [1, 5, 12, 1000])
def test_every_kind_has_its_turn_before_one_has_another(num):
    kinds = ["a"] * 100 + ["b"] * 3 + ["c"] * 2
    rows = chosen(kinds, num)
    counts = Counter(kinds[row] for row in rows)
    assert len(rows) == len({*rows}) == min(num, 105)
    assert counts == {1: {"a": 1}, 5: {"a": 2, "b": 2, "c": 1}, 12: {"a": 7, "b": 3, "c": 2}}.get(
        num, {"a": 100, "b": 3, "c": 2}
    )
    assert num != 5 or rows[:2] == [0, 50]


def test_files_are_shown_as_they_are_with_class_size_and_split(pets):
    sheet = of_source(open_source(pets), 6)
    captions = Counter(caption for _, caption in sheet.items)
    assert captions == {"cat, 40x20, test": 2, "cat, 40x20, train": 2, "dog, 40x20, train": 2}
    for image, caption in sheet.items:
        assert image.shape == (20, 40, 3)
        assert (image == ((255, 0, 0) if "cat" in caption else (0, 255, 0))).all()
    assert sheet.lines() == ["splits: test 2, train 103", "classes: cat 102, dog 3"]


def test_a_picture_keeps_its_form_in_its_square(pets):
    picture = of_source(open_source(pets), 1).picture()
    red = (picture == (255, 0, 0)).all(axis=-1)
    assert red.any(axis=0).sum() == 128
    assert red.any(axis=1).sum() == 64


def test_what_a_model_learns_from_is_shown_split_by_split():
    data = Digits()
    sheet = of_data(data, 30)
    assert {caption.split(", ")[-1] for _, caption in sheet.items} == {"train", "val", "test"}
    assert {caption.split(", ")[0] for _, caption in sheet.items} == {str(digit) for digit in range(10)}
    assert sum(sheet.counts.values()) == sum(len(data.split(name)) for name in ("train", "val", "test"))
    label = int(sheet.items[0][1].split(",")[0])
    first = data.split("train")["image"][np.asarray(data.split("train")["label"]) == label][0, 0]
    assert (sheet.items[0][0][..., 0] == (first * 255.0 / (data.spec.levels - 1)).round()).all()


def test_captions_are_told_and_points_are_refused():
    sheet = of_data(Shapes(16, captions=True, num_train=20, num_test=4), 4)
    assert all(" on " in caption or " a" in caption for _, caption in sheet.items)
    with pytest.raises(DataError, match="holds no images"):
        of_data(TwoMoons(), 4)


def test_the_command_draws_a_folder_and_an_experiment(pets, tmp_path, genlab_command):
    target = tmp_path / "sheet.png"
    code, out, error = genlab_command("data", "show", pets, "-o", target, "-n", 6)
    assert code == 0, error
    assert "6 of 105 images" in out
    assert Image.open(target).size[0] > 256
    code, out, error = genlab_command("data", "show", "--config", "dcgan_digits", "-o", target, "-n", 10)
    assert code == 0, error
    assert "10 of 1,797 images" in out


def test_an_image_that_cannot_be_read_is_named(pets, tmp_path, genlab_command):
    (pets / "train" / "dog" / "000.png").write_bytes(b"no image")
    code, _, error = genlab_command("data", "show", pets, "-o", tmp_path / "sheet.png", "-n", 105)
    assert code == 3
    assert "train/dog/000.png" in error
    assert (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "what is to be shown"),
        (("nowhere",), 3, "does not exist"),
        (("--config", "dcgan_digit"), 2, "dcgan_digits"),
    ],
)
def test_nothing_to_show_is_one_line(options, code, message, genlab_command):
    found, _, error = genlab_command("data", "show", *options)
    assert found == code
    assert message in error
    assert error.count("\n") == 1
