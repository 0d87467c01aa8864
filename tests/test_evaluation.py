"""One pass gives every score; the score does not depend on batches; pictures show what was drawn."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from genlab.data.digits import Digits
from genlab.data.packed import Packed
from genlab.data.random_images import RandomImages
from genlab.evaluation.likelihood import score_likelihood
from genlab.evaluation.pictures import as_pixels, grid
from genlab.evaluation.score import reference_of, score, score_name
from genlab.families.base import Model
from genlab.metrics.base import Drawn, Reference
from genlab.metrics.duplicates import DuplicateShare
from genlab.metrics.extractors import load_extractor
from genlab.metrics.features import Identity
from genlab.metrics.frechet import FrechetDistance
from genlab.metrics.inception_score import InceptionScore
from genlab.metrics.kernel_distance import KernelDistance
from genlab.metrics.precision_recall import PrecisionRecall
from genlab.metrics.wasserstein import WassersteinDistance, wasserstein_1d
from genlab.runs.headline import named
from genlab.shapes import DataSpec, to_float, to_levels


class Memory(Model):
    """Samples are given images, in order."""

    def __init__(self, spec, images):
        super().__init__(spec)
        self.images = images
        self.asked = []

    def sample(self, index, seed=0):
        self.asked += index.tolist()
        return self.images[index % len(self.images)]


@pytest.fixture(scope="module")
def digits():
    return Digits()


def memory_of(digits, split):
    levels = torch.as_tensor(np.asarray(digits.split(split).x))
    return Memory(digits.spec, to_float(levels, digits.spec.levels))


def all_metrics():
    return [
        FrechetDistance(),
        KernelDistance(num_subsets=4, subset_size=500),
        PrecisionRecall(),
        DuplicateShare(),
        InceptionScore(num_splits=2),
    ]


def test_a_model_that_draws_the_real_images_scores_perfectly(digits):
    scores = score(memory_of(digits, "test"), digits, load_extractor("digits"), all_metrics(), 797)
    values = {name.split("@")[0]: value for name, value in scores.values.items()}
    assert values["fid"] == pytest.approx(0.0, abs=1e-6)
    assert values["precision"] == values["recall"] == 1.0
    assert values["duplicates"] == pytest.approx(0.01, abs=0.003)
    assert values["is"] > 8.5


def test_training_images_set_the_floor_and_noise_lies_far_above(digits):
    extractor = load_extractor("digits")
    train = memory_of(digits, "train")
    torch.manual_seed(0)
    noise = Memory(digits.spec, torch.rand(797, 1, 8, 8) * 2 - 1)
    floor, far = (
        score(model, digits, extractor, [FrechetDistance()], 797).values["fid@797"]
        for model in (train, noise)
    )
    assert 0 < floor < 2 < 20 < far


def test_a_collapsed_model_is_seen_by_recall_and_duplicates(digits):
    images = memory_of(digits, "test").images[:1].expand(797, -1, -1, -1)
    scores = score(Memory(digits.spec, images), digits, load_extractor("digits"), all_metrics(), 797)
    values = {name.split("@")[0]: value for name, value in scores.values.items()}
    assert values["duplicates"] == 1.0 and values["recall"] < 0.05
    assert all(math.isfinite(value) for value in values.values())


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_scores_do_not_depend_on_the_batch_size(batch_size, digits):
    def scores(size):
        model = memory_of(digits, "train")
        result = score(model, digits, load_extractor("digits"), all_metrics(), 101, batch_size=size)
        assert sorted(model.asked) == list(range(101))  # every sample once
        return result

    a, b = scores(batch_size), scores(101)
    assert a.values.keys() == b.values.keys() and a.protocol == b.protocol
    assert all(a.values[name] == pytest.approx(b.values[name], rel=1e-4, abs=1e-6) for name in a.values)


@pytest.mark.fault(51)
def test_the_protocol_tells_apart_what_must_not_be_compared(digits):
    def protocol(**options):
        arguments = {"num_samples": 50, "split": "test", "seed": 0, **options}
        return score(
            memory_of(digits, "train"), digits, load_extractor("digits"), [FrechetDistance()], **arguments
        )

    base = protocol().protocol
    assert base["num_real"] == 797 and base["extractor_digest"] and base["levels"] == 17
    for change in ({"num_samples": 51}, {"split": "train"}, {"seed": 1}):
        assert protocol(**change).protocol != base


def test_training_random_state_is_left_alone_by_scoring(digits):
    extractor = load_extractor("digits")
    torch.manual_seed(3)
    state = torch.get_rng_state()
    score(memory_of(digits, "train"), digits, extractor, all_metrics(), 50)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.fault(49)
@pytest.mark.parametrize(
    ("num_real", "num_fake", "name"),
    [
        (10_000, 10_000, "fid"),
        (797, 797, "fid@797"),
        (797, 50, "fid@50vs797"),
        (50_000, 10_000, "fid@10000"),
        (10_000, 2_048, "fid@2048vs10000"),
    ],
)
def test_small_or_unequal_counts_are_said_in_the_name(num_real, num_fake, name):
    assert score_name("fid", num_real, num_fake) == name
    assert named("fid").found_in({f"val/{name}": 2.5}) == (f"val/{name}", 2.5)


def test_a_score_that_is_not_finite_is_not_found():
    assert named("fid").found_in({"val/fid@797": float("nan")}) is None
    assert named("fid").found_in({"val/kid@797": 1.0}) is None


def test_the_shipped_digits_extractor_knows_digits_it_has_not_seen(digits):
    extractor = load_extractor("digits")
    test = digits.split("test")
    logits = extractor(torch.as_tensor(np.asarray(test.x)), 17).logits
    assert (logits.argmax(1).numpy() == test["label"]).mean() > 0.97
    assert extractor.num_features <= 64


def test_wasserstein_distance_of_shifted_and_scaled_sets_is_known():
    torch.manual_seed(0)
    x = torch.randn(5000, 1, dtype=torch.float64)
    assert wasserstein_1d(x, x) == 0
    assert wasserstein_1d(x, x + 0.3) == pytest.approx(0.3)
    assert wasserstein_1d(x, 2 * x) == pytest.approx(float(x.abs().mean()), rel=0.01)
    assert wasserstein_1d(x[:1000], x[1000:]) < 0.1  # unequal counts


def test_wasserstein_distance_is_taken_at_the_middle_of_each_quantile():
    a, b = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[0.0], [2.0]]).double()
    assert wasserstein_1d(a, b, num_quantiles=2) == pytest.approx(0.5)


@pytest.mark.fault(51)
def test_one_changed_pixel_of_the_real_images_is_measured_anew(digits):
    def changed():
        data = Digits()
        data.split("test").x[0, 0, 0, 0] += 1
        return data

    extractor = load_extractor("digits")
    a, b, again = (
        reference_of(data, extractor, "test", 100, torch.device("cpu"))
        for data in (digits, changed(), digits)
    )
    assert not torch.equal(a.mean, b.mean)
    assert torch.equal(a.mean, again.mean)


def test_wasserstein_metric_agrees_with_scipy():
    from scipy.stats import wasserstein_distance

    torch.manual_seed(0)
    a, b = torch.randn(800, 1), 0.5 * torch.randn(800, 1) + 1
    metric, identity = WassersteinDistance(), Identity(1)
    metric.set_reference(Reference(800, b.mean(0), torch.eye(1), b, torch.arange(800)))
    metric.update(Drawn(torch.arange(800), a, identity(a)))
    expected = wasserstein_distance(a[:, 0].numpy(), b[:, 0].numpy())
    assert metric.compute()["wasserstein"] == pytest.approx(expected, rel=3e-3)


class Uniform(Model):
    """Every level of every pixel equally probable."""

    likelihood_kind, likelihood_estimator = "exact", ""

    def log_prob(self, x):
        return x.new_full((len(x),), -math.prod(self.spec.shape) * math.log(self.spec.levels))


@pytest.mark.parametrize("levels", [17, 256])
def test_a_uniform_model_has_exactly_the_bits_of_its_levels(levels):
    data = RandomImages((3, 4, 4), levels=levels, num_train=8, num_test=37)
    result = score_likelihood(Uniform(data.spec), data, batch_size=10)
    assert result.values["bits_per_dim"] == pytest.approx(math.log2(levels), abs=1e-6)
    assert result.protocol["num_real"] == 37 and result.protocol["shape"] == [3, 4, 4]
    first = score_likelihood(Uniform(data.spec), data, max_items=12, batch_size=10)
    assert first.protocol["num_real"] == 12 and first.values == pytest.approx(result.values)


class FullGaussian(Model):
    """One normal distribution with full covariance, fitted in closed form to the levels' bins."""

    likelihood_kind, likelihood_estimator = "<=", "uniform dequantisation, k = 1"

    def __init__(self, spec, data):
        super().__init__(spec)
        levels = torch.from_numpy(data.split("train").x).flatten(1).double()
        # A number drawn evenly from a level's bin of width 1 has variance 1/12.
        covariance = levels.T.cov(correction=0) + torch.eye(levels.shape[1]) / 12
        self.density = MultivariateNormal(levels.mean(dim=0) + 0.5, covariance)

    def log_prob(self, x):
        drawn = self.draw_uniform("dequantisation", len(x), tuple(x.shape[1:]))
        return self.density.log_prob((to_levels(x, self.spec.levels) + drawn.double()).flatten(1))


class IndependentPixels(RandomImages):
    """Every level of every pixel equally probable."""

    def _draw(self, first, num):
        draws = np.random.default_rng(first).integers(self.spec.levels, size=(num, *self.spec.shape))
        return Packed({"image": draws.astype(np.uint8)})


@pytest.mark.parametrize("levels", [17, 256])
def test_a_gaussian_of_independent_uniform_pixels_has_its_closed_form(levels):
    data = IndependentPixels((1, 4, 4), levels=levels, num_train=20_000, num_test=4_000)
    result = score_likelihood(FullGaussian(data.spec, data), data)
    # -log2 of a normal density at numbers of its own variance, levels^2 / 12
    expected = 0.5 * math.log2(2 * math.pi * math.e * levels**2 / 12)
    assert result.values["bits_per_dim"] == pytest.approx(expected, abs=0.01)


def test_a_gaussian_gains_what_neighbouring_pixels_share():
    digits = Digits()
    bits = score_likelihood(FullGaussian(digits.spec, digits), digits).values["bits_per_dim"]
    levels = torch.from_numpy(digits.split("train").x).flatten(1).double()
    alone = 0.5 * (2 * math.pi * math.e * (levels.var(dim=0) + 1 / 12)).log2().mean().item()
    assert bits < min(alone, math.log2(17)) - 0.4
    assert bits == pytest.approx(
        score_likelihood(FullGaussian(digits.spec, digits), digits, batch_size=7).values["bits_per_dim"],
        rel=1e-12,
    )


def test_pixels_of_a_grid_are_the_images_enlarged_without_smoothing():
    levels = torch.arange(4 * 9, dtype=torch.uint8).reshape(4, 1, 3, 3)
    picture = grid(levels, num_levels=256, gap=2)
    factor = 64 // 3
    assert picture.shape == (2 * (3 * factor + 2) + 2,) * 2
    assert picture[0, 0] == 255 and picture[2, 2] == 0
    assert picture[2 + factor * 3 + 2, 2] == levels[2, 0, 0, 0]  # row by row
    assert set(np.unique(picture)) <= {*range(36), 255}


@pytest.mark.parametrize("channels", [1, 3])
def test_seventeen_levels_fill_the_range_of_a_picture(channels):
    spec = DataSpec("digits", (channels, 2, 2), levels=17)
    x = (
        to_float(torch.tensor([0, 8, 16, 4], dtype=torch.uint8), 17)
        .reshape(1, 1, 2, 2)
        .expand(1, *spec.shape)
    )
    pixels = as_pixels(x, 17)
    assert pixels.shape == ((1, 2, 2) if channels == 1 else (1, 2, 2, 3))
    assert sorted(set(pixels.flatten().tolist())) == [0, 64, 128, 255]
