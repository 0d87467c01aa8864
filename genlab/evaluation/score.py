"""One pass over a model and a data module gives every score, each with its protocol."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from genlab.data.base import DataModule
from genlab.evaluation.given import given_for
from genlab.families.base import Model
from genlab.families.capabilities import Samples
from genlab.metrics.base import Reference
from genlab.metrics.features import Extractor, Features
from genlab.metrics.reference import NUM_KEPT, cached_reference, collect, statistics
from genlab.runs.metrics_file import short_name
from genlab.shapes import observed, to_levels

ENOUGH_IMAGES = 10_000
"""Below this many images on either side, a score carries their number in its name."""

KEPT_BYTES = 2**28
"""Most bytes of samples that are kept; others are drawn again when they are wanted."""


@dataclass
class Drawn:
    """The samples of one pass, for whatever else looks at them.

    Attributes:
        features: The statistics and features of all samples, or of 10,000 of them, over all devices.
        seed: Their seed.
        levels: Of samples drawn on this device, by number, as far as they fit into memory.
    """

    features: Reference
    seed: int
    levels: dict[int, Tensor]

    def images(self, model: Model, numbers: Sequence[int]) -> Tensor:
        """Returns numbered samples as levels, drawn again where they were not kept."""
        missing = torch.tensor([number for number in numbers if number not in self.levels])
        if len(missing):
            again = sample_levels(model, missing, self.seed).cpu()
            self.levels.update(zip(missing.tolist(), again, strict=True))
        return torch.stack([self.levels[number] for number in numbers])


@dataclass
class Scores:
    """Values of the metrics and how they were obtained.

    Attributes:
        values: Number by name; a name such as `fid@797` says that fewer than 10,000 images were used.
        protocol: Everything that must be equal for two scores to be compared.
        seconds: Time for drawing and for scoring.
        drawn: What was drawn, where it was to be kept.
    """

    values: dict[str, float]
    protocol: dict[str, Any]
    seconds: float = field(compare=False, default=0.0)
    drawn: Drawn | None = field(compare=False, default=None)


@torch.no_grad()
def score(
    model: Model,
    data: DataModule,
    extractor: Extractor,
    metrics: Sequence[Any],
    num_samples: int,
    split: str = "test",
    seed: int = 0,
    batch_size: int = 100,
    keep: bool = False,
) -> Scores:
    """Draws samples, extracts features once and gives every metric a share of them.

    Rank r of w draws the samples r, r + w, ...; sample i is the same whoever draws it, so the scores do
    not depend on the number of devices or on the batch size.

    Args:
        model: A family that can be sampled.
        data: Gives the real images to compare with.
        extractor: Network whose features the metrics compare.
        metrics: What to compute.
        num_samples: Number of generated images, over all devices.
        split: Split of the real images.
        seed: Seed of the samples.
        batch_size: Images drawn at a time on each device.
        keep: Return the samples and their features too.
    """
    if not isinstance(model, Samples):
        raise ValueError(f"{type(model).__name__} cannot be sampled and has no sample scores.")
    start = time.monotonic()
    reference = reference_of(data, extractor, split, batch_size, model.device)
    for metric in metrics:
        metric.reset()
        metric.to(model.device)
        metric.set_reference(reference)
    extractor.to(model.device)
    kept: dict[int, Tensor] = {}

    def extracted() -> Iterator[tuple[Features, Tensor]]:
        for index in batches_of(num_samples, batch_size):
            levels = sample_levels(model, index, seed, given_for(model, index, data, split))
            features = extractor(levels, model.spec.levels)
            for metric in metrics:
                metric.update(features, index)
            if keep and len(kept) * levels[0].nbytes < KEPT_BYTES:
                kept.update(zip(index.tolist(), levels.cpu(), strict=True))
            yield features, index

    drawn = None
    if keep:
        drawn = Drawn(statistics(extracted(), extractor), seed, kept)
    else:
        for _ in extracted():
            pass
    values = {name: float(value) for metric in metrics for name, value in metric.compute().items()}
    protocol = {
        "extractor": extractor.name,
        "extractor_digest": extractor.digest[:16],
        "resize": extractor.resize,
        "split": split,
        "num_real": reference.num,
        "num_fake": num_samples,
        "seed": seed,
        "weights": model.sampling_weights,
        "data": data.spec.name,
        "data_fingerprint": data.fingerprint(split)[:16],
        "levels": model.spec.levels,
        "metrics": {type(metric).__name__: metric.protocol() for metric in metrics},
    }
    named = {score_name(name, reference.num, num_samples): value for name, value in values.items()}
    return Scores(named, protocol, time.monotonic() - start, drawn)


def sample_levels(model: Model, index: Tensor, seed: int, given: dict[str, Any] | None = None) -> Tensor:
    """Returns the numbered samples as the data's own levels (uint8), points and tokens as they are.

    Args:
        model: Has the capability `Samples`.
        index: Numbers of the samples.
        seed: Their seed.
        given: What they are told; None for what `given_for` invents without data.
    """
    given = given_for(model, index) if given is None else given
    with torch.autocast(model.device.type, enabled=False):
        x = model.sample(index.to(model.device), seed=seed, **given)  # type: ignore[operator]
    return to_levels(x, model.spec.levels) if model.spec.kind == "image" else x


def reference_of(
    data: DataModule,
    extractor: Extractor,
    split: str,
    batch_size: int,
    device: torch.device,
    num_kept: int = NUM_KEPT,
) -> Reference:
    """Returns the real images' statistics, from the disk where these very images were measured before.

    Args:
        data: Holds the split.
        extractor: Computes the features.
        split: Name of the split.
        batch_size: Images at a time on each device.
        device: Where the features are computed.
        num_kept: Images whose features are kept one by one.
    """

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        rank, world_size = place()
        for batch in data.loader(split, rank, world_size, batch_size):
            yield observed(batch).to(device), batch["index"]

    extractor.to(device)
    return cached_reference(
        data.fingerprint(split),
        extractor.digest,
        extractor.resize,
        *([] if num_kept == NUM_KEPT else [num_kept]),
        build=lambda: collect(batches(), extractor, data.spec.levels, num_kept),
    )


def batches_of(num: int, batch_size: int) -> Iterator[Tensor]:
    """Yields this device's share of the numbers 0 ... num - 1, in batches."""
    rank, world_size = place()
    yield from torch.arange(rank, num, world_size).split(batch_size)


def place() -> tuple[int, int]:
    """Returns this process's rank and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def score_name(metric: str, num_real: int, num_fake: int) -> str:
    """Returns a metric's name with its image counts, unless both sides have at least 10,000.

    FID falls with the number of images, so one of 797 images and one of 10,000 are different quantities.
    """
    if min(num_real, num_fake) >= ENOUGH_IMAGES:
        return metric if num_real == num_fake else f"{metric}@{num_fake}"
    return f"{metric}@{num_fake}" if num_real == num_fake else f"{metric}@{num_fake}vs{num_real}"


def find_score(values: dict[str, Any], metric: str) -> tuple[str, float] | None:
    """Returns the full name and value of a metric given by its short name, such as `fid`."""
    for name, value in values.items():
        if short_name(name) == metric and math.isfinite(float(value)):
            return name, float(value)
    return None
