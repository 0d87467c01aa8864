"""What a test measures beside scores: noise, copies, cost, latent space; each against what is known."""

import math
import time
from functools import partial

import numpy as np
import pytest
import torch
from network_passes import Evaluations
from torch import nn
from torch.nn.functional import one_hot

from genlab.bijections.flows import CouplingFlow, Glow, RealNVP
from genlab.callbacks.evaluate import Evaluate
from genlab.data.digits import Digits
from genlab.data.procedural import Shapes
from genlab.data.random_images import RandomImages
from genlab.evaluation import score as scoring
from genlab.evaluation.copies import NUM_BINS, find_copies
from genlab.evaluation.disentanglement import dci, importance_scores, mutual_information_gap
from genlab.evaluation.floor import floor_scores
from genlab.evaluation.latent_space import (
    FEW,
    encode_split,
    indicators,
    linear_probe,
    measure_latent,
    path_length,
)
from genlab.evaluation.pictures import joined
from genlab.evaluation.score import KeptSamples, reference_of, sample_levels, score
from genlab.evaluation.speed import measure_speed, peak_memory
from genlab.families.autoencoder import Autoencoder
from genlab.families.autoregressive import Autoregressive
from genlab.families.base import Model
from genlab.families.classifier import Classifier
from genlab.families.diffusion import Diffusion, Guidance
from genlab.families.flow import Flow
from genlab.families.gan import GAN
from genlab.families.vae import VAE
from genlab.families.vqvae import VQVAE
from genlab.losses.adversarial import Hinge
from genlab.losses.likelihoods import DiscretizedLogistic
from genlab.metrics.base import Drawn, Reference, chosen_rows
from genlab.metrics.extractors import load_extractor
from genlab.metrics.features import Features
from genlab.metrics.frechet import FrechetDistance
from genlab.metrics.frechet_noise import FrechetNoise
from genlab.metrics.inception_score import InceptionScore
from genlab.metrics.kernel_distance import KernelDistance
from genlab.metrics.neighbours import nearest_rows
from genlab.metrics.posterior import ActiveUnits
from genlab.metrics.precision_recall import PrecisionRecall
from genlab.networks.autoencoder import (
    ConvMapDecoder,
    ConvMapEncoder,
    MLPDecoder,
    MLPEncoder,
)
from genlab.networks.classifier import ConvClassifier
from genlab.networks.conditioner import ConvConditioner, MLPConditioner
from genlab.networks.mlp import MLPDiscriminator, MLPGenerator
from genlab.networks.quantizer import EMACodebook
from genlab.networks.transformer import CausalTransformer
from genlab.networks.unet import UNet
from genlab.processes.chain import DiscreteChain
from genlab.processes.grids import UniformGrid
from genlab.processes.sde import VPSDE
from genlab.samplers.ancestral import DDIM, Ancestral
from genlab.samplers.conditioning import FromImage, RePaint
from genlab.samplers.ode import DPMSolver, Euler, Heun, RungeKutta
from genlab.samplers.sde import AnnealedLangevin, EulerMaruyama, PredictorCorrector
from genlab.shapes import DataSpec, to_float, to_levels

ADAM = partial(torch.optim.Adam, lr=1e-3)
SPEC = DataSpec("tiny", (1, 8, 8), num_classes=3, levels=17)
CPU = torch.device("cpu")


def images(**options):
    return RandomImages((1, 8, 8), 3, 17, **{"num_train": 64, "num_test": 32, "batch_size": 8, **options})


def gan(**options):
    return GAN(
        SPEC,
        generator=MLPGenerator,
        discriminator=MLPDiscriminator,
        loss=Hinge(),
        generator_optimizer=ADAM,
        discriminator_optimizer=ADAM,
        half_life=50,
        **options,
    )


def vae(**options):
    coder = partial(MLPEncoder, hidden=[8]), partial(MLPDecoder, hidden=[8])
    return VAE(SPEC, *coder, DiscretizedLogistic, ADAM, latent_dim=4, **options)


def autoencoder():
    coder = partial(MLPEncoder, hidden=[8]), partial(MLPDecoder, hidden=[8])
    return Autoencoder(SPEC, *coder, ADAM, latent_dim=4)


def vqvae():
    coder = partial(ConvMapEncoder, base_channels=4), partial(ConvMapDecoder, base_channels=4)
    return VQVAE(SPEC, *coder, partial(EMACodebook, num_codes=8), ADAM, code_dim=4)


REALNVP = partial(RealNVP, network=partial(ConvConditioner, hidden_channels=4), num_couplings=2)


def flow(bijection=REALNVP):
    return Flow(SPEC, bijection, ADAM, half_life=50)


def diffusion(sampler, **options):
    unet = partial(UNet, channels=[4], num_blocks=1, attention=[], num_groups=2)
    return Diffusion(SPEC, unet, DiscreteChain(1000), ADAM, sampler=sampler, **options)


# The noise of one model's FID


def gaussian_reference(d):
    return Reference(1000, torch.zeros(d).double(), torch.eye(d).double(), torch.zeros(1, d), torch.arange(1))


def fid_and_noise(x, order=None, num_groups=20):
    order = torch.arange(len(x)) if order is None else order
    found = {}
    for metric in (FrechetDistance(), FrechetNoise(num_groups)):
        metric.set_reference(gaussian_reference(x.shape[1]))
        for index in order.split(64):
            metric.update(Drawn(index, x[index], Features(x[index])))
        found |= metric.compute()
    return found["fid"], found.get("fid_std")


@pytest.mark.parametrize(("d", "shift", "scale"), [(4, 0.3, 1.2), (16, 0.1, 0.8)])
def test_the_noise_of_fid_is_its_spread_over_samples_drawn_again(d, shift, scale):
    torch.manual_seed(0)
    drawn = [fid_and_noise(shift + scale * torch.randn(400, d)) for _ in range(150)]
    fids, noises = torch.tensor(drawn, dtype=torch.float64).T
    assert noises.square().mean().sqrt() == pytest.approx(float(fids.std()), rel=0.15)


def test_the_noise_of_fid_is_right_for_a_model_that_draws_each_class_in_turn():
    torch.manual_seed(0)
    means = 3.0 * torch.randn(10, 4)
    drawn = [fid_and_noise(means.repeat(40, 1) + torch.randn(400, 4)) for _ in range(150)]
    fids, noises = torch.tensor(drawn, dtype=torch.float64).T
    assert noises.square().mean().sqrt() == pytest.approx(float(fids.std()), rel=0.15)


def test_the_noise_of_fid_does_not_depend_on_the_order_of_arrival():
    torch.manual_seed(0)
    x = torch.randn(101, 3)
    assert fid_and_noise(x) == pytest.approx(fid_and_noise(x, torch.randperm(101)))


def test_equal_groups_have_no_noise_and_too_few_samples_give_none():
    x = torch.randn(5, 3).repeat(4, 1)  # four stretches of the same five samples
    assert fid_and_noise(x, num_groups=4)[1] == pytest.approx(0.0, abs=1e-9)
    assert fid_and_noise(x[:2])[1] is None
    with pytest.raises(ValueError, match="at least 2"):
        FrechetNoise(1)


# Copies of training images


@pytest.fixture(scope="module")
def digits():
    return Digits()


@pytest.fixture(scope="module")
def real_features(digits):
    extractor = load_extractor("digits")
    return {
        split: extractor(torch.as_tensor(np.asarray(digits.split(split).x)), 17).pool
        for split in ("train", "test")
    }


def test_training_images_are_all_copies_and_unseen_ones_a_twentieth(real_features):
    train, test = real_features["train"], real_features["test"]
    copies = find_copies(train[:500], train, test)
    assert copies.share == 1.0 and copies.distances[:, 0].max() == 0.0
    assert torch.equal(copies.neighbours[:, 0], torch.arange(500))
    assert find_copies(test, train, test).share == pytest.approx(0.05, abs=0.002)
    half = find_copies(torch.cat([train[:300], test[:300]]), train, test)
    assert half.share == pytest.approx(0.5 + 0.5 * find_copies(test[:300], train, test).share)


def test_copies_are_found_even_where_unseen_images_repeat_training_ones(real_features):
    train = real_features["train"]
    test = torch.cat([train[:40], real_features["test"][:60]])  # duplicates across the splits: threshold 0
    copies = find_copies(train[50:90], train, test)
    assert copies.threshold == 0.0 and copies.share == 1.0


def test_histograms_of_distances_hold_every_sample():
    train, test = torch.zeros(1, 1), torch.tensor([[1.0], [2.0], [4.0]])
    samples = torch.tensor([[0.0], [1.0], [5.9], [100.0]])
    summary = find_copies(samples, train, test).summary("identity", 1)
    histogram = summary["histogram"]
    assert histogram["edges"][0] == 0.0 and histogram["edges"][-1] == pytest.approx(6.0)
    assert len(histogram["samples"]) == len(histogram["edges"]) - 1 == NUM_BINS
    assert sum(histogram["samples"]) == 4 and sum(histogram["test"]) == 3
    assert histogram["samples"][0] == 1 and histogram["samples"][-1] == 2  # 100 lies beyond
    assert summary["median_ratio"] == pytest.approx(1.0 / 2.0) and summary["num"] == 4


def test_nearest_rows_agree_with_brute_force():
    torch.manual_seed(0)
    a, b = torch.randn(50, 6), torch.randn(40, 6)
    distances, rows = nearest_rows(a, b, 3)
    expected = torch.cdist(a.double(), b.double()).sort(dim=1)
    assert torch.allclose(distances, expected.values[:, :3]) and torch.equal(rows, expected.indices[:, :3])


# The floor


def metrics():
    return [FrechetDistance(), KernelDistance(num_subsets=4, subset_size=200), PrecisionRecall()]


class Memory(Model):
    """Samples are given images, in order."""

    def __init__(self, spec, levels):
        super().__init__(spec)
        self.levels = levels

    def sample(self, index, seed=0):
        return to_float(self.levels[index % len(self.levels)], self.spec.levels)


def references(digits, extractor):
    return [reference_of(digits, extractor, split, 100, CPU) for split in ("train", "test")]


def test_the_floor_is_the_score_of_training_images_drawn_as_samples(digits):
    extractor = load_extractor("digits")
    train, test = references(digits, extractor)
    floor = floor_scores(train, test, [*metrics(), InceptionScore()], 300, ["a"])
    rows = train.index[chosen_rows(train.index, 300)]
    memory = Memory(digits.spec, torch.as_tensor(np.asarray(digits.split("train").x))[rows])
    expected = score(memory, digits, extractor, metrics(), 300).values
    assert set(floor) == set(expected) and "fid@300vs797" in floor  # no class probabilities, hence no IS
    assert all(floor[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6) for name in floor)


def test_the_floor_is_measured_once_for_the_same_data_and_ruler(digits, monkeypatch):
    train, test = references(digits, load_extractor("digits"))
    first = floor_scores(train, test, metrics(), 300, ["a"])
    monkeypatch.setattr(FrechetDistance, "compute", lambda self: {"fid": -1.0})
    assert floor_scores(train, test, metrics(), 300, ["a"]) == first
    for change in ({"key": ["b"]}, {"num_samples": 301}, {"metrics": [FrechetDistance()]}):
        arguments = {"metrics": metrics(), "num_samples": 300, "key": ["a"], **change}
        changed = floor_scores(train, test, **arguments)
        assert next(value for name, value in changed.items() if name.startswith("fid")) == -1.0


# One pass over the samples


def test_kept_samples_are_those_that_were_scored_and_others_are_drawn_again(digits, monkeypatch):
    levels = torch.as_tensor(np.asarray(digits.split("train").x))
    extractor = load_extractor("digits")
    for kept_bytes in (2**20, 0):
        monkeypatch.setattr(scoring, "KEPT_BYTES", kept_bytes)
        scores = score(
            Memory(digits.spec, levels), digits, extractor, metrics(), 60, batch_size=25, keep=True
        )
        assert isinstance(scores.drawn, KeptSamples) and len(scores.drawn.levels) == (60 if kept_bytes else 0)
        assert torch.allclose(scores.drawn.features.features, extractor(levels[:60], 17).pool, atol=1e-5)
        assert torch.equal(scores.drawn.images(Memory(digits.spec, levels), [7, 59, 3]), levels[[7, 59, 3]])
    plain = score(Memory(digits.spec, levels), digits, extractor, metrics(), 60, batch_size=25)
    assert plain.drawn is None and plain.values == scores.values


# Speed


def guided_by_a_copy(sampler, interval=None):
    model = diffusion(sampler, guidance=Guidance(3.0, guide_after=1, interval=interval))
    model.earlier.offer(model.network, 1)
    return model


EVALUATIONS = [
    pytest.param(gan, 1, id="gan"),
    pytest.param(partial(gan, given=["label"]), 1, id="conditional gan"),
    pytest.param(vae, 1, id="vae"),
    pytest.param(autoencoder, 1, id="autoencoder"),
    pytest.param(flow, 1, id="realnvp"),
    pytest.param(
        partial(flow, partial(Glow, network=partial(ConvConditioner, hidden_channels=4), num_levels=2)),
        1,
        id="glow",
    ),
    pytest.param(
        partial(flow, partial(CouplingFlow, network=partial(MLPConditioner, hidden=[8]), alpha=0.05)),
        1,
        id="flow of vectors",
    ),
    pytest.param(partial(diffusion, Ancestral(UniformGrid(1000))), 1000, id="ddpm"),
    pytest.param(partial(diffusion, DDIM(UniformGrid(50))), 50, id="ddim"),
    pytest.param(partial(diffusion, Heun()), 35, id="heun"),
    pytest.param(partial(diffusion, RungeKutta(5)), 21, id="runge-kutta"),
    pytest.param(
        partial(diffusion, DDIM(UniformGrid(7)), given=["label"], guidance=Guidance(3.0, 0.1)),
        14,
        id="guided",
    ),
    pytest.param(
        partial(diffusion, DDIM(UniformGrid(7)), given=["label"], guidance=Guidance(dropout=0.1)),
        7,
        id="not guided",
    ),
    pytest.param(partial(diffusion, DDIM(UniformGrid(7)), half_life=0), 7, id="without average"),
    pytest.param(
        partial(diffusion, Heun(), given=["label"], guidance=Guidance(3.0, 0.1, interval=(0.3, 3.0))),
        43,
        id="guided in an interval",
    ),
    pytest.param(partial(guided_by_a_copy, DDIM(UniformGrid(7))), 14, id="guided by a copy"),
]


@pytest.mark.parametrize(("build", "expected"), EVALUATIONS)
def test_each_family_takes_as_many_network_passes_as_it_declares(build, expected):
    model = build().eval()
    assert model.passes == expected
    for batch in (1, 3) if expected < 100 else (1,):
        with Evaluations(batch).counting(model) as counted:
            sample_levels(model, torch.arange(batch), 0)
        assert counted.per_sample == expected


IN_AN_INTERVAL = partial(guided_by_a_copy, Heun(UniformGrid(4)), (0.3, 3.0))


@pytest.mark.parametrize(
    "build", [vae, autoencoder, flow, partial(diffusion, Heun(UniformGrid(4))), IN_AN_INTERVAL, vqvae]
)
def test_codes_take_as_many_network_passes_as_are_declared(build, monkeypatch):
    monkeypatch.setattr("genlab.families.diffusion.LATENT_STEPS", 5)
    model = build().eval()
    with Evaluations(2).counting(model) as encoding:
        z = model.encode(torch.zeros(2, *SPEC.shape))
    with Evaluations(2).counting(model) as decoding:
        model.decode(z)
    assert (encoding.per_sample, decoding.per_sample) == (model.encoding_passes, model.decoding_passes)


X = torch.zeros(1, *SPEC.shape)


@pytest.mark.parametrize(
    "sampler",
    [
        DPMSolver(UniformGrid(5)),
        Euler(UniformGrid(5)),
        EulerMaruyama(UniformGrid(5)),
        PredictorCorrector(UniformGrid(5), num_corrections=2),
        AnnealedLangevin(UniformGrid(5), num_steps=3),
        RePaint(X, X + 1.0, UniformGrid(5), num_resamplings=3),
        FromImage(X, Heun(UniformGrid(10)), 0.4),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_each_sampler_asks_its_denoiser_as_often_as_it_says(sampler):
    model = diffusion(sampler).eval()
    model.process = VPSDE()
    with Evaluations(2).counting(model) as counted:
        model.sample(torch.arange(2))
    assert counted.per_sample == model.passes == model.passes_with(sampler)


def test_a_text_takes_a_pass_for_each_token():
    spec = DataSpec("text", (6,), levels=11)
    model = Autoregressive(spec, partial(CausalTransformer, width=8, num_layers=1, num_heads=2), ADAM).eval()
    with Evaluations(2).counting(model) as counted:
        model.sample(torch.arange(2))
    assert counted.per_sample == model.passes == 6


class Recurrent(nn.Module):
    """Uses one layer several times, which is its own affair."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(self.layer(x.flatten(1)))).reshape(x.shape)


def test_what_a_network_does_inside_is_one_evaluation():
    model = Slow(0.0, 2)
    model.network = Recurrent()
    with Evaluations(5).counting(model) as counted:
        model.sample(torch.arange(5))
    assert counted.per_sample == 2


def test_counting_leaves_no_hook_behind():
    model = gan()
    with Evaluations(1).counting(model):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Sleeper(nn.Module):
    """Takes a known time."""

    def __init__(self, seconds):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(256))  # a KiB
        self.seconds, self.seconds_per_row, self.rows = seconds, 0.0, []

    def forward(self, x):
        self.rows.append(len(x))
        time.sleep(self.seconds + self.seconds_per_row * len(x))
        return x


class Slow(Model):
    """Asks its network a number of times; the very first sample takes longer."""

    def __init__(self, seconds, steps, first=0.0):
        super().__init__(DataSpec("tiny", (1, 2, 2)))
        self.network, self.passes, self.first = Sleeper(seconds), steps, first

    def sample(self, index, seed=0):
        time.sleep(self.first)
        self.first = 0.0
        x = torch.zeros(len(index), 1, 2, 2)
        for _ in range(self.passes):
            x = self.network(x)
        return x


def test_speed_is_the_time_of_a_sample_without_the_first_draw():
    speed = measure_speed(Slow(0.004, 5, first=0.2), seconds=0.3, repeats=5)
    assert 20 <= speed["ms_per_sample"] < 60
    assert speed["samples_per_second_1"] == pytest.approx(1000 / speed["ms_per_sample"])
    assert 64 / 0.06 < speed["samples_per_second_64"] <= 64 / 0.02
    assert speed["nfe"] == 5 and speed["threads"] == torch.get_num_threads() and speed["device"] == "cpu"


def test_a_slow_sampler_is_timed_on_fewer_samples():
    model = Slow(0.0, 1)
    model.network.seconds_per_row = 0.02
    speed = measure_speed(model, seconds=0.01)  # 64 would take longer than 0.6 s
    assert speed["batch"] == 8 and set(model.network.rows) == {1, 8}
    assert 30 < speed["samples_per_second_64"] <= 50
    model.network.seconds_per_row = 1.0
    model.network.rows.clear()
    assert measure_speed(model, seconds=0.01)["batch"] == 1
    assert model.network.rows == [1]


def test_a_sampler_as_fast_for_many_as_for_one_is_timed_on_many_though_it_is_slow():
    model = Slow(0.05, 4)  # 0.2 s a draw, of any size
    speed = measure_speed(model, seconds=0.01)
    assert speed["batch"] == 64 and model.network.rows.count(64) == 4  # one draw, which counts
    assert 64 / 0.6 < speed["samples_per_second_64"] <= 64 / 0.2


def test_the_memory_of_a_cpu_is_not_counted():
    assert measure_speed(Slow(0.0, 1), seconds=0.01)["peak_memory_mib"] is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_memory_is_the_weights_and_what_a_draw_holds():
    model = Slow(0.0, 1).cuda()

    def draw():
        a = torch.zeros(2**20, device="cuda")
        return a * 2

    assert peak_memory(model, draw) == pytest.approx(8 + 1 / 1024, abs=0.01)


# Latent space


def test_a_linear_probe_tells_what_is_linear_and_guesses_noise():
    torch.manual_seed(0)
    labels = torch.arange(600) % 4
    means = 3 * torch.randn(4, 10)
    z = means[labels] + torch.randn(600, 10)
    assert linear_probe(z[:400], labels[:400], z[400:], labels[400:]) > 0.95
    noise = torch.randn(600, 10)
    assert linear_probe(noise[:400], labels[:400], noise[400:], labels[400:]) == pytest.approx(0.25, abs=0.1)
    ring = (torch.randn(600, 10).norm(dim=1) > 3.0).long()
    assert 0.3 < linear_probe(noise[:400], ring[:400], noise[400:], ring[400:]) < 0.75


def test_a_linear_probe_does_not_see_the_codes_scale_or_constants():
    torch.manual_seed(0)
    labels = torch.arange(300) % 3
    z = torch.randn(3, 5)[labels] + torch.randn(300, 5)

    def probe(z):
        return linear_probe(z[:200], labels[:200], z[200:], labels[200:])

    changed = torch.cat([z * torch.tensor([1e-3, 1.0, 1e3, 5.0, 0.1]) + 7, torch.full((300, 1), 2.0)], dim=1)
    assert probe(z) == probe(changed)
    assert 0.4 < probe(z) < 1.0


@pytest.mark.parametrize("seed", range(10))
def test_the_strength_of_the_probe_is_chosen_as_by_fitting_without_each_row(seed, monkeypatch):
    torch.manual_seed(seed)
    labels = torch.arange(12) % 3
    z = torch.randn(3, 5)[labels].double() + torch.randn(12, 5).double()
    z = (z - z.mean(dim=0)) / z.std(dim=0)
    targets = one_hot(labels).double()

    def predicted(rows, new, strength):
        centre, mean = z[rows].mean(dim=0), targets[rows].mean(dim=0)
        gram = (z[rows] - centre).mT @ (z[rows] - centre) + strength * torch.eye(5).double()
        return (new - centre) @ torch.linalg.solve(
            gram, (z[rows] - centre).mT @ (targets[rows] - mean)
        ) + mean

    def left_out_error(strength):
        errors = [predicted(torch.arange(12) != row, z[row], strength) - targets[row] for row in range(12)]
        return float(torch.stack(errors).square().sum())

    largest = float(torch.linalg.eigvalsh(z @ z.mT)[-1])
    best = min((10.0**power * largest for power in range(-9, 4)), key=left_out_error)
    unseen = torch.randn(500, 5).double()
    expected = predicted(torch.arange(12), unseen, best).argmax(dim=1)
    assert linear_probe(z, labels, unseen, expected) == 1.0


class Curve(Model):
    """Decodes a latent by a given function; latents are given too."""

    def __init__(self, latents, decode):
        super().__init__(DataSpec("tiny", (1, 1, 2)))
        self.latents, self.decoder = latents, decode

    def draw_latent(self, index, seed=0):
        return self.latents[index % len(self.latents)]

    def decode(self, z):
        return self.decoder(z).reshape(len(z), 1, 1, 2)


class Pixels(nn.Module):
    def forward(self, levels, num_levels):
        return Features(levels.flatten(1).float())


def test_a_straight_way_has_length_one_and_a_quarter_circle_its_arc():
    line = Curve(torch.tensor([[-1.0], [1.0]]), lambda z: torch.cat([z, z], dim=1))
    assert path_length(line, Pixels(), num_pairs=3) == pytest.approx(1.0, abs=1e-6)
    arc = Curve(torch.eye(2), lambda z: z / z.norm(dim=1, keepdim=True))
    chords = 10 * 2 * math.sin(math.pi / 40) / math.sqrt(2)
    assert path_length(arc, Pixels(), num_pairs=2) == pytest.approx(chords, rel=0.01)
    collapsed = Curve(torch.eye(2), lambda z: 0 * z)
    assert path_length(collapsed, Pixels(), num_pairs=2) is None


def every_factor(repeat=20):
    grid = np.stack(np.meshgrid(range(4), range(3), range(5), indexing="ij"), -1).reshape(-1, 3)
    return np.tile(grid, (repeat, 1))


def test_codes_that_are_the_factors_are_disentangled_and_rotated_ones_are_not():
    factors = every_factor()
    codes = factors[:, [2, 0, 1]] * np.array([2.0, -1.0, 10.0]) + 3.0
    assert mutual_information_gap(codes, factors) == pytest.approx(1.0)
    perfect = dci(codes, factors, codes, factors)
    assert min(perfect.values()) > 0.99
    rotation = np.linalg.qr(np.random.RandomState(0).randn(3, 3))[0]
    mixed = (factors - factors.mean(0)) / factors.std(0) @ rotation
    assert mutual_information_gap(mixed, factors) < 0.4
    assert dci(mixed, factors, mixed, factors)["dci"] < 0.7


def test_a_dimension_that_comes_twice_closes_the_gap_but_keeps_dci():
    factors = every_factor()
    twice = np.concatenate([factors, factors], axis=1).astype(float)
    assert mutual_information_gap(twice, factors) == pytest.approx(0.0, abs=1e-12)
    found = dci(twice, factors, twice, factors)
    assert found["dci"] > 0.99 and found["completeness"] < 0.9


def test_noise_knows_nothing_of_the_factors():
    factors = every_factor(50)
    noise = np.random.RandomState(0).randn(len(factors), 6)
    assert mutual_information_gap(noise, factors) < 0.02
    unseen = np.random.RandomState(1).randn(len(factors), 6)
    found = dci(noise, factors, unseen, factors)
    assert found["informativeness"] == pytest.approx(np.mean([1 / 4, 1 / 3, 1 / 5]), abs=0.05)
    assert found["dci"] < 0.2


def test_importances_give_the_scores_of_their_entropies():
    assert importance_scores(np.eye(3)) == pytest.approx((1.0, 1.0))
    assert importance_scores(np.ones((3, 3))) == pytest.approx((0.0, 0.0), abs=1e-12)

    def h(p, base):
        return -sum(x * math.log(x, base) for x in p if x)

    rows = [(0.5, 0.1), (0.0, 0.2), (0.2, 0.0)]
    disentanglement = 0.6 * (1 - h([5 / 6, 1 / 6], 2)) + 0.2 + 0.2
    completeness = 0.7 * (1 - h([5 / 7, 2 / 7], 3)) + 0.3 * (1 - h([1 / 3, 2 / 3], 3))
    assert importance_scores(np.array(rows)) == pytest.approx((disentanglement, completeness))


def test_numbers_of_a_codebook_become_indicators():
    a, b = indicators(torch.tensor([[[0, 2]], [[1, 1]]]), torch.tensor([[[3, 0]]]))
    assert a.tolist() == [[1, 0, 0, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1, 0, 0]]
    assert b.tolist() == [[0, 0, 0, 1, 1, 0, 0, 0]]


def test_a_latent_space_is_measured_as_far_as_the_model_has_one(tiny_extractor):
    data, extractor = images(), load_extractor(tiny_extractor(1))
    parts = {
        gan: {"type", "dim", "path_length"},
        vae: {"type", "dim", "path_length", "num_codes", "linear_probe", "active_units"},
        autoencoder: {"type", "dim", "path_length", "num_codes", "linear_probe"},
        flow: {"type", "dim", "path_length", "num_codes", "linear_probe"},
        vqvae: {"type", "dim", "num_codes", "linear_probe"},
    }
    for build, expected in parts.items():
        latent, reconstruction = measure_latent(build().eval(), data, extractor)
        assert set(latent) == expected, build
        assert (reconstruction == {}) == (build is gan)
    assert latent["dim"] == 4 and latent["type"] == "codebook"  # a map of 2x2 code numbers


def test_codes_and_reconstructions_are_those_of_the_whole_split():
    torch.manual_seed(0)
    data, model = images(num_test=30), vae().eval()
    x = to_float(torch.as_tensor(data.split("test").x), 17)
    codes = encode_split(model, data, "test", 1000, 7, back=True)
    assert codes.mse == pytest.approx(float((model.decode(model.encode(x)) - x).square().mean()), rel=1e-5)
    assert torch.allclose(codes.z, model.encode(x), atol=1e-6)
    assert len(encode_split(model, data, "test", 20, 7).z) == 20
    units = ActiveUnits(4)
    units.update(codes.z, codes.z)
    latent, _ = measure_latent(model, data, None)
    assert latent["active_units"] == int(units.compute()["active_units"])
    assert measure_latent(flow().eval(), data, None)[1]["mse"] == pytest.approx(0.0, abs=1e-9)


class Patient(Model):
    """Encodes in many steps."""

    def __init__(self, steps):
        super().__init__(SPEC)
        self.encoding_passes, self.decoding_passes = steps, 0

    def encode(self, x):
        return x

    def decode(self, z):
        return z


def test_slow_encoders_are_asked_for_fewer_codes():
    data = images(num_test=900)
    assert len(encode_split(Patient(9), data, "test", 5000, 100).z) == FEW
    assert len(encode_split(Patient(8), data, "test", 5000, 100).z) == 900


def test_known_factors_are_asked_of_the_codes_that_have_them():
    data = Shapes(image_size=16, num_train=150, num_test=50)
    model = Patient(0)
    model.spec = data.spec
    model.encode = lambda x: x[:, :, ::4, ::4].flatten(1)  # a code of few numbers, as its test takes long
    model.decode = lambda z: z.unflatten(1, (3, 4, 4)).repeat_interleave(4, 2).repeat_interleave(4, 3)
    latent, _ = measure_latent(model, data, None)
    assert set(latent["disentanglement"]) == {"mig", "dci", "completeness", "informativeness"}
    assert all(0.0 <= value <= 1.0 for value in latent["disentanglement"].values())
    assert "disentanglement" not in measure_latent(vae().eval(), images(), None)[0]


# What a model cannot do is empty


class Sentences(Model):
    """Draws words, and encodes none."""

    def __init__(self):
        super().__init__(DataSpec("words", (12,), levels=50))
        self.network = Sleeper(0.0)

    def sample(self, index, seed=0):
        return self.network(index[:, None].expand(-1, 12))

    def decode(self, z):
        raise AssertionError("nobody asks for the way back of what has no code")


def test_a_model_of_words_is_timed_and_nothing_else():
    model, evaluate = Sentences(), Evaluate("digits")
    evaluate.prepare(model)
    assert evaluate.extractor is None and evaluate.metrics == [] and evaluate.missing is None
    found = evaluate.examination(images()).of_model(model, {})
    assert found["speed"]["nfe"] == 1 and found["values"] == {} == found["pictures"]
    assert set(found) == {"values", "protocol", "split_means", "speed", "pictures"}


def test_a_classifier_and_a_codebook_have_no_samples_to_measure(tiny_extractor):
    classifier = Classifier(SPEC, partial(ConvClassifier, num_features=4, base_channels=4), ADAM)
    asked = Evaluate("digits").examination(images())
    for model in (classifier.eval(), vqvae().eval()):
        assert asked.of_sampling(model, asked.scores(model)) == {}
    assert asked.of_latents(classifier) == {}


def test_every_part_of_an_examination_is_there_for_a_model_that_can_all(tmp_path, tiny_extractor):
    data, model = images(), vae().eval()
    evaluate = Evaluate(str(tiny_extractor(1)), num_test_samples=40)
    evaluate.prepare(model)
    found = evaluate.examination(data, tmp_path).of_model(model, {"loss": 3.0})
    assert set(found) == {
        *("values", "protocol", "split_means", "speed", "copies", "floor", "latent", "pictures")
    }
    assert found["split_means"] == ["loss"] and found["values"]["loss"] == 3.0
    assert set(found["values"]) >= set(found["floor"]) >= {"fid@40vs32"}
    assert set(found["values"]) >= {"nll", "bits_per_dim", "reconstruction_mse"}
    assert found["copies"]["num"] == 40 and found["copies"]["num_train"] == 64
    assert found["protocol"]["reconstruction"] == {"num": 32, "split": "test"}
    pictures = found["pictures"]
    assert set(pictures) == {"samples", "neighbours", "failures", "interpolation", "reconstruction"}
    assert all((tmp_path / path).is_file() and path.startswith("test/") for path in pictures.values())
    assert to_levels(model.sample(torch.arange(2)), 17).shape == (2, 1, 8, 8)


def test_a_variant_has_the_scores_of_the_model_and_nothing_of_its_weights(tmp_path, tiny_extractor):
    data, model = images(), vae().eval()
    evaluate = Evaluate(str(tiny_extractor(1)), num_test_samples=40)
    evaluate.prepare(model)
    asked = evaluate.examination(data, tmp_path)
    whole, variant = asked.of_model(model, {}), asked.of_variant(model, "test/other")
    assert set(variant) == {"values", "protocol", "split_means", "speed", "copies", "floor", "pictures"}
    assert variant["values"].items() <= whole["values"].items() and variant["copies"] == whole["copies"]
    assert all(path.startswith("test/other/") for path in variant["pictures"].values())


def test_joined_pictures_keep_their_pixels_and_are_apart():
    a, b = np.zeros((2, 3), np.uint8), np.full((4, 1), 7, np.uint8)
    beside = joined([a, b], axis=1, gap=2)
    assert beside.shape == (4, 6)
    assert (beside[:2, :3] == 0).all() and (beside[:, 5] == 7).all() and (beside[:, 3:5] == 255).all()
    assert (beside[2:, :3] == 255).all()
