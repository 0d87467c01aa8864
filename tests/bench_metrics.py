"""Measures the metrics' two costs against the usual ways: the Frechet distance and the Inception forward."""

import time

import numpy as np
import pytest
import torch
from random_inception import random_inception_weights

from genlab.metrics.gaussian import covariance_factor, frechet_distance
from genlab.metrics.inception import InceptionExtractor

pytestmark = pytest.mark.bench


def seconds(functions, rounds):
    """Returns each function's fastest time; interleaved, since the machine's speed drifts."""
    best = dict.fromkeys(functions, float("inf"))
    values = {}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            values[name] = function()
            best[name] = min(best[name], time.perf_counter() - start)
    return best, values


@pytest.mark.parametrize(("num", "rounds"), [(10_000, 3), (1_500, 1)])
def test_frechet_distance_of_2048_features(num, rounds):
    from scipy.linalg import sqrtm

    generator = torch.Generator().manual_seed(0)
    spectrum = torch.linspace(0, 6, 2048).neg().exp()
    sets = [torch.randn(num, 2048, generator=generator, dtype=torch.float64) * spectrum for _ in range(2)]
    (m1, c1), (m2, c2) = ((x.mean(0), torch.cov(x.mT)) for x in sets)
    factor = covariance_factor(c1)
    product = (c1 @ c2).numpy()
    rest = float((m1 - m2).square().sum() + c1.trace() + c2.trace())

    def eigenvalues():
        return rest - 2 * np.sqrt(np.linalg.eigvals(product).astype(complex)).real.sum()

    ways = {
        "genlab": lambda: frechet_distance(m1, c1, m2, c2),
        "genlab, factor at hand": lambda: frechet_distance(m1, c1, m2, c2, factor),
        "numpy eigvals": eigenvalues,
        "scipy sqrtm": lambda: rest - 2 * np.trace(sqrtm(product).real),
    }
    best, values = seconds(ways, rounds)
    for name in ways:
        print(f"\n{name:24}{best[name]:10.2f} s  {values[name]:.10f}", end="")
    same = frechet_distance(m1, c1, m1, c1, factor) / float(c1.trace())
    print(f"\nidentical sets: {same:.1e} of the trace")
    assert same < 1e-6
    assert best["genlab"] < best["numpy eigvals"] < best["scipy sqrtm"]


def test_inception_forward(tmp_path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    weights, file = random_inception_weights(), tmp_path / "weights.pth"
    torch.save(weights, file)
    layers = ["2048", "logits_unbiased"]
    theirs = FeatureExtractorInceptionV3("inception", layers, feature_extractor_weights_path=str(file))
    ours = InceptionExtractor(weights)
    images = torch.randint(0, 256, (16, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    best, values = seconds({"torch-fidelity": lambda: theirs(images), "genlab": lambda: ours(images)}, 5)
    for name, time_taken in best.items():
        print(f"\n{name:24}{16 / time_taken:10.2f} images/s", end="")
    print(f"\nratio {best['torch-fidelity'] / best['genlab']:.2f}")
    for a, b in zip(values["torch-fidelity"], values["genlab"], strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))
