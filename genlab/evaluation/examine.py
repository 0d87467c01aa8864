"""Everything that one test finds out about a model, as the record of its run keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.data.base import DataModule
from genlab.data.text import TextData
from genlab.distributed import place
from genlab.evaluation import gallery
from genlab.evaluation.attention import of_attention
from genlab.evaluation.copies import count_copies, num_compared
from genlab.evaluation.floor import floor_scores
from genlab.evaluation.latent_space import measure_latent
from genlab.evaluation.likelihood import Likelihood, score_likelihood
from genlab.evaluation.passages import NUM_SAMPLES, Passages, drawn_texts, find_passages
from genlab.evaluation.probing import bigram_shift
from genlab.evaluation.reranking import Ranking
from genlab.evaluation.score import KeptSamples, Scores, reference_of, score
from genlab.evaluation.speed import measure_speed
from genlab.families.base import Model
from genlab.families.capabilities import Encodes, HasLikelihood, can, can_be_sampled
from genlab.metrics.base import Reference, SampleMetric, needs_extractor
from genlab.metrics.features import Extractor


@dataclass
class Examination:
    """What is asked of every model of one run: the data, the ruler, and where pictures go.

    Args:
        data: The run's data.
        extractor: The ruler; None where none is needed or to be had.
        metrics: Those of the samples.
        split: Real items that samples are scored against.
        num_samples: Samples for a score.
        batch_size: Items at a time.
        seed: Of everything that is drawn.
        num_likelihood: Items of the split whose likelihood is estimated; None for all.
        run: The run's folder, for pictures; None draws none.
        ranking: Who chooses each scored sample among several; speed is that of one candidate.
    """

    data: DataModule
    extractor: Extractor | None
    metrics: Sequence[SampleMetric]
    split: str = "test"
    num_samples: int = 10_000
    batch_size: int = 100
    seed: int = 0
    num_likelihood: int | None = None
    run: Path | None = None
    ranking: Ranking | None = None

    def of_model(self, model: Model, means: Mapping[str, float], folder: str = "test") -> dict[str, Any]:
        """Returns the whole test entry of a model; every process is to ask, and the first one's counts.

        Args:
            model: In evaluation mode, on the device where it is measured.
            means: Of its losses over the split.
            folder: Of the pictures, below the run's.
        """
        scores = self.scores(model, keep=True)
        entry = entry_of(means, scores, self.likelihood(model))
        sampling = self.of_sampling(model, scores, folder)
        if place()[0] != 0:
            return entry
        weights = self.of_latents(model, folder)
        reconstruction = weights.pop("reconstruction", None)
        if reconstruction:
            entry["values"]["reconstruction_mse"] = reconstruction.pop("mse")
            entry["protocol"]["reconstruction"] = reconstruction
        pictures = {**sampling.pop("pictures", {}), **weights.pop("pictures", {})}
        return {**entry, **sampling, **weights, "pictures": pictures}

    def of_variant(self, model: Model, folder: str) -> dict[str, Any]:
        """Returns the test entry of the same weights sampled otherwise: what depends on that alone."""
        scores = self.scores(model, keep=True)
        return {**entry_of({}, scores), **self.of_sampling(model, scores, folder)}

    def scores(self, model: Model, keep: bool = False) -> Scores | None:
        """Returns the scores of a model's samples, None of one without samples or with nothing to compare."""
        usable = self.metrics if self.extractor is not None else without_extractor(self.metrics)
        if not can_be_sampled(model) or not (usable or self.extractor):
            return None
        batch_size = min(self.batch_size, self.num_samples)
        arguments = (usable, self.num_samples, self.split, self.seed, batch_size, keep, self.ranking)
        return score(model, self.data, self.extractor, *arguments)

    def likelihood(self, model: Model) -> Likelihood | None:
        """Returns the likelihood of the split under a model that has one."""
        if not can(model, HasLikelihood):
            return None
        return score_likelihood(model, self.data, self.split, self.num_likelihood, self.batch_size)

    def of_sampling(self, model: Model, scores: Scores | None, folder: str = "test") -> dict[str, Any]:
        """Returns the parts of a test entry that depend on how samples are drawn.

        Args:
            model: The model with its way to sample.
            scores: Its scores, with what was drawn.
            folder: Of the pictures, below the run's.
        """
        if not can_be_sampled(model):
            return {}
        drawn = None if scores is None else scores.drawn
        if drawn is not None:
            train, test = self.train_reference(model), self.reference(model)  # by all processes together
        if place()[0] != 0:
            return {}
        found: dict[str, Any] = {"speed": measure_speed(model, seed=self.seed, data=self.data)}
        if drawn is not None:
            found |= self._beside_real(model, drawn, train, test, folder)
        if self.run is not None:
            pictures = gallery.of_translations(model, self.data, self.split, self.seed)
            found["pictures"] = found.get("pictures", {}) | gallery.save(
                pictures, self.run / folder, self.run
            )
        if isinstance(self.data, TextData) and not model.given:
            passages = self.passages(model)
            found["copies"] = passages.summary()
            if self.run is not None:
                found["pictures"] |= gallery.save({"passages": str(passages)}, self.run / folder, self.run)
        return found

    def passages(self, model: Model) -> Passages:
        """Returns what a model of running text writes that stands in the training text."""
        assert isinstance(self.data, TextData)
        num = min(NUM_SAMPLES, self.num_samples)
        texts = drawn_texts(model, self.data, num, self.seed, self.batch_size)
        return find_passages(texts, self.data.parts["train"], self.data.parts[self.split])

    def of_latents(self, model: Model, folder: str = "test") -> dict[str, Any]:
        """Returns the parts that depend on the weights alone, the reconstruction with its protocol."""
        if model.spec.kind == "tokens" and can(model, Encodes):
            return {"latent": bigram_shift(model, self.data, self.batch_size)}
        latent, reconstruction = measure_latent(model, self.data, self.extractor, self.batch_size, self.seed)
        found: dict[str, Any] = {"latent": latent} if latent else {}
        if reconstruction:
            found["reconstruction"] = reconstruction
        if self.run is not None:
            is_image = model.spec.kind == "image"
            pictures = gallery.of_latents(model, self.data, self.seed) if is_image else {}
            pictures |= of_attention(model, self.data, self.seed)
            found["pictures"] = gallery.save(pictures, self.run / folder, self.run)
        return found

    def reference(self, model: Model) -> Reference:
        """Returns the statistics of the images that samples are scored against."""
        assert self.extractor is not None
        return reference_of(self.data, self.extractor, self.split, self.batch_size, model.device)

    def train_reference(self, model: Model) -> Reference:
        """Returns the statistics of the training images, with all their features where they fit."""
        assert self.extractor is not None
        num = num_compared(self.extractor)
        return reference_of(self.data, self.extractor, "train", self.batch_size, model.device, num)

    def floor(self, train: Reference, test: Reference, num_samples: int) -> dict[str, float]:
        """Returns the scores of training images in place of samples."""
        assert self.extractor is not None
        key = [self.data.fingerprint(split) for split in ("train", self.split)]
        key += [self.extractor.digest, self.extractor.resize]
        return floor_scores(train, test, self.metrics, num_samples, key)

    def _beside_real(
        self, model: Model, drawn: KeptSamples, train: Reference, test: Reference, folder: str
    ) -> dict[str, Any]:
        """Returns what comes of comparing the samples' features with those of real images."""
        assert self.extractor is not None
        copies, counted = count_copies(drawn.features, train, test, self.extractor, model.device)
        found: dict[str, Any] = {"copies": counted, "floor": self.floor(train, test, drawn.features.num)}
        if self.run is not None and model.spec.kind == "image":
            pictures = gallery.of_samples(model, self.data, drawn, copies, train, test)
            found["pictures"] = gallery.save(pictures, self.run / folder, self.run)
        return found


def entry_of(
    means: Mapping[str, float], scores: Scores | None, likelihood: Likelihood | None = None
) -> dict[str, Any]:
    """Returns values with their protocols; `split_means` names those that are means over the split alone."""
    protocol: dict[str, Any] = {} if scores is None else dict(scores.protocol)
    measured = {} if scores is None else dict(scores.values)
    if likelihood is not None:
        protocol["likelihood"] = likelihood.protocol
        measured |= likelihood.values
    return {
        "values": {**means, **measured},
        "protocol": protocol,
        "split_means": [name for name in means if name not in measured],
    }


def without_extractor(metrics: Sequence[SampleMetric]) -> list[SampleMetric]:
    """Returns the metrics that compare the samples themselves."""
    return [metric for metric in metrics if not needs_extractor([metric])]
