"""Pictures of translated images: source, image, target, and the way back, side by side at one size."""

import numpy as np
import pytest
import torch

from genlab.callbacks.samples import SampleGrid
from genlab.data.random_data import RandomData
from genlab.evaluation import gallery
from genlab.evaluation.given import given_for, item_batch
from genlab.evaluation.pictures import as_colour, as_large, samples_grid
from genlab.shapes import DataSpec, to_levels

SIDE = 66
"""As large as a picture is not enlarged by the grid."""


class Halved:
    """Its image is half of the source, its way back the double."""

    device, given = torch.device("cpu"), ("source",)

    def __init__(self, spec, factor=0.5):
        self.spec, self.seen_spec, self.factor = spec, spec, factor

    def given_of(self, batch):
        return {"source": batch["source"]}

    def sample(self, index, seed=0, source=None):
        x = source * self.factor
        return x if x.shape[1:] == self.spec.shape else x.repeat_interleave(2, 2).repeat_interleave(2, 3)


class ToAndFro(Halved):
    has_targets = False

    def reversed(self):
        spec = self.spec
        return ToAndFro(DataSpec("s", spec.source.shape, source=DataSpec("i", spec.shape)), 1 / self.factor)


def data_of(side=SIDE, channels=3):
    source = DataSpec("sources", (channels, side, side))
    return RandomData((3, SIDE, SIDE), 0, 256, source.to_dict(), num_train=8, num_test=4)


def grid_of(model, data, num=3):
    index = torch.arange(num)
    given = given_for(model, index, data)
    return samples_grid(model, model.sample(index, **given), index, given, data)


def cells(picture, columns):
    """The cells of a grid with gaps of two pixels, by row and column."""
    starts = range(2, len(picture) - 2, SIDE + 2)
    lefts = [2 + (SIDE + 2) * column for column in range(columns)]
    return [[picture[top : top + SIDE, left : left + SIDE] for left in lefts] for top in starts]


def pixels(images):
    return [image.numpy().transpose(1, 2, 0) for image in as_colour(images, 256)]


def test_translated_images_stand_between_source_and_target():
    data = data_of(channels=1)
    model = Halved(data.spec)
    model.sample = lambda index, seed=0, source=None: (source * 0.5).expand(-1, 3, -1, -1)
    batch = item_batch(data, "test", torch.arange(3), torch.device("cpu"))
    picture = grid_of(model, data)
    assert picture.shape == (3 * (SIDE + 2) + 2, 3 * (SIDE + 2) + 2, 3)
    for row, source, image in zip(
        cells(picture, 3), pixels(batch["source"]), pixels(batch["image"]), strict=True
    ):
        assert np.array_equal(row[0], source) and np.array_equal(row[2], image)
        assert np.array_equal(row[1], pixels(torch.tensor(source.transpose(2, 0, 1))[None] / 255.0 - 0.5)[0])


def test_small_sources_are_shown_as_large_as_their_images():
    data = data_of(side=SIDE // 2)
    batch = item_batch(data, "test", torch.arange(3), torch.device("cpu"))
    for row, source in zip(cells(grid_of(Halved(data.spec), data), 3), pixels(batch["source"]), strict=True):
        assert np.array_equal(row[0], source.repeat(2, 0).repeat(2, 1))
    smooth = as_large(torch.full((1, 3, 2, 2), 200, dtype=torch.uint8), torch.empty(1, 3, 5, 5))
    assert smooth.shape == (1, 3, 5, 5) and smooth.unique().tolist() == [200]


def test_a_model_of_two_ways_shows_both_with_what_comes_back_and_no_target():
    data = data_of()
    batch = item_batch(data, "test", torch.arange(3), torch.device("cpu"))
    picture = grid_of(ToAndFro(data.spec), data)
    height = 3 * (SIDE + 2) + 2
    assert picture.shape == (2 * height + 8, height, 3)
    there, back = cells(picture[:height], 3), cells(picture[-height:], 3)
    for row, source in zip(there, batch["source"], strict=True):
        expected = pixels(torch.stack([source, source / 2]))
        assert all(np.array_equal(a, b) for a, b in zip(row, [*expected, expected[0]], strict=True))
    for row, image in zip(back, batch["image"], strict=True):
        expected = pixels(torch.stack([image, image * 2, image]))
        assert all(np.array_equal(a, b) for a, b in zip(row, expected, strict=True))


def test_a_test_shows_translations_and_other_models_have_none():
    data = data_of()
    model = ToAndFro(data.spec)
    found = gallery.of_translations(model, data, "test")
    index = torch.arange(4)
    given = given_for(model, index, data)
    x = to_levels(model.sample(index, **given))
    assert np.array_equal(found["translations"], samples_grid(model, x, index, given, data))
    model.seen_spec = model.spec.unconditional()
    assert gallery.of_translations(model, data, "test") == {}


def test_no_grid_is_drawn_of_no_samples_and_fewer_are_refused():
    class Nobody:
        """Would fail at whatever is asked of it."""

    SampleGrid(num=0)._draw(Nobody(), Nobody())
    with pytest.raises(ValueError, match=r"samples\.num must be at least 0, got -1"):
        SampleGrid(num=-1)
