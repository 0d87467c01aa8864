"""The same weights and images given to torch-fidelity, to torchmetrics and to genlab."""

import numpy as np
import pytest
import torch
from random_inception import random_inception_weights

from genlab.metrics.base import Drawn, Reference
from genlab.metrics.extractors import load_extractor
from genlab.metrics.features import Features
from genlab.metrics.frechet import FrechetDistance
from genlab.metrics.gaussian import frechet_distance
from genlab.metrics.inception import InceptionExtractor
from genlab.metrics.inception_score import InceptionScore
from genlab.metrics.kernel_distance import KernelDistance
from genlab.metrics.precision_recall import PrecisionRecall
from genlab.metrics.reference import collect

torch_fidelity = pytest.importorskip("torch_fidelity")

SUBSET_SIZE = 7
THEIR_NAMES = {
    "fid": "frechet_inception_distance",
    "is": "inception_score_mean",
    "is_std": "inception_score_std",
    "kid": "kernel_inception_distance_mean",
    "kid_std": "kernel_inception_distance_std",
    "precision": "precision",
    "recall": "recall",
}


class Images(torch.utils.data.Dataset):
    """What torch-fidelity reads: a dataset of uint8 images."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]


def deciding_weights(images):
    """Returns random weights whose last layer ignores what all images share, so that classes differ."""
    weights = random_inception_weights()
    mean = InceptionExtractor(weights)(images).pool.mean(0)
    shared = torch.outer(weights["fc.weight"] @ mean, mean) / mean.square().sum()
    return {**weights, "fc.weight": 3 * (weights["fc.weight"] - shared)}


def pictures(num, seed, spread):
    """Smooth random pictures; sets of unequal spread are far apart, so that no score is mere rounding."""
    coarse = torch.randn(num, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * spread
    fine = torch.nn.functional.interpolate(coarse, (40, 32), mode="bicubic")
    return fine.add(128).clamp(0, 255).round().byte()


def their_scores(fake, real, weights):
    """Returns the scores of torch-fidelity's own command, from images to numbers."""
    return torch_fidelity.calculate_metrics(
        input1=Images(fake),
        input2=Images(real),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=SUBSET_SIZE,
        batch_size=16,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )


def their_scores_without_eigenvalues(fake, real, weights):
    """Returns the same with another exact formula for FID: theirs takes 20 s for singular covariances.

    tr (C1 C2)^(1/2) is the nuclear norm of X1 X2^T / sqrt((n1 - 1) (n2 - 1)), X being the centred features.
    """
    from torch_fidelity import metric_isc, metric_kid, metric_prc, utils

    layers = ["2048", "logits_unbiased"]
    options = {"feature_extractor_weights_path": str(weights), "verbose": False}
    extractor = utils.create_feature_extractor("inception-v3-compat", layers, cuda=False, **options)
    sides = [
        utils.get_featuresdict_from_dataset(Images(side), extractor, 16, False, True, False)
        for side in (fake, real)
    ]
    x, y = (side["2048"] for side in sides)
    a, b = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x.double(), y.double()))
    means = (x.double().mean(0) - y.double().mean(0)).square().sum()
    traces = a.square().sum() + b.square().sum()
    return {
        "frechet_inception_distance": float(means + traces - 2 * torch.linalg.svdvals(a @ b.mT).sum()),
        **metric_isc.isc_features_to_metric(sides[0]["logits_unbiased"]),
        **metric_kid.kid_features_to_metric(x, y, kid_subset_size=SUBSET_SIZE, verbose=False),
        **metric_prc.prc_features_to_metric(x, y, verbose=False),
    }


def our_scores(fake, real, weights):
    extractor = load_extractor(f"inception:{weights}")
    batches = zip(real.split(16), torch.arange(len(real)).split(16), strict=True)
    reference = collect(batches, extractor)
    metrics = [
        FrechetDistance(),
        InceptionScore(),
        KernelDistance(subset_size=SUBSET_SIZE),
        PrecisionRecall(),
    ]
    for metric in metrics:
        metric.set_reference(reference)
    for levels, index in zip(fake.split(16), torch.arange(len(fake)).split(16), strict=True):
        features = extractor(levels)
        for metric in metrics:
            metric.update(Drawn(index, features.pool, features))
    return {name: value for metric in metrics for name, value in metric.compute().items()}


@pytest.mark.filterwarnings("ignore:.*not the public weights.*")
@pytest.mark.parametrize(
    ("their_way", "num_fake", "num_real"),
    [
        (their_scores_without_eigenvalues, 10, 8),
        pytest.param(their_scores, 131, 109, marks=pytest.mark.slow),
    ],
)
def test_scores_equal_torch_fidelity_s_from_images_to_numbers(tmp_path, their_way, num_fake, num_real):
    fake, real = pictures(num_fake, 1, spread=40), pictures(num_real, 2, spread=70)
    weights = tmp_path / "random.pth"
    torch.save(deciding_weights(fake[:4]), weights)
    theirs = their_way(fake, real, weights)
    ours = our_scores(fake, real, weights)
    print(f"\n{'':12}{'torch-fidelity':>18}{'genlab':>18}{'relative difference':>22}")
    for name, their_name in THEIR_NAMES.items():
        difference = abs(ours[name] / theirs[their_name] - 1) if theirs[their_name] else abs(ours[name])
        print(f"{name:12}{theirs[their_name]:18.9f}{ours[name]:18.9f}{difference:22.1e}")
    assert ours == pytest.approx({name: theirs[THEIR_NAMES[name]] for name in ours}, rel=1e-4)


def random_features(num, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num, 48, generator=generator).exp() * torch.linspace(0.1, 1.0, 48) + shift
    return Features(rows, torch.randn(num, 10, generator=generator) * 2)


@pytest.fixture(scope="module")
def feature_sets():
    fake, real = random_features(701, 1, shift=0.1), random_features(601, 2)
    x = real.pool.double()
    return fake, Reference(601, x.mean(0), torch.cov(x.mT), real.pool, torch.arange(601))


@pytest.mark.parametrize(
    "metric",
    [
        FrechetDistance(),
        InceptionScore(),
        KernelDistance(subset_size=200),
        PrecisionRecall(),
    ],
)
def test_each_metric_equals_torch_fidelity_s_on_the_same_features(metric, feature_sets):
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    fake, reference = feature_sets
    metric.set_reference(reference)
    metric.update(Drawn(torch.arange(701), fake.pool, fake))
    ours = metric.compute()
    sides = fake.pool, reference.features
    statistics = [metric_fid.fid_features_to_statistics(side.double()) for side in sides]
    theirs = {
        **metric_fid.fid_statistics_to_metric(*statistics, verbose=False),
        **metric_isc.isc_features_to_metric(fake.logits),
        **metric_kid.kid_features_to_metric(*sides, kid_subset_size=200, verbose=False),
        **metric_prc.prc_features_to_metric(*sides, verbose=False),
    }
    # Their kernel is computed in float32.
    assert ours == pytest.approx({name: theirs[THEIR_NAMES[name]] for name in ours}, rel=1e-5)


def test_frechet_distance_equals_scipy_s_matrix_root_and_torchmetrics(feature_sets):
    from scipy.linalg import sqrtm
    from torchmetrics.image.fid import _compute_fid

    fake, reference = feature_sets
    mean, cov = fake.pool.double().mean(0), torch.cov(fake.pool.double().mT)
    ours = frechet_distance(reference.mean, reference.covariance, mean, cov)
    root = np.trace(sqrtm((reference.covariance @ cov).numpy()).real)
    means = (mean - reference.mean).square().sum()
    expected = float(means + cov.trace() + reference.covariance.trace()) - 2 * root
    assert ours == pytest.approx(expected, rel=1e-8)
    theirs = _compute_fid(mean, cov, reference.mean, reference.covariance)
    assert ours == pytest.approx(float(theirs), rel=1e-8)
