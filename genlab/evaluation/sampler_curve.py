"""Quality of samples against the number of network passes, for every sampler that fits a model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genlab.data.base import DataModule
from genlab.evaluation.given import given_for
from genlab.evaluation.score import sample_levels, score
from genlab.evaluation.speed import synchronise
from genlab.families.capabilities import Denoises
from genlab.metrics.features import Extractor
from genlab.runs.headline import named
from genlab.samplers.base import Sampler
from genlab.shapes import Batch


@dataclass
class Point:
    """One sampler with one number of steps.

    Attributes:
        sampler: Name of the sampler and its grid.
        passes: Network passes for one sample; guided ones count twice.
        metric: Full name of the score, with its number of samples.
        value: The score.
        seconds: Time for drawing all samples, after a first one that does not count.
        images_per_second: Samples drawn in a second.
    """

    sampler: str
    passes: int
    metric: str
    value: float
    seconds: float
    images_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self)


class WithSampler(nn.Module):
    """A model seen as one that samples by another sampler; counts its time.

    Args:
        model: Walks from noise to data.
        sampler: The other sampler.
    """

    def __init__(self, model: Any, sampler: Sampler) -> None:
        super().__init__()
        self.model, self.sampler = model, sampler
        self.spec, self.device, self.given = model.spec, model.device, model.given
        self.sampling_weights = model.sampling_weights
        self.passes, self.seconds = model.passes_with(sampler), 0.0

    def given_of(self, batch: Batch) -> dict[str, Any]:
        """Returns what the model is told of a batch."""
        told: dict[str, Any] = self.model.given_of(batch)
        return told

    def sample(self, index: int | Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns the numbered samples."""
        start = time.monotonic()
        x = self.model.sample_with(self.sampler, index, seed, **given)
        synchronise(self.device)
        self.seconds += time.monotonic() - start
        return x


@torch.no_grad()
def measure(
    model: Denoises,
    name: str,
    sampler: Sampler,
    data: DataModule,
    extractor: Extractor,
    metrics: Sequence[Any],
    num_samples: int,
    split: str = "val",
    seed: int = 0,
    batch_size: int = 100,
) -> tuple[Point, dict[str, Any]]:
    """Returns the sampler's score (the first, FID where it is among them) and its protocol.

    Args:
        model: Walks from noise to data.
        name: Of the sampler, for tables and plots.
        sampler: How samples are drawn.
        data: Gives the real images to compare with.
        extractor: Network whose features the metrics compare.
        metrics: What to compute.
        num_samples: Number of generated images; a model told a source draws one an item of the split at most.
        split: Split of the real images; the curve serves to choose a sampler, which the test split must not.
        seed: Seed of the samples.
        batch_size: Images drawn at a time.
    """
    other = WithSampler(model, sampler)
    first = torch.arange(1)
    sample_levels(other, first, seed, given_for(other, first, data, split))  # type: ignore[arg-type]
    other.seconds = 0.0
    scores = score(other, data, extractor, metrics, num_samples, split, seed, batch_size)  # type: ignore[arg-type]
    found = named("fid").found_in(scores.values) or next(iter(scores.values.items()))
    num_drawn = scores.protocol["num_fake"]  # no more than the split has sources
    point = Point(name, other.passes, *found, other.seconds, num_drawn / other.seconds)
    return point, scores.protocol
