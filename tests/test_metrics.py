import io
import json
import math
import os
import pickle
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from metrics_process import images, scores, tiny_extractor
from random_inception import random_inception_weights
from safetensors.torch import save_file
from torch import nn

from genlab.errors import MetricError, exit_code
from genlab.files import digest, replacing
from genlab.metrics import inception_weights
from genlab.metrics.base import Drawn, Reference, chosen_rows
from genlab.metrics.classifier_extractor import save_extractor
from genlab.metrics.duplicates import duplicate_share, nearest_distances
from genlab.metrics.extractors import extractor_available, load_extractor
from genlab.metrics.features import Extractor, Features, MissingWeights, extractor_digest, full_precision
from genlab.metrics.frechet import FrechetDistance
from genlab.metrics.gaussian import covariance_factor, frechet_distance
from genlab.metrics.inception import (
    Convolution,
    InceptionExtractor,
    fold_batch_norms,
    load_inception,
    resize_like_tensorflow1,
)
from genlab.metrics.inception_score import InceptionScore
from genlab.metrics.kernel_distance import KernelDistance
from genlab.metrics.neighbours import neighbour_distances
from genlab.metrics.precision_recall import PrecisionRecall
from genlab.metrics.reference import cached_reference, collect
from genlab.networks.classifier import ConvClassifier
from genlab.shapes import DataSpec

METRICS = [FrechetDistance, InceptionScore, KernelDistance, PrecisionRecall]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("GENLAB_INCEPTION_WEIGHTS", raising=False)


@pytest.fixture(scope="module")
def inception():
    return InceptionExtractor(random_inception_weights())


def normal(num, dim, seed=0, scale=1.0, shift=0.0):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)) * scale + shift


def as_reference(rows):
    x = rows.double()
    return Reference(len(x), x.mean(0), torch.cov(x.mT), rows, torch.arange(len(x)))


def result(metric, fake, real=None, logits=None, order=None, batch_size=1000):
    """Feeds a metric with rows in some order and in batches, and returns its scores."""
    if real is not None:
        metric.set_reference(as_reference(real))
    order = torch.arange(len(fake)) if order is None else order
    for part in order.split(batch_size):
        features = Features(fake[part], None if logits is None else logits[part])
        metric.update(Drawn(part, fake[part], features))
    return metric.compute()


# The Frechet distance


@pytest.mark.parametrize(("num", "dim"), [(500, 16), (20, 64), (2, 8)])
def test_frechet_distance_of_identical_sets_is_zero_even_with_fewer_samples_than_dimensions(num, dim):
    rows = normal(num, dim, scale=torch.linspace(0.01, 3.0, dim))
    trace = torch.cov(rows.double().mT).trace()
    assert result(FrechetDistance(), rows, rows)["fid"] <= 1e-6 * trace


def test_frechet_distance_of_commuting_gaussians_has_its_closed_form():
    a, b = torch.rand(2, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    mean = torch.linspace(-1, 1, 10, dtype=torch.float64)
    rotation = torch.linalg.qr(normal(10, 10).double()).Q
    expected = mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    cov1, cov2 = (rotation @ torch.diag(variance) @ rotation.mT for variance in (a, b))
    assert frechet_distance(mean, cov1, 0 * mean, cov2) == pytest.approx(float(expected), rel=1e-9)


def test_frechet_distance_equals_the_general_eigenvalues_of_the_product_and_is_symmetric():
    first, second = (
        as_reference(normal(300, 24)),
        as_reference(normal(300, 24, seed=1) @ normal(24, 24, seed=2)),
    )
    root = torch.linalg.eigvals(first.covariance @ second.covariance).sqrt().real.sum()
    means = (first.mean - second.mean).square().sum()
    expected = float(means + first.covariance.trace() + second.covariance.trace() - 2 * root)
    forward = frechet_distance(first.mean, first.covariance, second.mean, second.covariance)
    backward = frechet_distance(second.mean, second.covariance, first.mean, first.covariance)
    assert forward == pytest.approx(expected, rel=1e-9)
    assert backward == pytest.approx(expected, rel=1e-9)


def test_constant_offset_of_all_features_leaves_the_frechet_distance():
    # Multiples of 1/256, so that adding 1024 is exact in float32.
    fake, real = ((normal(400, 8, seed) * 256).round() / 256 * (1 + seed) for seed in (0, 1))
    plain = result(FrechetDistance(), fake, real)["fid"]
    moved = FrechetDistance()
    moved.set_reference(collected(real + 1024.0))
    assert result(moved, fake + 1024.0)["fid"] == pytest.approx(plain, rel=1e-6)


class Pixels(Extractor):
    """Extractor that returns pixels as features, for closed forms."""

    def __init__(self, rows):
        super().__init__("pixels", rows.shape[1], 0, "none", "none")
        self.rows = rows

    def extract(self, levels, num_levels):
        return Features(self.rows[levels[:, 0, 0, 0].long()])


def collected(rows, num_kept=10_000, batch_size=50):
    index = torch.arange(len(rows))
    blank = torch.zeros(batch_size, 1, 1, 1, dtype=torch.uint8)
    extractor = Pixels(rows)

    def batches():
        for part in index.split(batch_size):
            extractor.rows = rows[part]
            levels = blank[: len(part)].clone()
            levels[:, 0, 0, 0] = torch.arange(len(part)).byte()
            yield levels, part

    return collect(batches(), extractor, num_kept=num_kept)


def test_collapsed_set_has_its_closed_form():
    real = normal(100, 16)
    point = torch.full((50, 16), 2.0)
    reference = as_reference(real)
    expected = (reference.mean - 2.0).square().sum() + reference.covariance.trace()
    assert result(FrechetDistance(), point, real)["fid"] == pytest.approx(float(expected), rel=1e-6)
    assert result(FrechetDistance(), point, point)["fid"] == pytest.approx(0.0, abs=1e-9)
    assert result(FrechetDistance(), real, point)["fid"] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("spectrum", [[1.0, 2.0, 3.0], [1.0, 1.0, 0.0], [1.0, -1e-9, 2.0], [0.0, 0.0, 0.0]])
def test_factor_times_its_transpose_is_the_covariance_where_cholesky_fails_too(spectrum):
    rotation = torch.linalg.qr(normal(3, 3).double()).Q
    cov = rotation @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ rotation.mT
    factor = covariance_factor(cov)
    assert torch.allclose(factor @ factor.mT, cov, atol=1e-8)


# The Inception score


def test_inception_score_of_undecided_logits_is_one():
    values = result(InceptionScore(), normal(40, 2), logits=torch.full((40, 7), 3.0))
    assert values == pytest.approx({"is": 1.0, "is_std": 0.0})


@pytest.mark.parametrize("confidence", [50.0, 1e4])
def test_inception_score_of_sure_and_distinct_classes_is_their_number(confidence):
    logits = torch.eye(7).repeat(3, 1) * confidence
    assert result(InceptionScore(num_splits=1), normal(21, 2), logits=logits)["is"] == pytest.approx(7.0)


def test_inception_score_is_the_exponential_of_the_mean_divergence_over_splits():
    logits = normal(25, 6, scale=2.0)
    p = logits.double().softmax(1)[np.random.RandomState(2020).permutation(25)]
    parts = np.split(p.numpy(), [25 * i // 4 for i in (1, 2, 3)])
    expected = [np.exp((part * np.log(part / part.mean(0))).sum(1).mean()) for part in parts]
    values = result(InceptionScore(num_splits=4), normal(25, 2), logits=logits)
    assert values == pytest.approx({"is": np.mean(expected), "is_std": np.std(expected)}, rel=1e-9)


@pytest.mark.fault(49)
def test_inception_score_with_fewer_samples_than_splits_says_so_in_its_protocol():
    metric = InceptionScore(num_splits=10)
    assert result(metric, normal(4, 2), logits=normal(4, 3))["is"] == pytest.approx(1.0)
    assert metric.protocol()["num_splits"] == 4


# The kernel distance


@pytest.mark.parametrize(("degree", "gamma", "coef"), [(3, None, 1.0), (2, 0.7, 0.5)])
def test_kernel_distance_on_the_full_sets_is_the_unbiased_discrepancy(degree, gamma, coef):
    fake, real = normal(12, 5).double(), normal(12, 5, seed=1, shift=0.5).double()

    def kernel(a, b):
        return float(((gamma or 1 / 5) * (a @ b) + coef) ** degree)

    pairs = [(i, j) for i in range(12) for j in range(12)]
    within = sum(kernel(fake[i], fake[j]) + kernel(real[i], real[j]) for i, j in pairs if i != j)
    across = sum(kernel(fake[i], real[j]) for i, j in pairs)
    metric = KernelDistance(3, 1000, degree=degree, gamma=gamma, coef=coef)
    values = result(metric, fake.float(), real.float())
    assert values["kid"] == pytest.approx(within / (12 * 11) - 2 * across / 144, rel=1e-5)
    assert "kid_std" not in values  # all subsets are the whole sets: their spread would be 0 and say nothing
    assert metric.protocol()["subset_size"] == 12


@pytest.mark.parametrize(("num_fake", "num_real"), [(15, 40), (40, 15)])
def test_kernel_distance_shrinks_its_subsets_to_the_smaller_side_and_says_so(num_fake, num_real):
    metric = KernelDistance(4, subset_size=30)
    assert math.isfinite(result(metric, normal(num_fake, 4), normal(num_real, 4))["kid"])
    assert metric.protocol()["subset_size"] == 15


def test_kernel_distance_of_one_distribution_is_zero_within_its_own_error():
    values = result(KernelDistance(200, 50), normal(3000, 8), normal(3000, 8, seed=1))
    assert abs(values["kid"]) < 4 * values["kid_std"] / math.sqrt(60)  # 3000 / 50 independent subsets
    assert result(KernelDistance(50, 50), normal(500, 8, shift=0.5), normal(500, 8, seed=1))["kid"] > 0.1


def test_kernel_distance_draws_from_at_most_num_samples_of_each_side():
    fake, real = normal(90, 4), normal(80, 4, seed=1)
    chosen = chosen_rows(torch.arange(90), 30), chosen_rows(torch.arange(80), 30)
    limited = result(KernelDistance(5, 20, num=30), fake, real)
    assert limited == pytest.approx(result(KernelDistance(5, 20), fake[chosen[0]], real[chosen[1]]))


# Precision and recall


def line(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None]


@pytest.mark.parametrize(
    "rows", [normal(200, 16), normal(200, 3, shift=1000.0), line(*[1.0] * 5, *[2.0] * 5)]
)
def test_identical_sets_have_precision_and_recall_one(rows):
    assert result(PrecisionRecall(), rows, rows) == {"precision": 1.0, "recall": 1.0}


def test_disjoint_sets_have_precision_and_recall_zero():
    assert result(PrecisionRecall(), normal(50, 4), normal(50, 4, shift=100.0)) == {
        "precision": 0.0,
        "recall": 0.0,
    }


def test_half_covered_sets_have_half_precision_and_the_recall_of_what_is_covered():
    real = line(*range(10))
    fake = line(0.5, 1.5, 2.5, 3.5, 100, 101, 102, 103)
    assert result(PrecisionRecall(k=1), fake, real) == {"precision": 0.5, "recall": 0.5}


def test_mode_collapse_keeps_precision_and_loses_recall():
    values = result(PrecisionRecall(), normal(200, 4, scale=1e-3), normal(200, 4, seed=1))
    assert values["precision"] == 1.0
    assert values["recall"] < 0.05


@pytest.mark.parametrize(("k", "precision"), [(1, 0.0), (2, 1 / 3)])
def test_a_ball_reaches_to_the_kth_other_image_and_includes_its_border(k, precision):
    # Around 9, the last of 0 ... 9: radius 1 for k = 1 and 2 for k = 2, which just reaches 11.
    assert result(PrecisionRecall(k=k), line(11, 50, 60), line(*range(10)))["precision"] == pytest.approx(
        precision
    )


def test_precision_recall_lowers_k_for_tiny_sets_and_says_so():
    metric = PrecisionRecall(k=5)
    assert result(metric, line(0, 1, 2), line(0, 1, 2, 3))["precision"] == 1.0
    assert metric.protocol()["k"] == 2


@pytest.mark.parametrize("own", [False, True])
def test_neighbour_distances_equal_the_sorted_matrix_in_every_chunk_size(own, monkeypatch):
    a, b = normal(23, 4), normal(17, 4, seed=1)
    whole = torch.cdist(a.double(), a.double() if own else b.double())
    expected = whole.sort(1).values[:, 2 if own else 1].square()
    for entries in (1, 40, 2**20):
        monkeypatch.setattr("genlab.metrics.neighbours._CHUNK_ENTRIES", entries)
        found = neighbour_distances(a, None if own else b, k=2)
        assert torch.allclose(found, expected)


# Duplicates


def test_duplicate_share_is_small_for_real_data_and_one_at_collapse():
    real = normal(1000, 8)
    half = torch.cat([normal(500, 8, seed=2), normal(1, 8, seed=3).expand(500, -1)])
    assert duplicate_share(real, real) == pytest.approx(0.01, abs=0.002)
    assert duplicate_share(normal(1000, 8, seed=1), real) < 0.03
    assert duplicate_share(half, real) == pytest.approx(0.5, abs=0.03)
    assert duplicate_share(torch.zeros(1000, 8), real) == 1.0


def test_collapse_is_seen_where_the_real_images_hold_copies_too():
    assert duplicate_share(torch.ones(100, 8), normal(50, 8).repeat(2, 1)) == 1.0


@pytest.mark.parametrize("dim", [3, 64, 1000])
def test_copies_are_at_distance_exactly_zero_whatever_the_rounding(dim):
    rows = normal(40, dim, shift=7.0)
    assert not nearest_distances(rows, rows[torch.randperm(40)]).any()
    assert not nearest_distances(rows.repeat(5, 1)).any()
    copies = rows.repeat(5, 1)
    assert result(PrecisionRecall(), copies[7:], copies) == {"precision": 1.0, "recall": 1.0}


def test_duplicate_share_compares_equal_counts():
    assert duplicate_share(normal(4000, 3, seed=1), normal(200, 3)) < 0.05


def test_nearest_distances_find_a_copy_at_distance_zero():
    train = normal(50, 6, shift=100.0)
    samples = torch.cat([train[7:8], train[3:4] + 1.0])
    assert nearest_distances(samples, train).tolist() == pytest.approx([0.0, math.sqrt(6)], abs=1e-4)


# What all metrics share


def make(metric):
    return metric(num=40) if metric in (KernelDistance, PrecisionRecall) else metric()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_scores_do_not_depend_on_the_order_and_size_of_batches(metric, batch_size):
    fake, real, logits = normal(61, 6), normal(53, 6, seed=1), normal(61, 4, seed=2)
    plain = result(make(metric), fake, real, logits)
    shuffled = torch.randperm(61, generator=torch.Generator().manual_seed(batch_size))
    other = result(make(metric), fake, real, logits, shuffled, batch_size)
    assert other == pytest.approx(plain, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_scores_start_anew_after_reset(metric):
    fake, real, logits = normal(30, 6), normal(30, 6, seed=1), normal(30, 4, seed=2)
    instance = make(metric)
    result(instance, fake * 2, real, logits * 2)
    instance.reset()
    assert result(instance, fake, real, logits) == result(make(metric), fake, real, logits)


@pytest.mark.parametrize("metric", METRICS)
def test_scores_leave_the_random_numbers_of_training_alone(metric):
    torch.manual_seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    result(make(metric), normal(50, 6), normal(50, 6, seed=1), normal(50, 4, seed=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


@pytest.mark.fault(50)
@pytest.mark.parametrize("metric", METRICS)
def test_nan_in_the_features_is_an_error_that_says_so(metric):
    rows, logits = normal(20, 6), normal(20, 4)
    rows[3, 2] = logits[3, 2] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        result(make(metric), rows, normal(20, 6), logits)


@pytest.mark.fault(49)
@pytest.mark.parametrize("metric", METRICS)
def test_a_sample_counted_twice_or_a_single_one_is_refused(metric):
    rows, logits, real = normal(8, 6), normal(8, 4), normal(20, 6)
    with pytest.raises(ValueError, match="counted twice"):
        result(make(metric), rows, real, logits, order=torch.tensor([0, 1, 2, 2]))
    with pytest.raises(ValueError, match="at least 2 samples"):
        result(make(metric), rows, real, logits, order=torch.tensor([5]))


@pytest.mark.parametrize("metric", [FrechetDistance, KernelDistance, PrecisionRecall])
def test_a_metric_without_reference_says_what_to_call(metric):
    instance = metric()
    if isinstance(instance, FrechetDistance):
        instance.allocate(6)
    with pytest.raises(ValueError, match="set_reference"):
        result(instance, normal(10, 6))


def test_inception_score_refuses_an_extractor_without_logits():
    with pytest.raises(ValueError, match="no logits"):
        result(InceptionScore(), normal(10, 6))


def test_metrics_share_the_storage_of_one_feature_tensor():
    rows = normal(10, 6)
    metrics = [KernelDistance(), PrecisionRecall()]
    for metric in metrics:
        metric.update(Drawn(torch.arange(10), rows, Features(rows)))
    assert {metric.rows[0].data_ptr() for metric in metrics} == {rows.data_ptr()}


def test_one_and_two_processes_agree(tmp_path):
    script = Path(__file__).parent / "metrics_process.py"
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "GENLAB_CACHE": str(tmp_path / "shared")}
    both = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
    alone = scores(0, 1, batch_size=23)
    assert both.wait(timeout=120) == 0
    kept = alone.pop("numbers")
    for rank in range(2):
        together = json.loads((tmp_path / f"{rank}.json").read_text())
        assert together.pop("numbers") == kept
        assert together == pytest.approx(alone, rel=1e-6, abs=1e-9)


def test_chosen_rows_depend_on_the_numbers_and_not_on_their_order():
    index = torch.arange(1000, 1500)
    shuffled = index[torch.randperm(500, generator=torch.Generator().manual_seed(0))]
    chosen = index[chosen_rows(index, 100)]
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == 100
    assert torch.equal(shuffled[chosen_rows(shuffled, 100)], chosen)
    assert torch.equal(shuffled[chosen_rows(shuffled)], index)
    assert 1150 < chosen.double().mean() < 1350  # spread, not the first ones


# The reference


@pytest.mark.parametrize("num_kept", [20, 45, 1000])
def test_collected_statistics_are_those_of_all_rows_and_kept_rows_keep_their_numbers(num_kept):
    rows = normal(211, 5, shift=3.0)
    reference = collected(rows, num_kept, batch_size=17)
    assert reference.num == 211
    assert torch.allclose(reference.mean, rows.double().mean(0), rtol=1e-12)
    assert torch.allclose(reference.covariance, torch.cov(rows.double().mT), rtol=1e-9)
    assert torch.equal(reference.index, chosen_rows(torch.arange(211), num_kept))
    assert torch.equal(reference.features, rows[reference.index])
    assert reference.protocol["num_real"] == 211
    assert reference.protocol["num_kept"] == len(reference.index) == min(num_kept, 211)


@pytest.mark.fault(51)
def test_cached_reference_is_built_once_for_a_key_and_again_for_another():
    built = []

    def build():
        built.append(1)
        return collected(normal(30, 4))

    first = cached_reference("pixels-a", "digest", 30, build=build)
    again = cached_reference("pixels-a", "digest", 30, build=build)
    assert len(built) == 1
    for name in ("mean", "covariance", "features", "index"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert (again.num, again.protocol) == (first.num, first.protocol)
    cached_reference("pixels-b", "digest", 30, build=build)
    cached_reference("pixels-a", "digest", 31, build=build)
    assert len(built) == 3


@pytest.mark.fault(53)
@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"", lambda data: b"x" * 64])
def test_damaged_cache_is_rebuilt_with_a_warning(tmp_path, damage):
    cached_reference("key", build=lambda: collected(normal(30, 4)))
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with pytest.warns(UserWarning, match="damaged"):
        cached_reference("key", build=lambda: collected(normal(30, 4)))
    assert file.read_bytes() == whole


def test_a_file_that_could_not_be_written_leaves_the_old_one_and_no_rest(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    with pytest.raises(RuntimeError), replacing(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "old"


# Extractors


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    spec = DataSpec("tiny", (3, 8, 8), num_classes=4, levels=17)
    network = ConvClassifier(spec, num_features=6, base_channels=4)
    path = tmp_path / "run" / "extractor.safetensors"
    init_args = {"num_features": 6, "base_channels": 4}
    save_extractor(path, network, spec, {"init_args": init_args, "command": "genlab fit"})
    return path, network.eval()


def test_a_saved_extractor_gives_the_network_s_features_and_logits(saved):
    path, network = saved
    levels = torch.randint(0, 17, (5, 3, 8, 8)).byte()
    for source in (path, str(path), path.parent):
        extractor = load_extractor(source)
        features = extractor(levels, 17)
        with torch.no_grad():
            pool = network.features(levels.float() / 8.0 - 1.0)
        assert torch.allclose(features.pool, pool, atol=1e-6)
        assert torch.allclose(features.logits, network.head(pool), atol=1e-5)
        assert (extractor.num_features, extractor.num_classes) == (6, 4)
        assert extractor_available(source) is None


def test_digest_tells_weights_names_and_words_apart(saved):
    path, _ = saved
    weights = {"a": torch.zeros(3), "b": torch.ones(2)}
    changed = {"a": torch.zeros(3), "b": torch.tensor([1.0, 1.0 + 1e-7])}
    digests = [
        extractor_digest(weights, "net"),
        extractor_digest(changed, "net"),
        extractor_digest({"a": weights["b"], "b": weights["a"]}, "net"),
        extractor_digest(weights, "ne", "t"),
    ]
    assert len(set(digests)) == 4
    assert extractor_digest(dict(reversed(weights.items())), "net") == digests[0]
    assert load_extractor(path).digest == load_extractor(path).digest


class Probe(Extractor):
    """Extractor that reports the precision it runs in."""

    def __init__(self):
        super().__init__("probe", 1, 0, "none", "none")
        self.linear = nn.Linear(4, 1)

    def extract(self, levels, num_levels):
        self.seen = (torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), precision())
        return Features(self.linear(levels.float().flatten(1)))


def precision():
    matmul = torch.backends.cuda.matmul
    return matmul.fp32_precision if hasattr(matmul, "fp32_precision") else matmul.allow_tf32


def test_extractors_compute_in_full_precision_and_restore_what_was_outside():
    probe = Probe()
    before = torch.get_float32_matmul_precision()
    levels = torch.randint(0, 256, (3, 1, 2, 2)).byte()
    plain = probe(levels).pool
    try:
        torch.set_float32_matmul_precision("medium")
        outside = precision()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = probe(levels).pool
            assert torch.is_autocast_enabled("cpu")
        assert precision() == outside != probe.seen[2]
        assert torch.get_float32_matmul_precision() == "medium"
        with pytest.raises(RuntimeError), full_precision(torch.device("cpu")):
            raise RuntimeError
        assert precision() == outside
    finally:
        torch.set_float32_matmul_precision(before)
    assert probe.seen[:2] == (False, False)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plain)
    assert not inside.requires_grad


def test_extractors_stay_in_evaluation_mode():
    extractor = tiny_extractor()
    levels = images(16, 0, 17)
    before = extractor(levels, 17).pool
    nn.Sequential(extractor).train()
    assert not any(module.training for module in extractor.modules())
    assert torch.equal(extractor(levels, 17).pool, before)


def test_features_do_not_depend_on_the_batch_size():
    extractor, levels = tiny_extractor(), images(33, 0, 17)
    single = torch.cat([extractor(part, 17).pool for part in levels.split(1)])
    assert torch.allclose(extractor(levels, 17).pool, single, atol=1e-6)


@pytest.mark.fault(50)
@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (torch.zeros(2, 1, 8, 8), "uint8"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), "batch, channels"),
        (torch.full((2, 1, 8, 8), 17, dtype=torch.uint8), "level 17"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "1 channels"),
    ],
)
def test_what_is_not_an_image_of_the_declared_levels_is_refused(levels, message):
    with pytest.raises(ValueError, match=message):
        tiny_extractor()(levels, 17)


def test_images_of_another_size_and_grey_images_are_fitted_to_the_network(saved):
    extractor = load_extractor(saved[0])
    grey = torch.full((2, 1, 16, 12), 5, dtype=torch.uint8)
    colour = torch.full((2, 3, 8, 8), 5, dtype=torch.uint8)
    assert torch.allclose(extractor(grey, 17).pool, extractor(colour, 17).pool, atol=1e-5)
    # Every fourth column is white: without antialiasing, a quarter of the size would miss all of them.
    stripes = torch.where(torch.arange(32) % 4 == 0, 1.0, -1.0).expand(1, 3, 32, 32)
    assert torch.allclose(extractor._fit(stripes)[..., 1:-1], torch.tensor(-0.5), atol=0.15)


def test_only_networks_of_this_package_are_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"under genlab\.networks"):
        save_extractor(tmp_path / "foreign.safetensors", nn.Linear(2, 2), DataSpec("d", (1, 8, 8), 2))
    file = tmp_path / "evil.safetensors"
    header = {"network": "subprocess.Popen", "spec": {}, "init_args": {}, "name": "evil"}
    save_file({"a": torch.zeros(1)}, file, metadata={"genlab": json.dumps(header)})
    with pytest.raises(ValueError, match=r"under genlab\.networks"):
        load_extractor(file)


@pytest.mark.fault(52)
def test_missing_and_damaged_extractors_are_named_before_training(tmp_path, saved):
    assert "is not there" in extractor_available(tmp_path / "nowhere.safetensors")
    assert "is not there" in extractor_available(tmp_path)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(saved[0].read_bytes()[:50])
    assert "damaged" in extractor_available(damaged)
    with pytest.raises(MissingWeights):
        load_extractor(damaged)


# Inception


@pytest.mark.parametrize("size", [(5, 8), (40, 31)])
def test_resizing_reads_input_i_times_old_over_new_without_shift_or_smoothing(size):
    x = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))

    def value(i, j, new=13):
        y, x_ = i * size[0] / new, j * size[1] / new
        total = 0.0
        for row, weight in ((int(y), 1 - y % 1), (min(int(y) + 1, size[0] - 1), y % 1)):
            for column, other in ((int(x_), 1 - x_ % 1), (min(int(x_) + 1, size[1] - 1), x_ % 1)):
                total += weight * other * float(x[0, 0, row, column])
        return total

    expected = torch.tensor([[value(i, j) for j in range(13)] for i in range(13)])
    assert torch.allclose(resize_like_tensorflow1(x, 13)[0, 0], expected, atol=1e-5)


def test_resizing_to_the_same_size_changes_nothing():
    x = torch.rand(1, 3, 9, 9)
    assert torch.equal(resize_like_tensorflow1(x, 9), x)


def test_folded_convolutions_equal_convolution_and_batch_norm():
    weights = random_inception_weights()
    folded = fold_batch_norms(weights)
    name = "Mixed_6b.branch7x7_2"
    convolution = nn.Conv2d(128, 128, (1, 7), padding=(0, 3), bias=False)
    norm = nn.BatchNorm2d(128, eps=1e-3).eval()
    convolution.load_state_dict({"weight": weights[f"{name}.conv.weight"]})
    norm.load_state_dict(
        {key.rpartition(".")[2]: value for key, value in weights.items() if key.startswith(f"{name}.bn.")}
    )
    single = Convolution(128, 128, (1, 7))
    single.load_state_dict({part: folded[f"{name}.{part}"] for part in ("weight", "bias")})
    x = torch.randn(2, 128, 5, 9)
    assert torch.allclose(single(x), norm(convolution(x)).relu(), atol=1e-5)


def test_inception_reads_grey_images_and_other_level_counts_as_rgb_bytes(inception):
    levels = images(2, 0, 17)
    grey = inception(levels, 17)
    rgb = inception((levels.float() * 255 / 16).round().byte().repeat(1, 3, 1, 1), 256)
    assert grey.pool.shape == (2, 2048)
    assert grey.logits.shape == (2, 1008)
    assert torch.allclose(grey.pool, rgb.pool, atol=1e-5)
    single = inception(levels[1:], 17)
    assert torch.allclose(single.pool, grey.pool[1:], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="2 channels"):
        inception(levels.repeat(1, 2, 1, 1), 17)


@pytest.fixture
def public_file(tmp_path, monkeypatch):
    """A stand-in for the public weights file, served from a folder, with its hash."""
    served = tmp_path / "served.pth"
    served.write_bytes(b"weights" * 1000)
    monkeypatch.setattr(inception_weights, "WEIGHTS_SHA256", digest(served))
    urls = (f"file://{tmp_path}/nothing/weights-a.pth", f"file://{served}")
    monkeypatch.setattr(inception_weights, "WEIGHTS_URLS", urls)
    return served


def test_weights_are_downloaded_once_and_checked(public_file, tmp_path):
    found = inception_weights.find_weights()
    assert found == tmp_path / "cache" / "weights-a.pth"
    assert found.read_bytes() == public_file.read_bytes()
    public_file.unlink()
    assert inception_weights.find_weights() == found
    assert extractor_available("inception") is None


@pytest.mark.fault(53)
def test_tampered_cache_is_removed_and_fetched_again(public_file):
    found = inception_weights.find_weights()
    found.write_bytes(found.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="damaged"):
        assert inception_weights.find_weights() == found
    assert found.read_bytes() == public_file.read_bytes()


@pytest.mark.fault(53)
def test_tampered_download_is_removed_and_the_remedy_named(public_file, tmp_path):
    public_file.write_bytes(b"half")
    with pytest.raises(MissingWeights) as raised:
        inception_weights.find_weights()
    message = str(raised.value)
    for word in ("SHA-256", "GENLAB_INCEPTION_WEIGHTS", str(tmp_path / "cache"), "inception:/path", "digits"):
        assert word in message
    assert len(message.splitlines()) <= 2
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_file()]
    assert extractor_available("inception") == message


def test_weights_in_torch_s_own_cache_are_found(public_file, tmp_path):
    place = tmp_path / "torch" / "hub" / "checkpoints" / "weights-a.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(public_file.read_bytes())
    public_file.unlink()
    assert inception_weights.find_weights() == place


def test_a_named_weights_file_is_taken_with_a_warning_if_it_is_not_the_public_one(
    public_file, tmp_path, monkeypatch
):
    other = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(1)}, other)
    monkeypatch.setenv("GENLAB_INCEPTION_WEIGHTS", str(public_file))
    assert inception_weights.find_weights() == public_file
    with pytest.warns(UserWarning, match="not the public"):
        assert inception_weights.find_weights(other) == other
    with pytest.raises(MissingWeights, match="does not hold"):
        load_inception(other)
    assert "missing" in extractor_available("inception:/nowhere.pth")


class _Marks:
    """Writes a file where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def _no_weights(folder):
    """Files that are no weights, and headers that no extractor has."""
    harmful = pickle.dumps(_Marks(folder / "marker"))
    contents = {"pickle": harmful, "empty": b"", "text": b"weights", "number": pickle.dumps(5)}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", harmful)
        archive.writestr("archive/version", "3")
    contents["zip"] = out.getvalue()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            member.size = len(harmful)
            archive.addfile(member, io.BytesIO(harmful))
    contents["tar"] = out.getvalue()
    for name, content in contents.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    network = {"network": "genlab.networks.classifier.ConvClassifier", "init_args": {}, "name": "x"}
    spec = {"name": "x", "shape": [1, 8, 8], "num_classes": 4}
    headers = {
        "list": [1],
        "no-spec": network,
        "text-spec": {**network, "spec": "x"},
        "odd-spec": {**network, "spec": {**spec, "shape": "eight"}},
        "no-weights": {**network, "spec": spec},
        "odd-arguments": {**network, "spec": spec, "init_args": {"num_features": "x"}},
        "foreign": {**network, "spec": spec, "network": "os.system"},
        "no-class": {**network, "spec": spec, "network": "genlab.networks.classifier.torch"},
        "deep": {**network, "spec": spec, "network": "genlab.networks..x"},
    }
    for name, header in headers.items():
        save_file({"a": torch.zeros(1)}, folder / f"{name}.safetensors", {"genlab": json.dumps(header)})
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.fault(54)
def test_a_file_that_is_no_extractor_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    for path in _no_weights(tmp_path):
        by_variable = path.name in ("zip.safetensors", "pickle.safetensors")
        monkeypatch.setenv("GENLAB_INCEPTION_WEIGHTS", str(path))
        for source in (path, f"inception:{path}", *(["inception"] if by_variable else [])):
            with warnings.catch_warnings(), pytest.raises(MetricError) as error:
                warnings.simplefilter("ignore")
                load_extractor(source)
            assert exit_code(error.value) == 5 and "\n" not in str(error.value)
    for name in ("list", "no-spec", "text-spec"):  # said before a training by the header alone
        assert "not an extractor" in extractor_available(tmp_path / f"{name}.safetensors")
    assert not (tmp_path / "marker").exists()
