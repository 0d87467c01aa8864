"""Scores of images that were made elsewhere, by the metrics and rulers of `genlab test`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

import torch

import genlab
from genlab.errors import DataError
from genlab.evaluation.copies import count_copies, num_compared
from genlab.evaluation.image_sets import ImageSet, channels_of
from genlab.evaluation.score import applied, begin, extractor_protocol, values_of
from genlab.metrics.base import Drawn, SampleMetric
from genlab.metrics.duplicates import DuplicateShare
from genlab.metrics.features import Extractor
from genlab.metrics.frechet import FrechetDistance
from genlab.metrics.frechet_noise import FrechetNoise
from genlab.metrics.inception_score import InceptionScore
from genlab.metrics.kernel_distance import KernelDistance
from genlab.metrics.precision_recall import PrecisionRecall
from genlab.metrics.reference import Collector
from genlab.text import nearest, shortened

METRICS: dict[str, tuple[type[SampleMetric], ...]] = {
    "fid": (FrechetDistance, FrechetNoise),
    "kid": (KernelDistance,),
    "is": (InceptionScore,),
    "precision": (PrecisionRecall,),
    "recall": (PrecisionRecall,),
    "duplicates": (DuplicateShare,),
}
"""What computes each score, by the score's name; a FID comes with its sampling noise."""

VERSIONS = ("torch", "torchvision", "numpy", "pillow")
"""Packages that turn files into features."""


def metrics_named(names: Sequence[str] | None, extractor: Extractor) -> list[SampleMetric]:
    """Returns the metrics of some scores; None for all that the extractor allows.

    Raises:
        ValueError: There is no such score.
    """
    if names is None:
        names = [name for name in METRICS if name != "is" or extractor.num_classes]
    for name in names:
        if name not in METRICS:
            raise ValueError(
                f"There is no score '{shortened(name)}'.{nearest(name, METRICS)} There are "
                f"{', '.join(METRICS)}."
            )
    return [kind() for kind in dict.fromkeys(kind for name in names for kind in METRICS[name])]


@torch.no_grad()
def score_images(
    images: ImageSet,
    reference: ImageSet,
    extractor: Extractor,
    metrics: Sequence[SampleMetric],
    training: ImageSet | None = None,
    batch_size: int = 100,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Returns the scores of images, with their protocol, in the form of a run's test.

    Every image is read once and brought to the levels of the reference.

    Args:
        images: What is scored.
        reference: The real images that they are compared with, which are to be unseen ones.
        extractor: The ruler.
        metrics: What to compute.
        training: The images that what is scored was learned from: copies of them are counted.
        batch_size: Images at a time.
        device: Where features are computed.

    Raises:
        DataError: Either side has fewer than two images.
    """
    for one in (images, reference, training):
        if one is not None and len(one) < 2:
            raise DataError(f"{one.name} has {len(one)} images; a score needs at least 2.")
    start, device = time.monotonic(), torch.device(device)
    extractor.to(device)
    measured = reference.statistics(extractor, batch_size, device, reference.levels)
    begin(metrics, device, measured)
    collector = Collector(extractor).to(device) if training is not None else None
    content = hashlib.sha256()
    for drawn in _drawn(images, extractor, reference.levels, batch_size, device):
        content.update(drawn.x.cpu().numpy().tobytes())
        for metric in (*metrics, *filter(None, [collector])):
            metric.update(drawn)
    entry: dict[str, Any] = {
        "values": values_of(metrics, len(reference), len(images)),
        "protocol": {
            **extractor_protocol(extractor),
            **images.protocol(),
            **reference.protocol(),
            "images": images.name,
            "num_fake": len(images),
            "images_digest": content.hexdigest()[:16],
            "data": reference.name,
            "num_real": len(reference),
            "data_fingerprint": reference.fingerprint()[:16],
            "levels": reference.levels,
            "metrics": applied(metrics),
            "versions": {"genlab": genlab.__version__, **{name: version(name) for name in VERSIONS}},
        },
    }
    if training is not None and collector is not None:
        num = num_compared(extractor)
        learned = training.statistics(extractor, batch_size, device, reference.levels, num)
        fake = collector.reference_of_all()
        entry["copies"] = count_copies(fake, learned, measured, extractor, device)[1]
    return {**entry, "seconds": time.monotonic() - start}


def _drawn(
    images: ImageSet, extractor: Extractor, num_levels: int, batch_size: int, device: torch.device
) -> Iterator[Drawn]:
    for index, levels in images.batches(batch_size, num_levels, channels_of(extractor), "scoring"):
        x = levels.to(device)
        yield Drawn(index, x, extractor(x, num_levels))
