"""Two processes that each score their share of numbered images and write the results."""

import json
import os
import sys

import torch
import torch.distributed as dist

from genlab.metrics.base import Drawn
from genlab.metrics.classifier_extractor import ClassifierExtractor
from genlab.metrics.frechet import FrechetDistance
from genlab.metrics.inception_score import InceptionScore
from genlab.metrics.kernel_distance import KernelDistance
from genlab.metrics.precision_recall import PrecisionRecall
from genlab.metrics.reference import cached_reference, collect
from genlab.networks.classifier import ConvClassifier
from genlab.shapes import DataSpec

NUM_REAL, NUM_FAKE, NUM_KEPT = 127, 101, 60  # primes, so that no share is equal


def images(num, seed, top):
    return torch.randint(0, top, (num, 1, 8, 8), generator=torch.Generator().manual_seed(seed)).byte()


def tiny_extractor():
    torch.manual_seed(3)
    spec = DataSpec("tiny", (1, 8, 8), num_classes=5, levels=17)
    return ClassifierExtractor(ConvClassifier(spec, num_features=12, base_channels=8), spec, "tiny", "tiny")


def shares(levels, rank, world_size, batch_size):
    index = torch.arange(rank, len(levels), world_size)
    # The empty last batch stands for a process that has run out of samples.
    for part in [*index.split(batch_size), index[:0]]:
        yield levels[part], part


def scores(rank, world_size, batch_size=16):
    """Returns all results of one process as plain numbers."""
    extractor = tiny_extractor()
    real = shares(images(NUM_REAL, 1, 17), rank, world_size, batch_size)
    reference = cached_reference("ranks", build=lambda: collect(real, extractor, 17, num_kept=NUM_KEPT))
    metrics = [FrechetDistance(), InceptionScore(), KernelDistance(5, 40), PrecisionRecall(num=50)]
    for metric in metrics:
        metric.set_reference(reference)
    for levels, index in shares(images(NUM_FAKE, 2, 12), rank, world_size, batch_size):
        features = extractor(levels, 17)
        for metric in metrics:
            metric.update(Drawn(index, features.pool, features))
    result = {name: value for metric in metrics for name, value in metric.compute().items()}
    kept = {"num": reference.num, "kept": float(reference.features.double().sum())}
    return {**result, **kept, "numbers": reference.index.tolist()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    child = os.fork()  # one import for both processes
    rank, folder = int(child == 0), sys.argv[1]
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(scores(rank, 2), file)
    dist.destroy_process_group()
    if child and os.waitpid(child, 0)[1]:
        sys.exit("The second process failed.")
