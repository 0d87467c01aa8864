"""Levels to floats and back: no level is lost, and none is darkened."""

import pytest
import torch

from genlab.shapes import Batch, DataSpec, levels_to_bytes, observed, to_float, to_levels

LEVELS = [2, 17, 256]


@pytest.mark.parametrize("num_levels", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_level_makes_the_round_trip(num_levels, dtype):
    levels = torch.arange(num_levels, dtype=torch.uint8)
    x = to_float(levels, num_levels).to(dtype)
    assert x.min() == -1 and x.max() == 1
    assert torch.equal(to_levels(x, num_levels), levels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_levels_that_it_can_tell_apart(dtype):
    levels = torch.arange(17, dtype=torch.uint8)
    assert torch.equal(to_levels(to_float(levels, 17).to(dtype), 17), levels)
    every = torch.arange(256, dtype=torch.uint8)
    assert (to_levels(to_float(every).to(dtype)).int() - every.int()).abs().max() <= 1


@pytest.mark.parametrize("num_levels", LEVELS)
def test_floats_go_to_their_nearest_level(num_levels):
    x = torch.linspace(-1, 1, 10_007)
    error = (to_float(to_levels(x, num_levels), num_levels) - x).abs().max()
    assert error <= 1 / (num_levels - 1) + 1e-5
    # Truncation would have an error of twice the size, and a mean that is half a level too dark.
    assert abs(to_float(to_levels(x, num_levels), num_levels).mean()) < 1e-3


def test_mapping_levels_leaves_its_argument_alone():
    levels = torch.arange(17.0)
    to_float(levels, 17)
    assert torch.equal(levels, torch.arange(17.0))


def test_floats_outside_the_range_are_clipped():
    assert to_levels(torch.tensor([-3.0, 3.0]), 17).tolist() == [0, 16]


@pytest.mark.parametrize("num_levels", LEVELS)
def test_bytes_of_levels_fill_the_range_evenly(num_levels):
    pixels = levels_to_bytes(torch.arange(num_levels, dtype=torch.uint8), num_levels).int()
    steps = pixels.diff()
    assert pixels[0] == 0 and pixels[-1] == 255 and steps.max() - steps.min() <= 1


def test_a_spec_survives_plain_values_and_forgets_labels():
    spec = DataSpec("digits", [1, 8, 8], num_classes=10, levels=17)
    assert DataSpec(**spec.to_dict()) == spec and hash(DataSpec(**spec.to_dict())) == hash(spec)
    assert spec.unconditional().num_classes == 0 and spec.unconditional() != spec
    assert spec.kind == "image" and spec.is_grid and spec.unit == "img" and spec.units == 1


def test_the_kind_follows_from_shape_and_levels():
    kinds = {
        "image": DataSpec("photos", (3, 8, 8)),
        "point": DataSpec("moons", (2,), levels=0),
        "tokens": DataSpec("text", (64,), levels=65),
    }
    assert {spec.kind for spec in kinds.values()} == kinds.keys()
    assert all(spec.kind == kind for kind, spec in kinds.items())
    latent, codes = DataSpec("latent", (4, 8, 8), levels=0), DataSpec("codes", (8, 8), levels=512)
    assert latent.kind == "point" and latent.is_grid  # convolutions fit, nothing is bounded
    assert codes.kind == "tokens" and not codes.is_grid


def test_examples_are_counted_in_the_data_s_own_unit():
    text = DataSpec("text", (64,), levels=65)
    assert (text.unit, text.units) == ("tok", 64)
    pairs = DataSpec("sentences", (20,), levels=100, source=DataSpec("german", (30,), levels=80))
    assert (pairs.unit, pairs.units) == ("pairs", 1)
    assert DataSpec("moons", (2,), levels=0).unit == "pt"


def test_a_spec_keeps_its_source_and_its_vocabulary():
    source = DataSpec("labels", (3, 16, 16), levels=256)
    spec = DataSpec("photos", (3, 16, 16), num_classes=4, source=source, vocabulary='{"kind": "bytes"}')
    again = DataSpec(**spec.to_dict())
    assert again == spec and again.source == source and hash(again) == hash(spec)
    assert len(spec.summary()["vocabulary"]) == 16
    assert spec.told(["source"]).source == source and spec.told(["source"]).num_classes == 0
    assert spec.told(["label"]).source is None and spec.told(["label"]).num_classes == 4
    assert spec.told([]) == spec.unconditional()
    assert spec != DataSpec("photos", (3, 16, 16), num_classes=4, source=source)


def test_what_is_modelled_is_observed():
    for kind in ("image", "point", "tokens"):
        x = torch.ones(1)
        assert observed(Batch(**{kind: x}, source=torch.zeros(1))) is x
    with pytest.raises(ValueError, match="holds one of image, point, tokens"):
        observed(Batch(source=torch.zeros(1)))
