"""One pass over a model and a data module gives every score, each with its protocol."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from genlab.data.base import DataModule
from genlab.data.reversed import WayBackData
from genlab.data.tokenizers import tokenizer_of
from genlab.distributed import place
from genlab.errors import is_of_memory
from genlab.evaluation.given import given_for
from genlab.evaluation.reranking import Ranking
from genlab.families.base import Model
from genlab.families.capabilities import Samples, TranslatesBack
from genlab.metrics.base import PAIRED, Drawn, Reference, SampleMetric, needs_extractor
from genlab.metrics.features import Extractor
from genlab.metrics.reference import NUM_KEPT, Collector, cached_reference, collect
from genlab.progress import watched
from genlab.shapes import DataSpec, observed, predicted, to_levels

ENOUGH_IMAGES = 10_000
"""Below this many images on either side, a score carries their number in its name."""

Made = TypeVar("Made")

KEPT_BYTES = 2**28
"""Most bytes of samples that are kept; others are drawn again when they are wanted."""


@dataclass
class KeptSamples:
    """The samples of one pass, for whatever else looks at them.

    Attributes:
        features: The statistics and features of all samples, or of 10,000 of them, over all devices.
        seed: Their seed.
        levels: Of samples drawn on this device, by number, as far as they fit into memory.
        given: What numbered samples are told.
        ranking: Who has chosen them among several.
    """

    features: Reference
    seed: int
    levels: dict[int, Tensor]
    given: Callable[[Tensor], dict[str, Any]]
    ranking: Ranking | None = None

    def images(self, model: Model, numbers: Sequence[int]) -> Tensor:
        """Returns numbered samples as levels, drawn again where they were not kept."""
        missing = torch.tensor([number for number in numbers if number not in self.levels])
        if len(missing):
            again = sample_levels(model, missing, self.seed, self.given(missing), self.ranking).cpu()
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
    drawn: KeptSamples | None = field(compare=False, default=None)


@torch.no_grad()
def score(
    model: Model,
    data: DataModule,
    extractor: Extractor | None,
    metrics: Sequence[SampleMetric],
    num_samples: int,
    split: str = "test",
    seed: int = 0,
    batch_size: int = 100,
    keep: bool = False,
    ranking: Ranking | None = None,
) -> Scores:
    """Draws samples, extracts features once and gives every metric a share of them.

    Rank r of w draws the samples r, r + w, ...; sample i is the same whoever draws it, so the scores do
    not depend on the number of devices or on the batch size. A model that is told a source draws one sample
    for each item of the split, in their order, and no more.

    A model that translates back is scored on its way back, too: what it makes of the split's images is
    compared with the split's sources, under names such as `fid_back@100` for `fid@100`.

    Args:
        model: A family that can be sampled.
        data: Gives the real items to compare with.
        extractor: Network whose features the metrics compare; None where none of them does.
        metrics: What to compute.
        num_samples: Number of samples, over all devices.
        split: Split of the real items.
        seed: Seed of the samples.
        batch_size: Samples drawn at a time on each device.
        keep: Return the samples of the way there and their features, too.
        ranking: Who chooses each sample among several that fit its source; None for the first one.
    """
    there = _Pass(model, data, extractor, metrics, num_samples, split, seed, batch_size, ranking)
    found = there.scores(keep)
    if not isinstance(model, TranslatesBack):
        return found
    back = replace(there, model=model.reversed(), data=WayBackData(data)).scores()
    values = {back_name(name): value for name, value in back.values.items()}
    differs = {name: value for name, value in back.protocol.items() if value != found.protocol[name]}
    return replace(
        found,
        values={**found.values, **values},
        protocol={**found.protocol, "back": differs},
        seconds=found.seconds + back.seconds,
    )


@dataclass(frozen=True)
class _Pass:
    """One pass over a model and its data, in one direction; see `score`."""

    model: Model
    data: DataModule
    extractor: Extractor | None
    metrics: Sequence[SampleMetric]
    num_samples: int
    split: str
    seed: int
    batch_size: int
    ranking: Ranking | None = None

    def scores(self, keep: bool = False) -> Scores:
        check_scorable(self.model, self.extractor, self.metrics)
        start = time.monotonic()
        self._prepare_metrics()
        collector = None
        if keep and self.extractor is not None:
            collector = Collector(self.extractor).to(self.model.device)
        kept: dict[int, Tensor] = {}
        for drawn in self._batches():
            for metric in [*self.metrics, *filter(None, [collector])]:
                metric.update(drawn)
            if keep and len(kept) * drawn.x[:1].nbytes < KEPT_BYTES:
                kept.update(zip(drawn.index.tolist(), drawn.x.cpu(), strict=True))
        samples = None
        if collector is not None:
            given = partial(given_for, self.model, data=self.data, split=self.split)
            samples = KeptSamples(collector.reference_of_all(), self.seed, kept, given, self.ranking)
        return Scores(self._values(), self._protocol(), time.monotonic() - start, samples)

    @cached_property
    def num_real(self) -> int:
        return len(self.data.items(self.split))

    @property
    def num_fake(self) -> int:
        return min(self.num_samples, self.num_real) if "source" in self.model.given else self.num_samples

    def _prepare_metrics(self) -> None:
        device, extractor, reference = self.model.device, self.extractor, None
        if extractor is not None:
            reference = reference_of(self.data, extractor, self.split, self.batch_size, device)
        begin(self.metrics, device, reference)
        decode = text_decoder(self.data.spec)
        for metric in self.metrics:
            metric.set_data(self.data.spec, decode, self.data.judge)

    def _batches(self) -> Iterator[Drawn]:
        """Yields this device's share of the samples, in batches, with all that the metrics need."""
        model, data, split = self.model, self.data, self.split
        compares = any("target" in metric.needs for metric in self.metrics)

        def draw(index: Tensor) -> Drawn:
            given = given_for(model, index, data, split)
            x = sample_levels(model, index, self.seed, given, self.ranking)
            features = None if self.extractor is None else self.extractor(x, model.spec.levels)
            target = targets_of(data, split, index) if compares else None
            return Drawn(index, x, features, target, given.get("source"))

        rank, world_size = place()
        share = torch.arange(rank, self.num_fake, world_size)
        drawn = as_memory_allows(draw, share, self.batch_size)
        yield from watched(drawn, "sampling", len(share), "sample", lambda part: len(part.index))

    def _values(self) -> dict[str, float]:
        return values_of(self.metrics, self.num_real, self.num_fake)

    def _protocol(self) -> dict[str, Any]:
        ruler = {} if self.extractor is None else extractor_protocol(self.extractor)
        return {
            **ruler,
            "split": self.split,
            "num_real": self.num_real,
            "num_fake": self.num_fake,
            "seed": self.seed,
            "weights": self.model.sampling_weights,
            "data": self.data.spec.name,
            "data_fingerprint": self.data.fingerprint(self.split)[:16],
            "levels": self.model.spec.levels,
            "metrics": applied(self.metrics),
            **({} if self.ranking is None else self.ranking.protocol()),
        }


def begin(metrics: Sequence[SampleMetric], device: torch.device, reference: Reference | None) -> None:
    """Empties metrics for a pass over samples on a device, to be compared with real images."""
    for metric in metrics:
        metric.reset()
        metric.to(device)
        if reference is not None:
            metric.set_reference(reference)


def values_of(metrics: Sequence[SampleMetric], num_real: int, num_fake: int) -> dict[str, float]:
    """Returns what metrics found in a pass, by names that say how many images there were."""
    return {
        full_name(metric, name, num_real, num_fake): float(value)
        for metric in metrics
        for name, value in metric.compute().items()
    }


def applied(metrics: Sequence[SampleMetric]) -> dict[str, dict[str, Any]]:
    """Returns the settings of metrics as they were applied in a pass."""
    return {type(metric).__name__: metric.protocol() for metric in metrics}


def back_name(name: str) -> str:
    """Returns the name of a score of the way back, such as `fid_back@100` for `fid@100`."""
    key, at, counts = name.partition("@")
    return f"{key}_back{at}{counts}"


def check_scorable(model: Model, extractor: Extractor | None, metrics: Sequence[SampleMetric]) -> None:
    """Refuses a model without samples, and metrics that lack what they compare."""
    if not isinstance(model, Samples):
        raise ValueError(f"{type(model).__name__} cannot be sampled and has no sample scores.")
    if extractor is None and needs_extractor(metrics):
        raise ValueError("Some of the metrics compare features, and there is no extractor.")
    for metric in metrics:
        if metric.needs & PAIRED and "source" not in model.given:
            raise ValueError(
                f"{type(metric).__name__} compares samples with sources or their targets, and this "
                f"{type(model).__name__} is told no source: give model.given [source], or leave the metric "
                "out."
            )


def targets_of(data: DataModule, split: str, index: Tensor) -> Tensor:
    """Returns the split's own items of these numbers as they are stored: levels, or the tokens to predict."""
    target = observed(data.items(split).__getitems__(index))
    return predicted(target) if data.spec.kind == "tokens" else target


def text_decoder(spec: DataSpec) -> Callable[[Tensor], list[str]] | None:
    """Returns what makes texts of rows of tokens, each up to its end mark; None where tokens are no text."""
    if not spec.vocabulary:
        return None
    tokenizer = tokenizer_of(spec.vocabulary)
    return lambda rows: [tokenizer.decode(row) for row in rows.tolist()]


def extractor_protocol(extractor: Extractor) -> dict[str, Any]:
    """Returns what must be equal for features to be compared."""
    return {
        "extractor": extractor.name,
        "extractor_digest": extractor.digest[:16],
        "resize": extractor.resize,
    }


def full_name(metric: SampleMetric, name: str, num_real: int, num_fake: int) -> str:
    """Returns the name of a metric's value with its counts, where it depends on them."""
    if metric.needs & PAIRED:  # a mean over pairs: of all of them, or of a part that is to be said
        return name if num_fake == num_real else f"{name}@{num_fake}"
    return score_name(name, num_real, num_fake)


def sample_levels(
    model: Model,
    index: Tensor,
    seed: int,
    given: dict[str, Any] | None = None,
    ranking: Ranking | None = None,
) -> Tensor:
    """Returns the numbered samples as the data's own levels (uint8), points and tokens as they are.

    Args:
        model: Has the capability `Samples`.
        index: Numbers of the samples.
        seed: Their seed.
        given: What they are told; None for what `given_for` invents without data.
        ranking: Who chooses each among several.
    """
    given = given_for(model, index) if given is None else given
    with torch.autocast(model.device.type, enabled=False):
        index = index.to(model.device)
        if ranking is not None:
            x = ranking.sample(model, index, given, seed)
        else:
            x = model.sample(index, seed=seed, **given)  # type: ignore[operator]
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
        share = -(-len(data.items(split)) // world_size)
        loader = data.loader(split, rank, world_size, batch_size)
        for batch in watched(
            loader, f"features of {split}", share, "item", lambda batch: len(batch["index"])
        ):
            yield observed(batch).to(device), batch["index"]

    extractor.to(device)
    # The usual number is no part of the key, so that what was measured before it could vary is still found.
    key = [] if num_kept == NUM_KEPT else [num_kept]
    return cached_reference(
        data.fingerprint(split),
        extractor.digest,
        extractor.resize,
        *key,
        build=lambda: collect(batches(), extractor, data.spec.levels, num_kept),
    )


def as_memory_allows(make: Callable[[Tensor], Made], index: Tensor, batch_size: int) -> Iterator[Made]:
    """Yields what is made of numbers in batches, half as many at a time whenever memory runs out.

    Args:
        make: Makes something of a batch of numbers that no number's neighbours alter.
        index: The numbers.
        batch_size: Numbers at a time as long as there is room.
    """
    while len(index):
        part = index[:batch_size]
        try:
            made = make(part)
        except Exception as error:
            if not is_of_memory(error) or len(part) == 1:
                raise
            batch_size = len(part) // 2
            warnings.warn(f"Memory has no room for {len(part)} samples at a time: {batch_size} are drawn.")
        else:
            yield made
            index = index[len(part) :]
            continue
        if torch.cuda.is_available():  # outside of `except`, whose error holds what was made so far
            torch.cuda.empty_cache()


def score_name(metric: str, num_real: int, num_fake: int) -> str:
    """Returns a metric's name with its image counts, unless both sides have at least 10,000.

    FID falls with the number of images, so one of 797 images and one of 10,000 are different quantities.
    """
    if min(num_real, num_fake) >= ENOUGH_IMAGES:
        return metric if num_real == num_fake else f"{metric}@{num_fake}"
    return f"{metric}@{num_fake}" if num_real == num_fake else f"{metric}@{num_fake}vs{num_real}"
