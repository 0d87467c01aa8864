"""What all sample metrics share: numbered samples in, one result whatever the order and the devices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from genlab import randomness
from genlab.metrics.features import Features
from genlab.metrics.gaussian import covariance_factor
from genlab.shapes import DataSpec, Judge

EXTRACTED = frozenset({"sums", "features", "logits"})
"""What a metric may need that an extractor gives."""

PAIRED = frozenset({"target", "source"})
"""What a metric may need that only items with a source have."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of real images' features.

    Attributes:
        num: Number of images.
        protocol: The extractor, its digest and resizing, and the counts.

    Shapes:
        mean: (d,), covariance: (d, d), of all images, float64.
        features: (kept, d), float32: rows of the kept images; index: (kept,), their ascending numbers.
    """

    num: int
    mean: Tensor
    covariance: Tensor
    features: Tensor
    index: Tensor
    protocol: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def factor(self) -> Tensor:
        """The covariance's Cholesky factor."""
        return covariance_factor(self.covariance)


@dataclass(frozen=True, eq=False)
class Drawn:
    """A batch of samples as metrics are given it.

    Shapes:
        index: (batch,), int64, the samples' numbers, each once over all devices.
        x: (batch, ...), what was drawn: levels of images, points, tokens.
        features: Of the samples, where a metric needs them; see `Features`.
        target: The split's own items of these numbers, as x; source: what these come with.
    """

    index: Tensor
    x: Tensor
    features: Features | None = None
    target: Tensor | None = None
    source: Tensor | None = None


class SampleMetric(Metric):
    """A metric of a set of generated samples, fed from the one pass that all metrics share.

    Every sample comes with its number. Results are computed in the order of the numbers, with random
    choices keyed by them, hence they depend neither on batches nor on the number of devices.
    Each process must call `update` at least once, with zero rows if it has none.

    Shapes:
        drawn: see `Drawn`.
    """

    is_differentiable = False
    full_state_update = False

    needs: ClassVar[frozenset[str]] = frozenset()
    """What is asked of `Drawn`: an extractor's "sums", "features", "logits"; "pixels", "tokens"; "target",
    or "source" where that alone is compared with."""

    index: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("index", [], dist_reduce_fx="cat")
        self._reference: Reference | None = None
        self._spec: DataSpec | None = None
        self._decode: Callable[[Tensor], list[str]] | None = None
        self._judge: Judge | None = None

    @abstractmethod
    def update(self, drawn: Drawn) -> None:
        """Takes in a batch of generated samples."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Returns the scores by name."""

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """Returns the hyperparameters that a score depends on; after `compute`, as they were applied."""

    def set_reference(self, reference: Reference) -> None:
        """Gives the real images' statistics to compare with."""
        self._reference = reference

    def set_data(
        self,
        spec: DataSpec,
        decode: Callable[[Tensor], list[str]] | None = None,
        judge: Judge | None = None,
    ) -> None:
        """Says what the samples are.

        Args:
            spec: The data.
            decode: From rows of tokens to texts.
            judge: Of images by their sources, where the data have one.
        """
        self._spec, self._decode, self._judge = spec, decode, judge

    @property
    def reference(self) -> Reference:
        if self._reference is None:
            raise ValueError(f"{type(self).__name__} compares with real images: call set_reference first.")
        return self._reference

    def numbers(self) -> Tensor:
        """Returns the numbers of all samples, as they came.

        Raises:
            ValueError: A number came twice, as from a sampler that pads, or there are fewer than two.
        """
        index = dim_zero_cat(self.index)
        if len(index) < 2:
            raise ValueError(f"{type(self).__name__} needs at least 2 samples, got {len(index)}.")
        repeated = len(index) - len(index.unique())
        if repeated:
            raise ValueError(f"{repeated} samples were counted twice; give each process its own numbers.")
        return index

    def in_order(self, rows: list[Tensor], num: int | None = None) -> Tensor:
        """Returns the samples' rows by number; of more than num, those that `chosen_rows` chooses."""
        chosen = chosen_rows(self.numbers(), num)
        return checked(dim_zero_cat(rows)[chosen])


class FeatureMetric(SampleMetric):
    """A metric that compares images one by one, hence keeps every sample's features.

    Metrics of one pass keep the same tensors, not copies.
    """

    needs = frozenset({"features"})
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, drawn: Drawn) -> None:
        pool = features_of(drawn).pool
        self.rows.append(pool)
        self.index.append(drawn.index.to(pool.device))

    def fake_and_real(self, num: int | None = None) -> tuple[Tensor, Tensor]:
        """Returns the samples' and the real images' features in float64, at most num of each."""
        fake = exact(self.in_order(self.rows, num))
        kept = chosen_rows(self.reference.index, num)
        return fake, exact(self.reference.features[kept]).to(fake.device)


def features_of(drawn: Drawn) -> Features:
    """Returns the samples' features.

    Raises:
        ValueError: There are none.
    """
    if drawn.features is None:
        raise ValueError("This metric compares features: give it an extractor's of the samples.")
    return drawn.features


def needs_extractor(metrics: Iterable[SampleMetric]) -> bool:
    """Returns whether any of the metrics compares features instead of the samples themselves."""
    return any(metric.needs & EXTRACTED for metric in metrics)


def chosen_rows(index: Tensor, num: int | None = None) -> Tensor:
    """Returns the places of the samples, by number; of more than num, those of the smallest keyed hash.

    Whether a sample is chosen depends on the numbers alone, not on the order or place of their arrival.
    """
    if num is None or len(index) <= num:
        return index.argsort()
    hashes = randomness.uniform(randomness.key("chosen rows"), index.cpu(), 1)[:, 0]
    chosen = hashes.argsort()[:num].to(index.device)
    return chosen[index[chosen].argsort()]


def checked(features: Tensor) -> Tensor:
    """Returns features or their sums, if finite."""
    if not bool(features.isfinite().all()):
        raise ValueError(
            "The features of the images hold NaN or infinity, so there is no score; "
            "look for NaN in the model's weights, or damage in the extractor's."
        )
    return features


def exact(x: Tensor) -> Tensor:
    """Returns float64 on the same device, or on the CPU where the device has none."""
    return x.to("cpu" if x.device.type == "mps" else x.device, torch.float64)
